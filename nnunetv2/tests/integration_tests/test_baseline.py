"""The plain nnU-Net beside us stays what it was: step by step the same losses with and without the overlay."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

TRAIN_STEPS, VALIDATION_STEPS, EPOCHS = 3, 2, 2

# What it prints last: where nnunetv2 was found, whether our modules are there, and all losses.
SCRIPT = f"""
import importlib.util, json, random
import numpy as np, torch
import nnunetv2
from nnunetv2.run.run_training import get_trainer_from_args

torch.set_num_threads(1)
for seed in (random.seed, np.random.seed, torch.manual_seed):
    seed(7)
trainer = get_trainer_from_args("900", "2d", 0, "nnUNetTrainer", "nnUNetPlans", device=torch.device("cpu"))
trainer.num_epochs, trainer.disable_checkpointing = {EPOCHS}, True
trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = {TRAIN_STEPS}, {VALIDATION_STEPS}
losses = []

def recorded(step):
    def make(batch):
        result = step(batch)
        losses.append(float(result["loss"]))
        return result
    return make

trainer.train_step, trainer.validation_step = recorded(trainer.train_step), recorded(trainer.validation_step)
trainer.run_training()
ours = [importlib.util.find_spec(f"nnunetv2.{{name}}") is not None for name in ("model", "run.run_training_vit")]
print(json.dumps({{"folder": nnunetv2.__path__[0], "ours": ours, "losses": losses}}))
"""


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A folder with upstream's package alone, as its own list of files tells."""
    package = distribution("nnunetv2")
    for file in package.files:
        if file.parts[0] == "nnunetv2" and file.suffix != ".pyc":
            copy = tmp_path / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package.locate_file(file), copy)
    return tmp_path


def train_plain(place, **variables: str) -> dict:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**place.variables(), "nnUNet_compile": "f", **variables},
        cwd=place.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_the_plain_nnunet_trains_the_same_with_and_without_the_overlay(workplace, upstream: Path):
    beside = train_plain(workplace.with_results("results_beside"))
    alone = train_plain(workplace.with_results("results_alone"), PYTHONPATH=str(upstream))
    assert (beside["ours"], alone["ours"]) == ([True, True], [False, False])
    assert alone["folder"] == str(upstream / "nnunetv2") != beside["folder"]
    assert len(set(alone["losses"])) == EPOCHS * (TRAIN_STEPS + VALIDATION_STEPS)  # every step has another one
    assert alone["losses"] == beside["losses"]
