"""What the kernel tells of processes and cores, and who runs where."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_NOBODYS: Final = (
    3,
    4,
    5,
    6,
)  # places in a line of /proc/stat: idle, waiting for disks, and interrupts of our own calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """CPU seconds since the start: of processes, and of the core on which they run."""

    processes: float
    core_busy: float
    core_all: float


def read(pids: frozenset[int], core: int) -> Reading:
    """Processes and their core, now; ticks are 10 ms on most kernels."""
    busy, everything = _core(core)
    return Reading(processes=sum(map(spent, pids)), core_busy=busy, core_all=everything)


def others_share(before: Reading, after: Reading) -> float:
    """The share of the core's time that other processes and the host's other guests took."""
    used = after.core_busy - before.core_busy - (after.processes - before.processes)
    return max(0.0, used / max(1e-9, after.core_all - before.core_all))


def keep_to(pid: int, core: int) -> None:
    """Keeps every thread of a process on one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def spent(pid: int) -> float:
    """CPU seconds of a process since its start."""
    fields = _fields(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS


def age(pid: int) -> float:
    """Seconds since a process was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(_fields(pid)[19]) / _TICKS


def cores() -> tuple[int, int] | None:
    """The server's core and the load's; None where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[-1], allowed[0]) if len(allowed) > 1 else None


def _fields(pid: int) -> list[str]:
    """What the kernel tells of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _core(core: int) -> tuple[float, float]:
    name = f"cpu{core} "
    (line,) = (one for one in Path("/proc/stat").read_text().splitlines() if one.startswith(name))
    spent = [int(one) for one in line.split()[1:9]]  # guests are counted in user time already
    return (sum(spent) - sum(spent[place] for place in _NOBODYS)) / _TICKS, sum(spent) / _TICKS
