"""Cores that a process may use, from files as the kernel lays them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwen3emb.core.cores import cpu_quota, fast_bfloat16, threads_of, usable_cores


def quota(folder: Path, groups: str, files: dict[str, str]) -> float | None:
    """The quota where the mount holds `files`."""
    mounts = folder / "cgroup"
    mounts.mkdir()
    for name, text in files.items():
        (mounts / name).parent.mkdir(parents=True, exist_ok=True)
        (mounts / name).write_text(text + "\n")
    (folder / "groups").write_text(groups)
    return cpu_quota(mounts, folder / "groups")


def version_1(group: str, microseconds: str) -> dict[str, str]:
    """The files of a group of version 1."""
    return {f"{group}/cpu.cfs_quota_us": microseconds, f"{group}/cpu.cfs_period_us": "100000"}


V2 = "0::/kubepods/pod1/main\n"
V1 = "11:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "wanted"),
    [
        (V2, {"kubepods/pod1/main/cpu.max": "250000 100000"}, 2.5),
        (V2, {"kubepods/pod1/main/cpu.max": "max 100000", "kubepods/pod1/cpu.max": "400000 100000"}, 4.0),
        (V2, {"kubepods/pod1/main/cpu.max": "800000 100000", "kubepods/cpu.max": "30000 20000"}, 1.5),
        (V2, {"kubepods/pod1/main/cpu.max": "max 100000"}, None),
        (V2, {"kubepods/pod1/main/cpu.max": "max"}, None),
        (V2, {"cpu.max": "50000 100000"}, 0.5),  # a container's own group is the mount's root
        ("0::/\n", {"cpu.max": "300000 100000"}, 3.0),
        ("0::/../../other\n", {"cpu.max": "300000 100000"}, 3.0),
        (V2, {}, None),
        (
            V1,
            {f"cpu,cpuacct/docker/abc/cpu.cfs_{k}_us": v for k, v in (("quota", "150000"), ("period", "100000"))},
            1.5,
        ),
        (V1, {f"cpu/cpu.cfs_{k}_us": v for k, v in (("quota", "400000"), ("period", "200000"))}, 2.0),
        (V1, {f"cpu/cpu.cfs_{k}_us": v for k, v in (("quota", "-1"), ("period", "100000"))}, None),
        ("3:cpuset:/a\n2:cpuacct:/a\n", {"cpuset/cpu.cfs_quota_us": "1", "cpuset/cpu.cfs_period_us": "1"}, None),
        ("nonsense\n", {"cpu.max": "nonsense 3"}, None),
    ],
)
def test_the_quota_is_the_least_of_the_groups(
    tmp_path: Path, groups: str, files: dict[str, str], wanted: float | None
) -> None:
    assert quota(tmp_path, groups, files) == wanted


def test_without_the_kernels_files_nothing_limits(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "not there") is None
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_processes_share_the_cores_of_their_machine() -> None:
    assert [threads_of(64, processes) for processes in (1, 3, 16, 64, 200)] == [64, 21, 4, 1, 1]


@pytest.mark.parametrize(
    ("info", "fast"),
    [
        ("processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx512f avx512_bf16\n", False),
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2\n", False),
        ("processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd i8mm bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        (None, False),
    ],
)
def test_cores_that_multiply_bfloat16_fast(tmp_path: Path, info: str | None, fast: bool) -> None:
    if info is not None:
        (tmp_path / "cpuinfo").write_text(info)
    assert fast_bfloat16(tmp_path / "cpuinfo") is fast
