"""OpenMP for `implicit`, whose wheel expects the system's libgomp where other wheels bring their own."""

import ctypes
import os
from importlib.metadata import distribution
from pathlib import Path

WANTED = b"libgomp.so.1"


def provide() -> None:
    """Make libgomp known to this process; to be called before `implicit` is imported.

    Where the system has none (a slim container, a fresh Debian), the copy inside faiss-cpu's wheel is loaded under the
    name that `implicit` asks for.
    """
    try:
        ctypes.CDLL(WANTED.decode())
    except OSError:
        files = distribution("faiss-cpu").files or []
        bundled = next(Path(str(file.locate())) for file in files if file.name.startswith("libgomp-"))
        name = bundled.name.encode()
        library = os.memfd_create(WANTED.decode())
        with os.fdopen(library, "wb") as copy:
            copy.write(bundled.read_bytes().replace(name, WANTED.ljust(len(name), b"\0")))
            copy.flush()
            ctypes.CDLL(f"/proc/self/fd/{library}")
