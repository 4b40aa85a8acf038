"""Commands run as a user would, on a small drawn data set that is planned and preprocessed once.

A process of its own loads torch and nnU-Net for seconds, so that commands are called in the process of the tests
(`Workplace.run`, `Workplace.attempt`, `refused`) unless the process itself is what a test is about (`attempt_process`).
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from unittest import mock

import pytest
import torch
from make_fundus import make_dataset

SCRIPTS = Path(sysconfig.get_path("scripts"))
DATASET_ID = "900"
TINY_CONFIG = """
model:
  backbone_size: tiny
  pretrained: false
  freeze_backbone: false
  decoder: {hidden_size: 32}
train:
  initial_lr: 0.01
  num_epochs: 2
  num_iterations_per_epoch: 3
  num_val_iterations_per_epoch: 2
  batch_size: 2
  patch_size: [64, 64]
  save_every: 1
  seed: 3
"""
TINY_M2F_CONFIG = """
trainer: nnUNetTrainer_m2f
model: {backbone_size: tiny, pretrained: false, hidden_dim: 32, num_queries: 8}
lora: {enabled: false}
m2f_train: {num_points: 256}
train:
  initial_lr: 0.001
  num_epochs: 2
  num_iterations_per_epoch: 3
  num_val_iterations_per_epoch: 1
  batch_size: 2
  patch_size: [64, 64]
  save_every: 1
  seed: 3
"""


# EoMT and PMT: learning rates and masks change with every iteration
TINY_QUERY_CONFIG = """
trainer: nnUNetTrainer_m2f
model:
  model_path: nnunetv2.model.model_{network}
  backbone_size: tiny
  pretrained: false
  decoder: {{num_queries: 8, num_blocks: 2}}
m2f_train: {{num_points: 256}}
train:
  initial_lr: 0.001
  schedule_interval: iteration
  warmup_fraction: 0.1
  backbone_warmup_fraction: 0.1
  mask_annealing: {{start: [0, 0.3], end: [0.7, 1]}}
  precision: float32
  num_epochs: 2
  num_iterations_per_epoch: 3
  num_val_iterations_per_epoch: 1
  batch_size: 2
  patch_size: [64, 64]
  save_every: 1
  seed: 3
