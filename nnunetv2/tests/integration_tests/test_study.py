"""Studies run as a user would: on this machine, killed and run again, and on a real Slurm cluster."""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from slurm_cluster import slurm_cluster, why_not

from dinov3.weights.reading import read_checkpoint

DATASET = "Dataset900_DemoFundus"
TRAIN = (
    *("model.backbone_size=tiny", "model.pretrained=false", "train.num_epochs=2", "train.num_iterations_per_epoch=1"),
    *("train.num_val_iterations_per_epoch=1", "train.batch_size=2", "train.patch_size=[32,32]", "train.save_every=1"),
)
STUDY = """
name: {name}
dataset: 900
folds: [0]
device: cpu
common: {common}
experiments:
  linear: {{config: linear}}
  upernet: {{config: upernet, overrides: [model.decoder.hidden_size=32]}}
"""


def study_file(place, name: str) -> Path:
    path = place.root / f"{name}.yaml"
    path.write_text(STUDY.format(name=name, common=json.dumps(TRAIN)))
    return path


def fold_folder(place, plans: str) -> Path:
    return place.results / DATASET / f"nnUNetTrainer_vit__nnUNetPlans_{plans}__2d" / "fold_0"


def outcome(place, plans: str) -> tuple[dict, dict]:
    """The summary of the validation, without paths, and the weights."""
    folder = fold_folder(place, plans)
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    weights = read_checkpoint(folder / "checkpoint_final.pth")["network_weights"]
    metrics = [case["metrics"] for case in summary["metric_per_case"]]
    return {"mean": summary["mean"], "cases": metrics}, {name: t.numpy().tobytes() for name, t in weights.items()}


@pytest.fixture(scope="module")
def alone(workplace) -> dict[str, tuple[dict, dict]]:
    """What the single commands give."""
    for name, own in (("linear", ()), ("upernet", ("model.decoder.hidden_size=32",))):
        train = ("nnUNetv2_train_vit", "900", "2d", 0, "--config", name, "--name", f"alone_{name}", "-device", "cpu")
        workplace.run(*train, *TRAIN, *own, "train.seed=0")
    return {name: outcome(workplace, f"alone_{name}") for name in ("linear", "upernet")}


def test_killed_in_the_middle_and_run_again_it_gives_the_numbers_of_the_single_commands(workplace, alone):
    study = study_file(workplace, "killed")
    latest = fold_folder(workplace, "killed_linear") / "checkpoint_latest.pth"
    workplace.kill_once_there_is(latest, "nnUNetv2_vit_study", "run", study)
    assert "interrupted  linear, fold 0, seed 0" in workplace.run("nnUNetv2_vit_study", "status", study)
    output = workplace.run("nnUNetv2_vit_study", "run", study, "--workers", 2)
    assert "killed: 2 of 2 runs finished" in output
    assert {name: outcome(workplace, f"killed_{name}") for name in alone} == alone
    log = (workplace.results / DATASET / "study_killed" / "nnUNetPlans_killed_linear__fold_0.log").read_text()
    assert log.count("Training done") == 1

    before = workplace.files()
    assert "2 of 2 runs finished" in workplace.run("nnUNetv2_vit_study", "run", study)
    study.write_text(study.read_text().replace("train.num_epochs=2", "train.num_epochs=3"))
    result = workplace.attempt("nnUNetv2_vit_study", "run", study)
    assert result.returncode == 2 and "changed since it was started (then → now):" in result.stderr
    assert "train.num_epochs: 2 → 3" in result.stderr
    assert workplace.files() == before  # finished runs are left alone


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_on_slurm_with_one_job_requeued_it_gives_the_same_numbers(workplace, alone, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as folder, slurm_cluster(Path(folder)) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        study = study_file(workplace, "cluster")
        run = ("nnUNetv2_vit_study", "run", study, "--on", "slurm", "--cpus", 1, "--time", 10, "--partition", "main")
        assert "2 jobs submitted" in workplace.run(*run, "--slurm", "array_parallelism=2")
        assert "0 jobs submitted" in workplace.run(*run)  # they are in the queue
        job = (workplace.results / DATASET / "study_cluster" / "nnUNetPlans_cluster_linear__fold_0.job").read_text()
        wait_until((fold_folder(workplace, "cluster_linear") / "checkpoint_best.pth").exists)
        scontrol("requeue", job)
        wait_until(lambda: job_state(job) == "PENDING")
        scontrol("update", f"JobId={job}", "StartTime=now")  # Slurm would wait for two minutes
        wait_until(lambda: not squeue())
    assert "cluster: 2 of 2 runs finished" in workplace.run("nnUNetv2_vit_study", "status", study)
    assert {name: outcome(workplace, f"cluster_{name}") for name in alone} == alone


def wait_until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, squeue()
        time.sleep(0.1)


def scontrol(*arguments: str) -> None:
    subprocess.run(["scontrol", *arguments], env=os.environ, check=True)


def job_state(job: str) -> str:
    return squeue("--jobs", job, "--format=%T").strip()


def squeue(*arguments: str) -> str:
    command = ["squeue", "--noheader", "--array", *arguments]
    return subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True).stdout
