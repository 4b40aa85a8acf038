"""How a training on the CPU shares the cores, and what of it the user decides."""

import os

import pytest

from nnunetv2.experiment import cores as cores_module
from nnunetv2.experiment.cores import usable_cores
from nnunetv2.run import training_commands
from nnunetv2.run.cpu_cores import split_cores
from nnunetv2.run.run_training_vit import run_training_entry

VARIABLES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc")


@pytest.mark.parametrize(
    ("cores", "shares"), [(1, (1, 1)), (2, (2, 1)), (4, (4, 1)), (8, (7, 1)), (64, (56, 8)), (256, (244, 12))]
)
def test_both_parts_of_a_training_get_what_the_number_of_cores_allows(cores: int, shares: tuple[int, int]):
    assert split_cores(cores) == shares


def test_no_number_of_cores_is_exceeded_by_more_than_one():
    for cores in range(1, 300):
        threads, processes = split_cores(cores)
        assert threads >= 1
        assert processes >= 1
        assert threads + processes <= cores + 1


@pytest.fixture
def train_with(monkeypatch: pytest.MonkeyPatch):
    """Run the command up to the training; give back the number of threads for PyTorch and the variables."""

    def run(device: str, **own: str) -> tuple[int, dict[str, str | None]]:
        given = []
        monkeypatch.setattr(training_commands, "train", lambda args, threads: given.append(threads))
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        run_training_entry(["900", "2d", "0", "--config", "upernet", "-device", device])
        return given[0], {name: os.environ.get(name) for name in VARIABLES}

    return run


def test_a_training_on_the_cpu_shares_its_cores(train_with):
    cores = usable_cores()
    threads, processes = split_cores(cores)
    counts = {"OMP_NUM_THREADS": threads, "nnUNet_n_proc_DA": processes, "nnUNet_def_n_proc": min(cores, 8)}
    variables = {"OMP_WAIT_POLICY": "passive", **{name: str(count) for name, count in counts.items()}}
    assert train_with("cpu") == (threads, variables)


def test_what_the_user_has_set_stays(train_with):
    own = {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "3", "nnUNet_n_proc_DA": "5", "nnUNet_def_n_proc": "2"}
    assert train_with("cpu", **own) == (3, own)


def test_a_training_on_a_gpu_is_left_to_nnunet(train_with):
    variables = {"OMP_WAIT_POLICY": None, "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": None, "nnUNet_def_n_proc": None}
    assert train_with("cuda") == (1, variables)


def test_cores_that_the_process_may_not_use_do_not_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    monkeypatch.setattr(cores_module, "cpu_limit", lambda: None)
    assert usable_cores() == 2
