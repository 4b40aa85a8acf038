"""The file of a study, and the runs that it stands for."""

from pathlib import Path

import pytest

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.schema import read_values
from nnunetv2.study.config import read_study
from nnunetv2.study.runs import expand

STUDY = """
name: av
dataset: 900
experiments:
  first: {config: upernet}
  second: {config: m2f, overrides: [model.backbone_size=base]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    (tmp_path / "preprocessed" / "Dataset900_Test").mkdir(parents=True)
    return tmp_path


def write(folder: Path, *lines: str) -> Path:
    file = folder / "study.yaml"
    folds = () if any(line.startswith("folds:") for line in lines) else ("folds: [0, 1]",)
    file.write_text(STUDY + "\n".join((*lines, *folds)))
    return file


def test_a_run_for_every_experiment_fold_seed_and_number_of_cases(folder: Path):
    (folder / "groups.csv").write_text("case,group\na,1\n")
    more = ("seeds: [0, 1]", "num_training_cases: [4, null]", "common: [train.num_epochs=3]", "groups: groups.csv")
    runs = expand(read_study(write(folder, *more, "device: cpu", "npz: true")))
    assert len(runs) == 2 * 2 * 2 * 2 and len({(run.folder, run.log) for run in runs}) == 16
    assert [run.experiment for run in runs[:2]] == ["first", "second"]
    run = next(r for r in runs if (r.experiment, r.fold, r.seed, r.num_training_cases) == ("second", "1", 1, 4))
    assert run.name == "second, fold 1, seed 1, 4 cases"
    assert run.plans_name == "nnUNetPlans_av_second_seed1_n4" and run.trainer == "nnUNetTrainer_m2f"
    results = folder / "results" / "Dataset900_Test"
    assert run.folder == results / "nnUNetTrainer_m2f__nnUNetPlans_av_second_seed1_n4__2d" / "fold_1"
    other = next(r for r in runs if r.num_training_cases is None)
    assert other.start[-1] == "train.num_training_cases=null"  # also where the experiment's file says a number
    overrides = ("train.num_epochs=3", "model.backbone_size=base", "train.seed=1", "train.num_training_cases=4")
    assert run.start[-5:] == (*overrides, f"train.training_groups='{folder}/groups.csv'")
    assert run.start[:5] == ("900", "2d", "1", "--config", "m2f") and "--npz" in run.start
    assert "--c" in run.resume and not {"--config", *overrides} & set(run.resume)


@pytest.mark.parametrize("name", ["eyes #2.csv", "eyes: left.csv", "patient's eyes.csv"])
def test_the_file_of_the_groups_may_have_any_name(folder: Path, name: str):
    (folder / name).write_text("case,group\na,1\n")
    (run, *_) = expand(read_study(write(folder, "num_training_cases: [4]", f'groups: "{name}"')))
    assert read_values(None, [run.start[-1]]) == {"train": {"training_groups": str(folder / name)}}


def test_one_seed_and_one_size_are_not_in_the_name(folder: Path):
    (run, *_) = expand(read_study(write(folder)))
    assert run.plans_name == "nnUNetPlans_av_first" and "train.seed=0" in run.start


def test_a_configuration_of_ones_own_stands_beside_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "own.yaml").write_text("base: upernet")
    file = write(folder, "  third: {config: own.yaml}")
    monkeypatch.chdir("/")
    assert read_study(file).experiments["third"]["config"] == str(folder / "own.yaml")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("fold: [0]",), "unknown key fold .*did you mean.*folds"),
        (("  third: {confg: upernet}",), "unknown key experiments.third.confg"),
        (("  third: {config: upernett}",), "configuration 'upernett' not found"),
        (("  third: upernet",), "experiments.third: a mapping with config and overrides, found 'upernet'"),
        (("  first: {config: dpt}",), "duplicate key first"),
        (("  a__b: {config: dpt}",), "experiment name 'a__b' is not allowed"),
        (("seeds: [0, 0]",), "seeds: 0 stands there twice"),
        (("seeds: []",), "seeds: .*at least 1 item"),
        (("common: [train.seed=3]",), "common: 'train.seed=3' is set by the study's own key seeds"),
        (("common: [train.patch_size=[64,64]]",), "stands in quotes, as in 'train.patch_size=\\[512,512\\]'"),
        (("baseline: none",), "baseline: allowed: first, second, found 'none'"),
        (("groups: missing.csv",), "groups: no such file: 'missing.csv'"),
        (("device: gpu",), "device: .*'cuda', 'cpu' or 'mps', found 'gpu'"),
        (("folds: [0, all]",), "folds: all stands alone, because it trains on the cases that the other folds validate"),
        (("nsd_tolerance: 0",), "nsd_tolerance: .*greater than 0, found 0"),
        (("nsd_tolerance: .inf",), "nsd_tolerance: .*finite number, found inf"),
    ],
)
def test_wrong_values_are_refused(folder: Path, lines: tuple[str, ...], message: str):
    with pytest.raises(ExperimentError, match=message):
        read_study(write(folder, *lines))


def test_all_problems_are_told_at_once(folder: Path):
    with pytest.raises(ExperimentError, match="2 problems:\nunknown key foldss .*\nbaseline: ") as error:
        read_study(write(folder, "foldss: 1", "baseline: none"))
    assert len(str(error.value).splitlines()) == 3


def test_what_must_be_given(folder: Path):
    (folder / "study.yaml").write_text("name: x")
    with pytest.raises(ExperimentError, match="dataset, experiments must be given"):
        read_study(folder / "study.yaml")
    with pytest.raises(ExperimentError, match="no such file"):
        read_study(folder / "other.yaml")


def test_runs_of_one_name_are_refused(folder: Path):
    file = write(folder, "  first_seed1: {config: dpt}", "seeds: [null, 1]")
    with pytest.raises(ExperimentError, match="both be called .*first_seed1__fold_0: first_seed1, fold 0; first, fold"):
        expand(read_study(file))
