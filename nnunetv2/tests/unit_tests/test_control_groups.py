"""Limits of containers and batch systems on cores and memory, as Linux shows them in files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunetv2.experiment import cores as cores_module
from nnunetv2.experiment import memory
from nnunetv2.experiment.control_groups import cpu_limit, memory_limit
from nnunetv2.experiment.cores import usable_cores
from nnunetv2.experiment.memory import describe_machine

GIB = 2**30
NO_LIMIT = 9223372036854771712  # of version 1
Write = Callable[[str, dict[str, object]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the groups of a process, and the files that are mounted in its container."""

    def make(groups: str, files: dict[str, object]) -> Path:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
        for name, content in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("files", "cores", "limit"),
    [
        ({"cpu.max": "150000 100000", "memory.max": 8 * GIB}, 1.5, 8 * GIB),  # a container that sees itself at the top
        ({"job/step/cpu.max": "400000 100000", "job/step/memory.max": 3 * GIB}, 4, 3 * GIB),
        ({"job/step/cpu.max": "max 100000", "job/cpu.max": "200000 50000", "job/memory.max": GIB}, 4, GIB),
        ({"job/step/memory.max": "max", "job/memory.max": 2 * GIB, "memory.max": 3 * GIB}, None, 2 * GIB),
        ({"job/step/cpu.max": "max 100000", "job/step/memory.max": "max"}, None, None),
        ({"other/cpu.max": "100000 100000", "other/memory.max": GIB}, None, None),  # not a group of this process
        ({}, None, None),
    ],
)
def test_limits_of_version_2(write: Write, files: dict, cores: float | None, limit: int | None):
    system = write("0::/job/step\n", files)
    assert cpu_limit(system) == cores and memory_limit(system) == limit


def test_limits_of_version_1(write: Write):
    groups = "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n3:cpuset:/docker/a\n0::/\n"
    limits = {"cpu/cpu.cfs_quota_us": 250_000, "cpu/cpu.cfs_period_us": 100_000}
    system = write(groups, {**limits, "memory/memory.limit_in_bytes": 4 * GIB})
    assert cpu_limit(system) == 2.5 and memory_limit(system) == 4 * GIB


def test_no_limits_of_version_1(write: Write):
    none = {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100_000, "memory/memory.limit_in_bytes": NO_LIMIT}
    system = write("5:memory:/\n4:cpu,cpuacct:/\n", none)
    assert cpu_limit(system) is None and memory_limit(system) == NO_LIMIT


def test_a_group_outside_of_what_is_mounted_leaves_that_at_the_top(write: Write):
    system = write("0::/../other\n", {"cpu.max": "100000 100000", "../other/cpu.max": "50000 100000"})
    assert cpu_limit(system) == 1


def test_without_control_groups_there_is_no_limit(tmp_path: Path):
    assert cpu_limit(tmp_path) is None and memory_limit(tmp_path) is None


@pytest.mark.parametrize(("limit", "cores"), [(None, 8), (0.5, 1), (1.5, 2), (4, 4), (16, 8)])
def test_a_training_uses_no_more_cores_than_it_has_time_of(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, cores: int
):
    monkeypatch.setattr(cores_module.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cores_module, "cpu_limit", lambda: limit)
    assert usable_cores() == cores


def test_the_memory_of_a_container_is_that_of_a_training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "memory_limit", lambda: GIB // 8)
    machine = describe_machine(torch.device("cpu"), 1)
    assert machine.memory == GIB // 8 and machine.memory_of == "this process may use"


@pytest.mark.parametrize("limit", [None, NO_LIMIT])
def test_without_a_limit_it_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch, limit: int | None):
    monkeypatch.setattr(memory, "memory_limit", lambda: limit)
    assert describe_machine(torch.device("cpu"), 1).memory_of == "this machine has"
