"""Studies run as a user would: on this machine, killed and run again, and on a real Slurm cluster."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import slurm_cluster, why_not

from dinov3.weights.reading import read_checkpoint
from nnunetv2.study.training_log import training_logs

pytestmark = pytest.mark.xdist_group("study")  # what the single commands give is trained once
COMMAND = "nnUNetv2_vit_study"
TRAIN = (
    *("train.num_epochs=2", "train.num_iterations_per_epoch=1", "train.num_val_iterations_per_epoch=1"),
    *("train.batch_size=2", "train.save_every=1"),
)
TINY_VIT = ("model.backbone_size=tiny", "model.pretrained=false")
OVERRIDES = {"linear": TINY_VIT, "upernet": (*TINY_VIT, "model.decoder.hidden_size=32"), "unet": ()}
TRAINERS = {"linear": "nnUNetTrainer_vit", "upernet": "nnUNetTrainer_vit", "unet": "nnUNetTrainer_unet"}
CASES = 5  # nnU-Net's five folds


@dataclass(frozen=True)
class Trial:
    """A study, and the single commands that do the same, which are run first."""

    place: Any
    dataset: str
    patch: int
    experiments: tuple[str, ...]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def common(self) -> tuple[str, ...]:
        return (*TRAIN, f"train.patch_size=[{self.patch},{self.patch}]")

    def write(self, name: str) -> Path:
        experiments = {key: {"config": key, "overrides": OVERRIDES[key]} for key in self.experiments}
        values = {"name": name, "dataset": self.dataset, "folds": self.folds, "seeds": self.seeds, "device": "cpu"}
        file = self.place.root / f"{name}.yaml"
        file.write_text(json.dumps({**values, "common": self.common, "experiments": experiments}))  # JSON is YAML
        return file

    def train_alone(self) -> None:
        for experiment, seed, fold in product(self.experiments, self.seeds, self.folds):
            train = ("nnUNetv2_train_vit", self.dataset, "2d", fold, "--config", experiment, "-device", "cpu")
            name = ("--name", f"alone_{experiment}{self.suffix(seed)}")
            self.place.run(*train, *name, *self.common, *OVERRIDES[experiment], f"train.seed={seed}")

    def suffix(self, seed: int) -> str:
        return f"_seed{seed}" if len(self.seeds) > 1 else ""

    @property
    def results(self) -> Path:
        return self.place.results / self.dataset

    def fold(self, study: str, experiment: str, seed: int, fold: int) -> Path:
        plans = f"nnUNetPlans_{study}_{experiment}{self.suffix(seed)}"
        return self.results / f"{TRAINERS[experiment]}__{plans}__2d" / f"fold_{fold}"

    def numbers(self, study: str) -> dict[tuple[str, int, int], Any]:
        """The metrics of every validation case, and the weights, of every run."""
        runs = product(self.experiments, self.seeds, self.folds)
        return {run: _numbers(self.fold(study, *run)) for run in runs}


def _numbers(folder: Path) -> tuple[dict, list, dict]:
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    weights = read_checkpoint(folder / "checkpoint_final.pth")["network_weights"]
    metrics = [case["metrics"] for case in summary["metric_per_case"]]
    return summary["mean"], metrics, {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


@pytest.fixture(scope="module", params=["drawn", pytest.param("real", marks=pytest.mark.nightly)])
def trial(request: pytest.FixtureRequest) -> Trial:
    if request.param == "drawn":
        place = request.getfixturevalue("workplace")
        study = Trial(place, "Dataset900_DemoFundus", 64, ("linear", "upernet"), (0,), (0,))
    else:
        place = request.getfixturevalue("make_workplace")("study")
        dataset = "Dataset102_NucleiDSB2018"
        take_cases(request.getfixturevalue("real_data") / dataset, place.raw / dataset)
        place.plan("102")
        study = Trial(place, dataset, 128, ("linear", "upernet", "unet"), (0, 1), (0, 1))
    study.train_alone()
    return study


def take_cases(source: Path, target: Path) -> None:
    """Copy a few cases of a data set."""
    description = json.loads((source / "dataset.json").read_text())
    labels = sorted((source / "labelsTr").glob(f"*{description['file_ending']}"))[:CASES]
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True)
    for label in labels:
        shutil.copy(label, target / "labelsTr")
        case = label.name.removesuffix(description["file_ending"])
        for image in (source / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9]{description['file_ending']}"):
            shutil.copy(image, target / "imagesTr")
    (target / "dataset.json").write_text(json.dumps({**description, "numTraining": CASES}))


def test_killed_in_the_middle_and_run_again_it_gives_the_numbers_of_the_single_commands(trial: Trial):
    study, place = trial.write("killed"), trial.place
    number = len(trial.experiments) * len(trial.folds) * len(trial.seeds)
    place.kill_once_there_is(trial.fold("killed", "linear", 0, 0) / "checkpoint_latest.pth", COMMAND, "run", study)
    assert "interrupted  linear, fold 0, seed 0" in place.run(COMMAND, "status", study)
    assert f"killed: {number} of {number} runs finished" in place.run(COMMAND, "run", study, "--workers", 2)
    assert trial.numbers("killed") == trial.numbers("alone")
    logs = sorted((trial.results / "study_killed").glob("*_linear*__fold_0.log"))
    assert logs[0].read_text().count("Training done") == 1

    before = place.files()
    assert f"{number} of {number} runs finished" in place.run(COMMAND, "run", study)
    study.write_text(study.read_text().replace("train.num_epochs=2", "train.num_epochs=3"))
    result = place.attempt(COMMAND, "run", study)
    assert result.returncode == 2 and "changed since it was started (then → now):" in result.stderr
    assert "train.num_epochs: 2 → 3" in result.stderr
    assert place.files() == before  # finished runs are left alone


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as folder, slurm_cluster(Path(folder)) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.usefixtures("cluster")
def test_preempted_timed_out_and_requeued_on_slurm_it_gives_the_same_numbers(trial: Trial):
    study, place = trial.write("slurm"), trial.place
    run = (COMMAND, "run", study, "--on", "slurm", "--cpus", 1, "--time", 10, "--partition", "main")
    number = len(trial.experiments) * len(trial.folds) * len(trial.seeds)
    assert f"{number} jobs submitted" in place.run(*run, "--slurm", "array_parallelism=2")
    assert "0 jobs submitted" in place.run(*run)  # they are in the queue
    runs = product(trial.experiments, trial.seeds, trial.folds)
    first, second, *others = sorted((SlurmJob(trial, *run) for run in runs), key=lambda job: job.index)
    for job in others:  # they would take the places of the first two
        ask_slurm("scontrol", "hold", job.number)

    wait_until((first.fold / "checkpoint_best.pth").exists)
    ask_slurm("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true")  # preempts them
    wait_until(lambda: second.state == "PENDING")
    wait_until(lambda: second.state == "RUNNING")
    ask_slurm("scontrol", "requeue", second.number)
    wait_until(lambda: len(training_logs(first.fold)) == 2)
    ask_slurm("scancel", "--signal=USR2", first.number)  # what Slurm sends before the time limit
    wait_until(lambda: first.state == "PENDING")
    for job in others:
        ask_slurm("scontrol", "release", job.number)

    assert f"slurm: {number} of {number} runs finished" in place.run(*run, "--wait")
    assert first.output.read_text().count("Calling checkpoint method") == 2
    assert trial.numbers("slurm") == trial.numbers("alone")


@dataclass(frozen=True)
class SlurmJob:
    """The job that trains a run."""

    trial: Trial
    experiment: str
    seed: int
    fold_number: int

    @property
    def folder(self) -> Path:
        return self.trial.results / "study_slurm"

    @property
    def fold(self) -> Path:
        return self.trial.fold("slurm", self.experiment, self.seed, self.fold_number)

    @property
    def number(self) -> str:
        plans = f"nnUNetPlans_slurm_{self.experiment}{self.trial.suffix(self.seed)}"
        return (self.folder / f"{plans}__fold_{self.fold_number}.job").read_text()

    @property
    def index(self) -> int:
        return int(self.number.partition("_")[2])

    @property
    def output(self) -> Path:
        return self.folder / "slurm" / f"{self.number}_0_log.out"

    @property
    def state(self) -> str:
        return ask_slurm("squeue", "--noheader", "--array", "--jobs", self.number, "--format=%T").strip()


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, ask_slurm("squeue", "--array")
        time.sleep(0.1)


def ask_slurm(*command: str) -> str:
    return subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True).stdout
