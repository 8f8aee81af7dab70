"""Cores that this process may use (affinity, CPU quota of its cgroups), and the number format that they are fast in."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

__all__ = ["cpu_quota", "fast_bfloat16", "threads_of", "usable_cores"]


def usable_cores() -> int:
    """Cores of this machine that this process may keep busy, at least one.

    A quota of one and a half cores counts as one: two threads that share it wait for each other.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def threads_of(cores: int, processes: int) -> int:
    """Threads for each of `processes` processes that share `cores` cores, at least one."""
    return max(1, cores // max(1, processes))


def cpu_quota(mounts: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> float | None:
    """The CPU quota of this process in cores: the smallest one of its cgroups; None where none of them has a quota.

    Args:
        mounts: where cgroups are mounted: version 2 itself, version 1 with a folder for each controller.
        groups: the kernel's list of this process's groups, `number:controllers:path`. A container may see the path of
            the host, which is not among its mounts; its own group is then the mount's root.
    """
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        return None
    quotas = []
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if number == "0" and not controllers:
            quotas += [_version_2(folder) for folder in _ancestors(mounts, path)]
        elif "cpu" in controllers.split(","):
            mount = next((m for m in (mounts / controllers, mounts / "cpu") if m.is_dir()), mounts / "cpu,cpuacct")
            quotas += [_version_1(folder) for folder in _ancestors(mount, path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def fast_bfloat16(info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the cores multiply bfloat16 matrices at least as fast as float32 ones.

    Those with matrix units do (AMX, Arm's bf16), and AMD's with AVX-512 BF16. Intel's with AVX-512 BF16 but without AMX
    were measured at half the speed of float32 (torch 2.13's oneDNN), and others have no such instructions at all.

    Args:
        info: the kernel's description of the cores; without it the answer is no.
    """
    lines = [line.partition(":") for line in _text(info).splitlines()]
    facts = {name.strip(): value.split() for name, _, value in reversed(lines)}  # of the first core
    flags = {*facts.get("flags", []), *facts.get("Features", [])}
    return bool(flags & {"amx_bf16", "bf16"}) or ("avx512_bf16" in flags and facts.get("vendor_id") == ["AuthenticAMD"])


def _ancestors(mount: Path, path: str) -> list[Path]:
    """The folders of a cgroup and of its ancestors."""
    below = PurePosixPath(path.lstrip("/"))
    return [mount / part for part in (below, *below.parents) if ".." not in part.parts]


def _version_2(folder: Path) -> float | None:
    """`cpu.max`: quota and period in microseconds, or `max`."""
    words = _text(folder / "cpu.max").split()
    return _ratio(words[0], words[1] if len(words) > 1 else "100000") if words else None


def _version_1(folder: Path) -> float | None:
    """`cpu.cfs_quota_us`, -1 for none, over `cpu.cfs_period_us`."""
    return _ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    try:
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except ValueError:  # `max`, or no such file
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
