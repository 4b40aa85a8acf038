"""What the control groups of Linux, those of containers and batch systems, leave to this process of the machine.

Version 2 of them has one hierarchy of folders, version 1 one per resource; a limit of a folder holds in those below.
"""

from collections.abc import Iterator
from pathlib import Path

SYSTEM = Path("/")


def cpu_limit(system: Path = SYSTEM) -> float | None:
    """Number of cores whose time this process may use, which need not be whole; None without a limit.

    Args:
        system: where `proc` and `sys` are.
    """
    shares = []
    for folder in _folders("cpu", system):
        both = _numbers(folder / "cpu.max") or [
            number for name in ("quota", "period") for number in _numbers(folder / f"cpu.cfs_{name}_us")
        ]
        if len(both) == 2 and min(both) > 0:  # version 1 has a quota of -1 for none
            shares.append(both[0] / both[1])
    return min(shares, default=None)


def memory_limit(system: Path = SYSTEM) -> int | None:
    """Bytes of memory that this process may use; None, or more than any machine has, without a limit.

    Args:
        system: where `proc` and `sys` are.
    """
    limits = []
    for folder in _folders("memory", system):
        limits += _numbers(folder / "memory.max") or _numbers(folder / "memory.limit_in_bytes")
    return min(limits, default=None)


def _folders(resource: str, system: Path) -> Iterator[Path]:
    """Yield the folders of the groups of this process that can limit a resource, whether they are there or not."""
    mounted = system / "sys" / "fs" / "cgroup"
    for line in _lines(system / "proc" / "self" / "cgroup"):
        _, resources, path = line.split(":", 2)  # version 2 names no resource
        if resources and resource not in resources.split(","):
            continue
        top = mounted / resource if resources else mounted
        inner = Path(path.strip("/"))
        # a container may see the path that its host has for the group, and its own group at the top
        yield from (top / part for part in (inner, *inner.parents) if ".." not in part.parts)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _numbers(path: Path) -> list[int]:
    """The numbers in a file; none where it is not there or says `max`."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
