"""How much memory processes use: proportional set size, so that what they share is counted once."""

import resource
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


def peak_bytes() -> int:
    """The peak resident set size of this process, or of the largest of its ended children."""
    lines = (_PROC / "self" / "status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))  # getrusage counts the parent's too
    return 1024 * max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def pss_bytes(pid: int) -> int:
    """A process' proportional set size; 0 where it is gone or belongs to another user."""
    return _rolled_up(pid, "Pss:")


def private_bytes(pid: int) -> int:
    """What a process holds that no other does and no file could give back; 0 as above."""
    return _rolled_up(pid, "Private_Dirty:")


def children_of(pid: int) -> list[int]:
    """The process ids of a process' children, ascending."""
    found = []
    for folder in _PROC.glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # gone meanwhile
        if parent == pid:
            found.append(int(folder.name))
    return sorted(found)


def readable(size: float) -> str:
    """Bytes as a person reads them."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _rolled_up(pid: int, what: str) -> int:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(what)), 0)
