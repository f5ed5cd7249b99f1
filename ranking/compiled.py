"""The one door to numba: loops over candidates, compiled once per machine and kept on disk.

A batch of one costs numpy more than its work: filling nine shelves took 1,570 us in numpy calls, and takes 60 us here.
Compiled functions take arrays, numbers, and named tuples of them; a tuple of arrays costs 80 ns to hand on, so what
runs once per candidate takes the arrays themselves.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit
from numba.core import config

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compiles on the first call with arguments of a type, or loads what an earlier process compiled.

    Sums keep the order that is written: no fast-math, so a line's numbers are the same in every batch.
    """
    if not getattr(config, "CACHE_DIR", ""):  # NUMBA_CACHE_DIR goes first
        vars(config)["CACHE_DIR"] = str(_cache())
    return cast("Function", njit(cache=True, nogil=True, error_model="numpy")(function))


def _cache() -> Path:
    """A folder for this version of this room: numba sees changes of a function's own file only.

    Where it cannot be written, numba turns to the user's cache directory.
    """
    room = Path(__file__).parent
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(room.glob("*.py"))))
    return room / "__pycache__" / f"compiled-{sources.hexdigest()[:12]}"
