"""OpenMP for `implicit` on a machine that has none."""

import subprocess
import sys

WITHOUT_LIBGOMP = """
import ctypes

class Missing(ctypes.CDLL):
    def __init__(self, name, *args, **kwargs):
        if name == "libgomp.so.1":
            raise OSError(name)
        super().__init__(name, *args, **kwargs)

ctypes.CDLL = Missing

from features.offline import openmp

openmp.provide()
import implicit.cpu.als

print(open("/proc/self/maps").read())
"""


def test_implicit_runs_on_the_libgomp_that_faiss_brings_where_the_system_has_none() -> None:
    """Its modules are satisfied by the copy in memory; the system's library is not even looked for."""
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_LIBGOMP]
    maps = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    libraries = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libgomp" in line}
    assert libraries == {"/memfd:libgomp.so.1 (deleted)"}
