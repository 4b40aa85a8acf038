"""What a study refuses before anything starts: one sentence, exit code 2, nothing written."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

STUDY = """
name: {name}
dataset: 900
folds: {folds}
device: cpu
common: [model.pretrained=false, model.backbone_size=tiny]
experiments:
  linear: {{config: linear}}
"""


@pytest.fixture
def write(workplace):
    def call(*lines: str, name: str = "wrong", folds: str = "[0]") -> Path:
        file = workplace.root / f"{name}.yaml"
        file.write_text(STUDY.format(name=name, folds=folds) + "\n".join(lines))
        return file

    return call


@pytest.fixture
def message(workplace, refused):
    return lambda *arguments: refused(workplace, *arguments, command="nnUNetv2_vit_study")


@pytest.mark.parametrize(
    ("lines", "folds", "expected"),
    [
        (("  linear: {config: dpt}",), "[0]", "duplicate key linear"),
        (("fold: 0",), "[0]", "unknown key fold"),
        ((), "[0, 7]", "fold '7' is not in the split of Dataset900_DemoFundus; allowed: all, 0 to 4"),
        (("plans: other",), "[0]", "plans 'other' not found in"),
        (("num_training_cases: [99]",), "[0]", "train.num_training_cases is 99, but the fold has only 4"),
        (("tubular: [1, 9]",), "[0]", "tubular: 9 is no label of Dataset900_DemoFundus; allowed: [1, 2]"),
        (("num_gpus: 2",), "[0]", "-num_gpus 2 requires -device cuda"),
    ],
)
def test_wrong_studies(write, message, lines: tuple[str, ...], folds: str, expected: str):
    assert expected in message("run", write(*lines, folds=folds))


def test_groups_that_lack_validation_cases(workplace, write, message):
    groups = workplace.root / "groups.csv"
    groups.write_text("case,group\nnobody,a\n")
    assert "validation cases have no group, such as 'fundus_" in message("run", write(f"groups: {groups}"))


def test_all_wrong_experiments_are_named_before_anything_starts(workplace, write):
    typo = "  typo: {config: linear, overrides: [train.num_epoch=3]}"
    weights = "  weights: {config: dpt, overrides: [model.checkpoint_path=/none]}"
    before = workplace.files()
    result = workplace.attempt("nnUNetv2_vit_study", "run", write(typo, weights))
    assert result.returncode == 2 and workplace.files() == before
    first, second, third = result.stderr.strip().splitlines()[-3:]
    assert "the study 'wrong' has 2 problems" in first
    assert second.startswith("experiments.typo: linear: unknown key train.num_epoch ")
    assert third.startswith("experiments.weights: dpt: model.checkpoint_path: no such file: '/none'")


def test_fewer_cases_than_folds(workplace, make_workplace, write, refused):
    place = make_workplace("few")
    left_out = shutil.ignore_patterns("splits_final.json", "fundus_000*")
    shutil.copytree(workplace.preprocessed, place.preprocessed, ignore=left_out, dirs_exist_ok=True)
    told = refused(place, "run", write(), command="nnUNetv2_vit_study")
    assert "nnU-Net's split into 5 folds needs at least 5 cases, found 4: write a splits_final.json" in told


def test_too_little_room_for_the_checkpoints(write, message, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30, 2**20))
    assert "GiB, " in (text := message("run", write())) and "the checkpoints need" in text


def test_without_finished_runs_there_is_no_report(workplace, write, message):
    text = message("report", write(), "-o", workplace.root / "report")
    assert "no run of the study 'wrong' is finished" in text


def test_without_slurm_nothing_is_submitted(write, message, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    assert "--on slurm: no sbatch on this machine" in message("run", write(), "--on", "slurm")


def test_unknown_options_of_submitit(write, message):
    assert "takes KEY=VALUE, such as mem_gb=32, found 'mem'" in message(
        "run", write(), "--on", "slurm", "--slurm", "mem"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-num_gpus", "0"), "-num_gpus must be at least 1, found 0"),
        (("--on", "slurm", "--slurm", "mem=["), "--slurm mem: the value must be YAML, found '['"),
    ],
)
def test_wrong_values_of_options(write, message, options: tuple[str, ...], expected: str, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name, path=None: f"/usr/bin/{name}")
    assert expected in message("run", write(), *options)


def test_an_unwritable_folder(workplace, write, message):
    place = workplace.with_results("results_of_a_file")
    (place.results / "Dataset900_DemoFundus").write_text("a file")
    result = place.attempt("nnUNetv2_vit_study", "run", write())
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "Dataset900_DemoFundus" in result.stderr
