"""The one door to numba: loops over candidates, compiled once per machine and kept on disk.

A batch of one costs numpy more than its work: filling nine shelves took 1,570 us in numpy calls, and takes 60 us here.
Compiled functions take arrays, numbers, and named tuples of them; a tuple of arrays costs 80 ns to hand on, so what
runs once per candidate takes the arrays themselves.
"""

import fcntl
import functools
import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from llvmlite import binding, ir
from numba import njit, types
from numba.core import config
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compiles on the first call with arguments of a type, or loads what an earlier process compiled.

    Sums keep the order that is written, so a line's numbers are the same in every batch.
    """
    return _compiled(function, frozenset())


def summed(function: Function) -> Function:
    """Likewise, but sums may be added up in lanes: their order follows from the length and the processor alone.

    A product of 64 dimensions takes 3.4 ns so, 29 in four lanes written out, which LLVM does not put side by side.
    """
    return _compiled(function, frozenset({"reassoc", "nsz"}))


def _half(_: Any, bits: Any) -> Any:  # noqa: ARG001  # numba calls it by this name
    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


half = cast("Callable[[int], float]", intrinsic(_half))
"""The number whose float16 has some bits, as float32: for compiled loops, in which numba knows no float16."""


def reads_half() -> bool:
    """Whether the processor turns float16 into float32 by itself; x86 does since 2012."""
    return platform.machine() != "x86_64" or bool(binding.get_host_cpu_features().get("f16c"))


def _compiled(function: Function, fastmath: frozenset[str]) -> Function:
    cache = _cache()
    if cache is not None:
        vars(config)["CACHE_DIR"] = str(cache)
    made = njit(cache=cache is not None, nogil=True, error_model="numpy", fastmath=set(fastmath))
    return cast("Function", made(function))


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Lets one process of a machine compile while others wait for what it leaves on disk."""
    cache = _cache()
    if cache is None:
        yield
        return
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def _cache() -> Path | None:
    """A folder for this version of the code, where machine code is kept: numba sees a function's own file only.

    It is beside the code, else where NUMBA_CACHE_DIR says, else with the user's caches; None where nothing can be
    written, as in a read-only container: then each process compiles for itself.
    """
    room = Path(__file__).parent
    # Their constants are compiled in.
    files = (*sorted((room.parent / "ranking").glob("*.py")), room / "snapshot.py", Path(__file__))
    name = f"compiled-{hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()[:12]}"
    for place in (os.environ.get("NUMBA_CACHE_DIR"), room / "__pycache__", Path("~/.cache/mantel").expanduser()):
        if place is None:
            continue
        folder = Path(place) / name
        try:
            if not folder.exists():
                for older in Path(place).glob("compiled-*"):
                    shutil.rmtree(older, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return None
