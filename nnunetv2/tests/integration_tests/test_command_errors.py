"""What a user can get wrong on the command line: one sentence, exit code 2, nothing written."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunetv2.model.backbone import create_backbone

ID = "900"


def snapshot(place) -> dict[Path, float]:
    files = [p for folder in (place.preprocessed, place.results) for p in folder.rglob("*")]
    return {path: path.stat().st_mtime for path in files}


def last_line_of_refusal(place, *arguments: object) -> str:
    before = snapshot(place)
    result = place.attempt("nnUNetv2_train_vit", *arguments)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert snapshot(place) == before
    return result.stderr.strip().splitlines()[-1]


CONFIG = ("--config", "tiny.yaml", "-device", "cpu")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((ID, "2d", "0"), "a new training needs --config"),
        ((ID, "2d", "0", "--name", "x"), "a new training needs --config"),
        ((ID, "2d", "0", "--config", "nothing.yaml"), "configuration 'nothing.yaml' not found"),
        ((ID, "2d", "0", *CONFIG, "model.backbone=dinov4"), "unknown backbone 'dinov4'"),
        ((ID, "2d", "0", *CONFIG, "model.backbone_size=huge"), "dinov3 has no size 'huge'"),
        ((ID, "2d", "0", *CONFIG, "model.model_path=no.module"), "module 'no.module' not found"),
        ((ID, "2d", "0", *CONFIG, "train.epochs=3"), "unknown key train.epochs"),
        ((ID, "2d", "0", *CONFIG, "model.backbone=timm:resnet18"), "timm cannot build 'resnet18'"),
        ((ID, "2d", "0", *CONFIG, "lora.enabled=true", "lora.target_modules=[query]"), "match no layer"),
        ((ID, "2d", "0", *CONFIG, "model.pretrained=true", "model.backbone_size=small"), "model.pretrained=false"),
        ((ID, "2d", "0", *CONFIG, "--name", "a__b"), "experiment name 'a__b' is not allowed"),
        ((ID, "3d_fullres", "0", *CONFIG), "does not exist in the plans 'nnUNetPlans'"),
        (("901", "2d", "0", *CONFIG), "no data set matches '901'; existing: Dataset900_DemoFundus"),
        (("Dataset9_X", "2d", "0", *CONFIG), "no data set matches 'Dataset9_X'"),
        ((ID, "2d", "7", *CONFIG), "fold '7' is not in the split"),
        ((ID, "2d", "first", *CONFIG), "fold 'first' is not in the split"),
        ((ID, "2d", "0", *CONFIG, "-p", "nnUNetResEncUNetLPlans"), "plans 'nnUNetResEncUNetLPlans' not found"),
        ((ID, "2d", "0", *CONFIG, "-tr", "nnUNetTrainer"), "'nnUNetTrainer' is no trainer for experiments"),
        ((ID, "2d", "0", *CONFIG, "-tr", "nnUNetTrainer_no"), "'nnUNetTrainer_no' is no trainer for experiments"),
        ((ID, "2d", "0", "--name", "x", "--c", "train.seed=1"), "'train.seed=1' overrides nothing"),
        ((ID, "2d", "0", *CONFIG, "--c", "--val"), "--c and --val exclude each other"),
        ((ID, "2d", "0", *CONFIG, "--name", "never", "--c"), "plans 'nnUNetPlans_never' not found"),
        ((ID, "2d", "0", "--name", "never", "--c"), "plans 'nnUNetPlans_never' not found"),
        ((ID, "2d", "0", "--config", "tiny.yaml", "-device", "tpu"), "-device 'tpu' is unknown"),
        ((ID, "2d", "0", *CONFIG, "-num_gpus", "2"), "more than 1 needs cuda"),
        ((ID, "2d", "0", *CONFIG, "-pretrained_weights", "none.pth"), "no such file: 'none.pth'"),
        ((ID, "2d"), "the following arguments are required"),
    ],
)
def test_refusals(workplace, arguments: tuple, told: str):
    assert told in last_line_of_refusal(workplace, *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_where_there_is_none(workplace):
    assert "PyTorch finds 0 usable GPUs" in last_line_of_refusal(workplace, ID, "2d", "0", "--config", "tiny.yaml")


def test_a_weight_file_that_does_not_fit(workplace):
    path = workplace.root / "other.pth"
    torch.save({"weight": torch.zeros(1)}, path)
    message = last_line_of_refusal(workplace, ID, "2d", "0", *CONFIG, f"model.checkpoint_path={path}")
    assert "other.pth does not fit the backbone" in message


def test_going_on_needs_no_pretrained_weights(workplace):
    weights = workplace.root / "start.pth"
    torch.save(create_backbone("dinov3", "tiny")[0].state_dict(), weights)
    train = ("nnUNetv2_train_vit", ID, "2d", 0, *CONFIG, "--name", "weights", "train.num_epochs=1")
    option = f"model.checkpoint_path={weights}"
    workplace.run(*train, option)
    weights.unlink()
    workplace.run(*train, option, "--val")
    message = last_line_of_refusal(workplace, *train[1:], option, "--val", "train.seed=9")
    assert "to go on with it, give --name weights without --config" in message
    assert f"no such file: '{weights}'" in last_line_of_refusal(workplace, *train[1:], option, "train.seed=9")


def test_the_script_without_an_install():
    script = Path(__file__).resolve().parents[3] / "nnUNetv2_train_vit.py"
    result = subprocess.run([sys.executable, "-S", script, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "run `pip install .`" in result.stderr and "Traceback" not in result.stderr


def test_the_script_is_the_command(workplace):
    script = Path(__file__).resolve().parents[3] / "nnUNetv2_train_vit.py"
    result = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stdout == workplace.run("nnUNetv2_train_vit", "--help")


def test_not_preprocessed(workplace):
    folder = workplace.raw / "Dataset905_Raw"
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")
    try:
        message = last_line_of_refusal(workplace, "905", "2d", "0", *CONFIG)
    finally:
        (folder / "dataset.json").unlink()
        folder.rmdir()
    assert "Dataset905_Raw is not preprocessed" in message and "nnUNetv2_plan_and_preprocess -d 905 -c 2d" in message


def test_a_name_taken_by_another_experiment(trained):
    before = snapshot(trained)
    result = trained.attempt("nnUNetv2_train_vit", ID, "2d", 0, *CONFIG, "--name", "one", "train.num_epochs=9")
    assert result.returncode == 2 and "vit.train.num_epochs: 2 → 9" in result.stderr and snapshot(trained) == before
    assert "--name" in result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("flag", ["--c", "--val"])
def test_nothing_to_go_on_with(trained, flag: str):
    message = last_line_of_refusal(trained, ID, "2d", "1", "--name", "one", "-device", "cpu", flag)
    assert f"{flag}: no checkpoint_final.pth" in message


def test_plans_of_an_experiment_are_not_derived_from(trained):
    message = last_line_of_refusal(trained, ID, "2d", "0", *CONFIG, "-p", "nnUNetPlans_one")
    assert "these plans are an experiment's" in message


def test_folders_that_are_not_set(workplace, monkeypatch):
    variables = {k: v for k, v in workplace.variables().items() if k != "nnUNet_preprocessed"}
    monkeypatch.setattr(workplace, "variables", lambda: variables)
    assert "nnUNet_preprocessed is not set" in last_line_of_refusal(workplace, ID, "2d", "0", *CONFIG)