"""


# What trains before the tests that take it: these run in one worker, so that nothing is trained twice.
TRAINING_FIXTURES = ("trained", "trained_m2f", "trained_eomt", "trained_pmt")
# Run first, so that no worker is left with a long one at the end when the other has nothing more to do.
LONGEST_FIRST = (
    "test_overfit",
    "test_real_data",
    "test_main_job",
    "test_study",
    "test_m2f_trainer",
    "test_draw_queries",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)
            for name in set(TRAINING_FIXTURES) & set(item.fixturenames):
                item.add_marker(pytest.mark.xdist_group(name))
    items.sort(key=_place)  # a group runs at the place of its first test


def _place(item: pytest.Item) -> int:
    return LONGEST_FIRST.index(item.path.stem) if item.path.stem in LONGEST_FIRST else len(LONGEST_FIRST)


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, f"{result.args}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


class Workplace:
    """nnU-Net's three folders, and the commands run on them."""

    def __init__(self, root: Path):
        self.root = root
        self.folders = {f"nnUNet_{kind}": root / kind for kind in ("raw", "preprocessed", "results")}
        for folder in self.folders.values():
            folder.mkdir(parents=True, exist_ok=True)

    def variables(self) -> dict[str, str]:
        return {**os.environ, **{name: str(folder) for name, folder in self.folders.items()}}

    def attempt(self, command: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Call the entry point of a command in this process, which afterwards is as it was."""
        (entry,) = entry_points(group="console_scripts", name=command)
        line, code, threads = [command, *map(str, arguments)], 0, torch.get_num_threads()
        with (
            contextlib.redirect_stdout(io.StringIO()) as output,
            contextlib.redirect_stderr(io.StringIO()) as errors,
            mock.patch.dict(os.environ, {**self.variables(), **variables}),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.chdir(self.root)
            patch.setattr(sys, "argv", line)
            try:
                entry.load()()
            except SystemExit as end:
                code = end.code or 0
            finally:
                torch.set_num_threads(threads)
        return subprocess.CompletedProcess(line, code, output.getvalue(), errors.getvalue())

    def run(self, command: str, *arguments: object, **variables: str) -> str:
        """Call the entry point of a command in this process; return what it prints."""
        return succeeded(self.attempt(command, *arguments, **variables))

    def attempt_process(self, command: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a process of its own."""
        line = [str(SCRIPTS / command), *map(str, arguments)]
        everything = {**self.variables(), **variables}
        return subprocess.run(line, env=everything, cwd=self.root, capture_output=True, text=True, check=False)

    def run_process(self, command: str, *arguments: object, **variables: str) -> str:
        """Run a command as a process of its own; return what it prints."""
        return succeeded(self.attempt_process(command, *arguments, **variables))

    def predict(self, images: Path, output: Path, *arguments: object) -> None:
        """Call the stock command for fold 0 on the CPU, without a process for reading or writing images."""
        options = ("-c", "2d", "-f", 0, "-device", "cpu", "-npp", 0, "-nps", 0)
        self.run("nnUNetv2_predict", "-i", images, "-o", output, *options, *arguments)

    def kill_once_there_is(self, file: Path, command: str, *arguments: object) -> None:
        """Run a command, and kill it and its processes as soon as a file is there."""
        output = self.root / "killed.log"
        with output.open("w") as log:
            line = [str(SCRIPTS / command), *map(str, arguments)]
            options = {"env": self.variables(), "cwd": self.root, "stdout": log, "stderr": log}
            process = subprocess.Popen(line, start_new_session=True, **options)
            while process.poll() is None and not file.exists():
                time.sleep(0.05)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert file.exists(), f"{command} {arguments}\n{output.read_text()[-4000:]}"

    def plan(self, dataset_id: str) -> None:
        self._extract_fingerprint(int(dataset_id))
        # nnU-Net's planner sets as many threads as there are augmentation processes, and fails for none
        options = ("-d", dataset_id, "-c", "2d", "-npfp", 1, "-np", 1)
        self.run("nnUNetv2_plan_and_preprocess", *options, nnUNet_n_proc_DA="1")

    def _extract_fingerprint(self, dataset_id: int) -> None:
        """Write the fingerprint that the planner finds: nnU-Net would draw a hundred million pixels of five images."""
        from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

        with mock.patch.dict(os.environ, self.variables()):
            extractor = DatasetFingerprintExtractor(dataset_id, num_processes=1)
            extractor.num_foreground_voxels_for_intensitystats = 10_000
            extractor.run()

    def files(self) -> dict[Path, float]:
        """What training commands may write, with the time of the last change of each file."""
        paths = [path for folder in (self.preprocessed, self.results) for path in folder.rglob("*")]
        return {path: path.stat().st_mtime if path.is_file() else 0.0 for path in paths}

    @property
    def raw(self) -> Path:
        return self.folders["nnUNet_raw"]

    @property
    def preprocessed(self) -> Path:
        return self.folders["nnUNet_preprocessed"]

    @property
    def results(self) -> Path:
        return self.folders["nnUNet_results"]

    def with_results(self, name: str) -> "Workplace":
        """The same data, and an empty results folder."""
        other = Workplace(self.root)
        other.folders = {**self.folders, "nnUNet_results": self.root / name}
        other.results.mkdir()
        return other


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A small drawn data set, planned and preprocessed, with no preprocessed case missing."""
    place = Workplace(tmp_path_factory.mktemp("nnunet"))
    make_dataset(place.raw, num_train=5, num_test=2, size=80)
    place.plan(DATASET_ID)
    (place.root / "tiny.yaml").write_text(TINY_CONFIG)
    (place.root / "m2f_tiny.yaml").write_text(TINY_M2F_CONFIG)
    for network in ("eomt", "pmt"):
        (place.root / f"{network}_tiny.yaml").write_text(TINY_QUERY_CONFIG.format(network=network))
    without_options = [line for line in TINY_CONFIG.splitlines() if "decoder:" not in line]
    (place.root / "any_decoder.yaml").write_text("\n".join(without_options))
    return place


@pytest.fixture(scope="session")
def make_workplace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workplace]:
    """Make empty workplaces."""
    return lambda name: Workplace(tmp_path_factory.mktemp(name))


@pytest.fixture(scope="session")
def dataset_folder(workplace: Workplace) -> Path:
    return workplace.preprocessed / "Dataset900_DemoFundus"


@pytest.fixture(scope="session")
def trained(workplace: Workplace) -> Workplace:
    """Two trained experiments, `one` (full fine-tuning) and `two` (LoRA), with saved validation probabilities."""
    train = ("nnUNetv2_train_vit", DATASET_ID, "2d", 0, "--config", workplace.root / "tiny.yaml", "-device", "cpu")
    workplace.run(*train, "--name", "one", "--npz")
    workplace.run(*train, "--name", "two", "--npz", "lora.enabled=true", "train.seed=4")
    return workplace


def train_queries(workplace: Workplace, network: str, *overrides: str) -> Workplace:
    """Train a tiny network of mask classification in a results folder of its own, with the command of any decoder."""
    place = workplace.with_results(f"results_{network}")
    config = place.root / f"{network}_tiny.yaml"
    place.run("nnUNetv2_train_vit", DATASET_ID, "2d", 0, "--config", config, "-device", "cpu", *overrides)
    return place


@pytest.fixture(scope="session")
def trained_m2f(workplace: Workplace) -> Workplace:
    """A Mask2Former, `m2f_tiny`, trained until it finds something."""
    counts = ("train.num_epochs=3", "train.num_iterations_per_epoch=15", "train.schedule=poly")
    return train_queries(workplace, "m2f", *counts)


@pytest.fixture(scope="session")
def trained_eomt(workplace: Workplace) -> Workplace:
    """An EoMT, `eomt_tiny`."""
    return train_queries(workplace, "eomt")


@pytest.fixture(scope="session")
def trained_pmt(workplace: Workplace) -> Workplace:
    """A PMT, `pmt_tiny`, on a frozen backbone."""
    return train_queries(workplace, "pmt")


@pytest.fixture
def base_plans(dataset_folder: Path) -> dict:
    return json.loads((dataset_folder / "nnUNetPlans.json").read_text())


@pytest.fixture
def dataset_json(dataset_folder: Path) -> dict:
    return json.loads((dataset_folder / "dataset.json").read_text())


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """Call a command that must end with exit code 2 and write nothing; return the last line of its errors."""

    def call(place: Workplace, *arguments: object, command: str = "nnUNetv2_train_vit") -> str:
        before = place.files()
        result = place.attempt(command, *arguments)
        assert result.returncode == 2 and "Traceback" not in result.stderr, result.stdout + result.stderr
        assert place.files() == before
        return result.stderr.strip().splitlines()[-1]

    return call
