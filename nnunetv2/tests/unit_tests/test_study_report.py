"""Reports on simulated folds: what is measured, left out, refused, cached and written."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_folds import DATASET, Simulation, simulate
from skimage.io import imread, imsave

from dinov3.errors import ExperimentError
from nnunetv2.run.compare_command import run_compare_entry
from nnunetv2.study.members import Comparison, Member
from nnunetv2.study.report.analysis import Analysis
from nnunetv2.study.report.cache import FILE_NAME
from nnunetv2.study.report.case_table import CaseTable, measure_all
from nnunetv2.study.report.costs import COSTS, cost_table, run_table, unequal_budgets
from nnunetv2.study.report.data import data_of
from nnunetv2.study.report.draw import draw_all
from nnunetv2.study.report.figures.style import lines_of
from nnunetv2.study.report.folders import comparison_of_folders
from nnunetv2.study.report.learning_curves import learning_curve
from nnunetv2.study.report.methods import methods, warnings
from nnunetv2.study.report.one_case import measure_case
from nnunetv2.study.report.output import check_output, complete_folder
from nnunetv2.study.report.page_tables import class_table, main_table
from nnunetv2.study.report.pictures import chosen_cases, image_files, pictures_of_class
from nnunetv2.study.report.selection import check_cases, comparable
from nnunetv2.study.report.tables import Cell, Table, interval, probability, significant, to_latex, to_markdown

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[Simulation]:
    before = {variable: os.environ.get(variable) for variable in VARIABLES}
    simulation = Simulation(tmp_path, {"unet": 0.4, "upernet": 0.2}, folds=2, cases=4, side=32, probabilities=True)
    simulate(simulation)
    yield simulation
    for variable, value in before.items():
        if value is None:
            del os.environ[variable]
        else:
            os.environ[variable] = value


def comparison_of(simulation: Simulation) -> Comparison:
    members = [
        Member(experiment, str(fold), seed, size, simulation.fold_folder(experiment, fold, seed, size))
        for experiment in simulation.experiments
        for fold in range(simulation.folds)
        for seed in simulation.seeds
        for size in simulation.sizes
    ]
    return Comparison("a_name", DATASET, "2d", members, "unet", None, [1], 1.0, [])


class InProcess:
    """Stands in for the pool of processes, which would load everything again for milliseconds of work."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future: Future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_: object) -> None: ...


@pytest.fixture
def table(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> CaseTable:
    monkeypatch.setattr("nnunetv2.study.report.case_table.ProcessPoolExecutor", InProcess)
    comparison = comparison_of(simulation)
    return measure_all(comparison, data_of(comparison))


def test_dice_is_that_of_nnunet(simulation: Simulation, table: CaseTable) -> None:
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    for row in table.rows.itertuples():
        folder = simulation.fold_folder(row.experiment, int(row.fold))
        truth = simulation.root / "preprocessed" / DATASET / "gt_segmentations" / f"{row.case}.png"
        prediction = folder / "validation" / f"{row.case}.png"
        expected = compute_metrics(str(truth), str(prediction), NaturalImage2DIO(), [1, 2])["metrics"]
        metrics = expected[{"artery": 1, "vein": 2}[row[table.rows.columns.get_loc("class") + 1]]]
        assert row.dice == pytest.approx(metrics["Dice"]) and row.iou == pytest.approx(metrics["IoU"])
        assert (row.predicted_pixels, row.reference_pixels) == (metrics["n_pred"], metrics["n_ref"])
    assert len(table.rows) == 2 * 4 * 2
    tubular = table.rows.set_index("class")["cldice"]
    assert tubular.loc["artery"].notna().all() and tubular.loc["vein"].isna().all()
    assert table.rows["brier"].between(0, 1).all()
    assert table.bins["unet", None, "vein"][0].sum() == 4 * 32**2


def test_ignored_pixels_count_for_nothing(simulation: Simulation, tmp_path: Path) -> None:
    data = replace(data_of(comparison_of(simulation)), ignore_label=3)
    truth = np.zeros((4, 4), np.uint8)
    truth[0], truth[1] = 1, 3
    predicted = np.zeros((4, 4), np.uint8)
    predicted[:2] = 1
    imsave(data.truth_file("case"), truth, check_contrast=False)
    imsave(tmp_path / "case.png", predicted, check_contrast=False)
    (classes,) = measure_case(data, "case", [tmp_path / "case.png"])
    assert classes["artery"]["dice"] == 1 and classes["artery"]["hd95"] == 0
    assert np.isnan(classes["vein"]["dice"])


def test_cache_follows_the_files(simulation: Simulation, table: CaseTable, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = comparison_of(simulation)
    measured: list[str] = []

    def counted(data, case, predictions):
        measured.extend(f"{path.parent.parent.parent.name}/{case}" for path in predictions)
        return measure_case(data, case, predictions)

    monkeypatch.setattr("nnunetv2.study.report.case_table.measure_case", counted)
    again = measure_all(comparison, data_of(comparison))
    assert measured == []
    pd.testing.assert_frame_equal(again.rows, table.rows)
    changed = comparison.members[0].folder / "validation" / f"{simulation.case(0)}.png"
    imsave(changed, np.zeros_like(imread(changed)), check_contrast=False)
    after = measure_all(comparison, data_of(comparison)).rows
    assert measured == [f"{changed.parent.parent.parent.name}/{simulation.case(0)}"]
    chosen = (after["experiment"] == "unet") & (after["case"] == simulation.case(0))
    assert (after.loc[chosen, "dice"] == 0).all()
    (comparison.members[1].folder / FILE_NAME).write_text("{half a fi")
    assert len(measure_all(comparison, data_of(comparison)).rows) == len(after)
    assert len(measured) == 3  # the two cases of the damaged file


def test_mean_of_the_classes_and_of_the_seeds(table: CaseTable, simulation: Simulation) -> None:
    analysis = Analysis(comparison_of(simulation), table)
    assert analysis.classes == ["mean of the classes", "artery", "vein"]
    mean, artery, vein = (analysis.values(name) for name in analysis.classes)
    pd.testing.assert_frame_equal(mean, (artery + vein) / 2)
    rows = table.rows.assign(seed=0)
    other = rows.assign(seed=1, dice=rows["dice"] + 0.2)
    doubled = Analysis(comparison_of(simulation), replace(table, rows=pd.concat([rows, other])))
    pd.testing.assert_frame_equal(doubled.values("vein"), vein + 0.1)


def test_differences_to_the_baseline_have_their_sign(table: CaseTable, simulation: Simulation) -> None:
    values = Analysis(comparison_of(simulation), table).values("vein")
    expected = (values["upernet"] - values["unet"]).mean()
    for baseline, other, sign in (("unet", "upernet", 1), ("upernet", "unet", -1)):
        analysis = Analysis(replace(comparison_of(simulation), baseline=baseline), table)
        row = analysis.to_baseline("vein").loc[other]
        assert row["difference"] == pytest.approx(sign * expected)
        assert row["low"] <= row["difference"] <= row["high"]
        assert np.isnan(row["p_holm"])  # four cases


def test_only_what_every_experiment_has_is_compared(simulation: Simulation) -> None:
    comparison = comparison_of(simulation)
    (simulation.fold_folder("upernet", 1) / "validation" / "summary.json").unlink()
    kept = comparable(replace(comparison, missing=["m2f, fold 0: failed."]))
    assert [(member.experiment, member.fold) for member in kept.members] == [("unet", "0"), ("upernet", "0")]
    assert kept.missing[:2] == ["m2f, fold 0: failed.", "upernet, fold 1: not finished."]
    assert "unet, fold 1" in kept.missing[2]
    (simulation.fold_folder("upernet", 0) / "validation" / "summary.json").unlink()
    alone = comparable(comparison)
    assert {member.experiment for member in alone.members} == {"unet"}
    with pytest.raises(ExperimentError, match="the baseline 'upernet' has no finished run"):
        comparable(replace(comparison, baseline="upernet"))
    shutil.rmtree(simulation.root / "results")
    with pytest.raises(ExperimentError, match="no finished run"):
        comparable(comparison)


def test_different_cases_are_refused(simulation: Simulation) -> None:
    comparison = comparison_of(simulation)
    validation = simulation.fold_folder("upernet", 0) / "validation"
    (validation / "image_000.png").rename(validation / "other.png")
    with pytest.raises(ExperimentError, match=r"upernet, fold 0 were validated on different cases: 'image_000'"):
        check_cases(comparison, ".png")
    with pytest.raises(ExperimentError, match="the case 'image_000' has no group"):
        check_cases(replace(comparison, groups={"image_001": "a"}), ".png")


def test_damaged_prediction_is_named(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunetv2.study.report.case_table.ProcessPoolExecutor", InProcess)
    comparison = comparison_of(simulation)
    path = simulation.fold_folder("unet", 0) / "validation" / "image_000.png"
    path.write_bytes(b"no image")
    with pytest.raises(ExperimentError, match=f"cannot read {re.escape(str(path))}"):
        measure_all(comparison, data_of(comparison))
    imsave(path, np.zeros((5, 5), np.uint8), check_contrast=False)
    with pytest.raises(ExperimentError, match=r"has the shape \(5, 5\), its truth \(32, 32\)"):
        measure_all(comparison, data_of(comparison))
    path.write_bytes(b"another prediction")
    monkeypatch.setattr("nnunetv2.study.report.case_table.measure_case", killed)
    with pytest.raises(ExperimentError, match=r"a process that measures the cases was killed.* --processes \d+;"):
        measure_all(comparison, data_of(comparison), 3)


def killed(*_: object) -> None:
    raise BrokenProcessPool("a child process terminated abruptly")


@pytest.mark.parametrize("damaged", [True, False])
def test_image_that_cannot_be_shown_is_named(simulation: Simulation, table: CaseTable, damaged: bool) -> None:
    comparison = comparison_of(simulation)
    dice, images = Analysis(comparison, table).values("vein"), image_files(DATASET)
    data = data_of(comparison)
    (path,) = images[chosen_cases(dice)["worst"]]
    imsave(path, np.zeros((5, 5, 3), np.uint8), check_contrast=False)
    if damaged:
        path.write_bytes(b"no image")
    expected = f"cannot read the image {path}" if damaged else f"{path} has the shape (1, 5, 5), its truth (32, 32)"
    with pytest.raises(ExperimentError, match=re.escape(expected)):
        pictures_of_class(comparison, data, data.classes[1], dice, images)


@pytest.mark.integration
@pytest.mark.parametrize("empty", [("vein",), ("artery", "vein")])
def test_classes_that_are_empty_everywhere_are_reported_as_nan(
    simulation: Simulation, table: CaseTable, empty: tuple[str, ...]
) -> None:
    rows = table.rows.copy()
    metrics = rows.columns[rows.columns.get_loc("class") + 1 :]
    rows.loc[rows["class"].isin(empty), metrics] = np.nan
    comparison, data = comparison_of(simulation), data_of(comparison_of(simulation))
    analysis, runs = Analysis(comparison, replace(table, rows=rows)), run_table(comparison, ".png")
    of_vein = analysis.summary[analysis.summary["class"] == "vein"]
    assert of_vein["metric"].tolist() == ["dice", "dice"] and of_vein["mean"].isna().all()
    assert of_vein["n"].tolist() == [0, 0] and analysis.to_baseline("vein")["difference"].isna().all()
    main = main_table(analysis, cost_table(runs))
    assert [row[1].text == "–" for row in main.rows] == [len(empty) == 2] * 2
    assert all(len(row) == len(one.header) for one in (main, class_table(analysis, data)) for row in one.rows)
    names = ("mean of the classes", *empty) if len(empty) == 2 else empty
    assert f"Truth and predictions of {', '.join(names)} are empty in all cases" in warnings(analysis, runs)[0]
    drawn = {figure.name for figure in draw_all(analysis, data, cost_table(runs))}
    assert ("boxes_dice" in drawn, "cases_1" in drawn, "cases_2" in drawn) == (len(empty) == 1, len(empty) == 1, False)
    assert len(empty) == 2 or {"differences", "cost"} <= drawn
    assert "10,000 samples" in methods(analysis, data, runs)


def test_means_over_different_cases_are_told(simulation: Simulation, table: CaseTable) -> None:
    rows = table.rows.copy()
    metrics = rows.columns[rows.columns.get_loc("class") + 1 :]
    comparison = comparison_of(simulation)
    first, case = rows["experiment"].iloc[0], rows["case"].iloc[0]
    rows.loc[(rows["experiment"] == first) & (rows["case"] == case) & (rows["class"] == "vein"), metrics] = np.nan
    analysis, runs = Analysis(comparison, replace(table, rows=rows)), run_table(comparison, ".png")
    number = rows["case"].nunique()
    expected = f"over different numbers of cases (vein {number - 1} to {number}): where the truth is empty"
    assert any(expected in sentence for sentence in warnings(analysis, runs))
    equal = Analysis(comparison, table)
    assert not any("different numbers of cases" in sentence for sentence in warnings(equal, runs))


def test_learning_curve_of_a_resumed_training(tmp_path: Path) -> None:
    stamp = "2026-01-01 00:00:00.000000: "
    first = ["Epoch 0", "train_loss 0.5", "Pseudo dice [np.float32(0.2), nan]", "Epoch 1", "train_loss 9.0"]
    second = ["Epoch 1", "train_loss -0.25", "val_loss 1e-01", "Pseudo dice [0.5, 0.7]", "predicting 7"]
    (tmp_path / "training_log_2026_1_9_00_00_00.txt").write_text("\n".join(stamp + line for line in first))
    (tmp_path / "training_log_2026_1_10_00_00_00.txt").write_text("\n".join(stamp + line for line in second))
    curve = learning_curve(tmp_path)
    assert curve["training loss"].tolist() == [0.5, -0.25]
    assert curve["pseudo Dice"].tolist() == pytest.approx([0.2, 0.6])
    assert curve["validation loss"].tolist()[1] == 0.1
    assert len(learning_curve(tmp_path / "none")) == 0


@pytest.mark.integration
def test_learning_curves_of_all_numbers_of_training_cases(simulation: Simulation, table: CaseTable) -> None:
    rows = pd.concat([table.rows.assign(num_training_cases=size) for size in (2, None)])
    comparison = comparison_of(simulation)
    members = [replace(member, num_training_cases=size) for member in comparison.members for size in (2, None)]
    analysis = Analysis(
        replace(comparison, members=members),
        CaseTable(rows.astype({"num_training_cases": "Int64"}), {}),
    )
    figures = {one.name: one.figure for one in draw_all(analysis, data_of(comparison), pd.DataFrame(columns=[*COSTS]))}
    axes = figures["learning_curves"].axes
    assert [panel.get_title() for panel in axes[::3]] == [
        "pseudo Dice, 2 training cases",
        "pseudo Dice, all training cases",
    ]
    assert [len(panel.get_lines()) for panel in axes] == [2 * (2 + 1)] * 6  # experiments × (folds + mean)


def test_experiments_look_different() -> None:
    looks = lines_of([str(number) for number in range(32)])
    assert len({tuple(look.values()) for look in looks.values()}) == 32


def test_costs_add_up_and_unequal_budgets_are_named(simulation: Simulation) -> None:
    runs = run_table(comparison_of(simulation), ".png")
    costs = cost_table(runs)
    assert costs.loc["unet", "gpu_hours"] == pytest.approx(2 * 3000 / 3600)
    assert costs.loc["upernet", "seconds_per_case"] == pytest.approx(40 / 2)
    assert unequal_budgets(runs) == []
    plans = simulation.fold_folder("upernet", 0).parent / "plans.json"
    plans.write_text(plans.read_text().replace('"batch_size": 2', '"batch_size": 8'))
    (sentence,) = unequal_budgets(run_table(comparison_of(simulation), ".png"))
    assert sentence == "The batch size differs: 2 (unet); 8 (upernet)."
    (simulation.fold_folder("unet", 0) / "cost.json").unlink()
    assert np.isnan(cost_table(run_table(comparison_of(simulation), ".png")).loc["unet", "gpu_hours"])


def test_costs_are_named_by_the_device(simulation: Simulation) -> None:
    path = simulation.fold_folder("unet", 0) / "cost.json"
    cost = json.loads(path.read_text()) | {"peak_reserved_bytes": None, "peak_resident_bytes": 2**31}
    for fold in (0, 1):
        (simulation.fold_folder("unet", fold) / "cost.json").write_text(json.dumps(cost))
    costs = cost_table(run_table(comparison_of(simulation), ".png"))
    assert costs.loc["unet", ["hours", "peak_main_memory_gib"]].tolist() == pytest.approx([2 * 3000 / 3600, 2])
    assert costs.loc["upernet", ["gpu_hours", "peak_gpu_memory_gib"]].tolist() == pytest.approx([2 * 6000 / 3600, 7])
    assert costs.loc["unet", ["gpu_hours", "peak_gpu_memory_gib"]].isna().all()
    assert costs.loc["upernet", ["hours", "peak_main_memory_gib"]].isna().all()


def test_inherited_budgets_are_those_of_the_parent(simulation: Simulation) -> None:
    path = simulation.fold_folder("upernet", 0).parent / "plans.json"
    plans = json.loads(path.read_text())
    plans["configurations"] = {"parent": plans["configurations"]["2d"], "2d": {"inherits_from": "parent"}}
    path.write_text(json.dumps(plans))
    assert unequal_budgets(run_table(comparison_of(simulation), ".png")) == []


def test_numbers_of_training_cases_are_compared(simulation: Simulation) -> None:
    assert run_table(comparison_of(simulation), ".png")["training_cases"].tolist() == [2] * 4  # of the split
    for fold in (0, 1):
        log = next(simulation.fold_folder("upernet", fold).glob("training_log_*.txt"))
        lines = "This split has 2 training and 2 validation cases.", "Training on 1 of 2 training cases: image_001"
        log.write_text("".join(f"2026-01-01 00:00:00.0: {line} \n" for line in lines) + log.read_text())
    (sentence,) = unequal_budgets(run_table(comparison_of(simulation), ".png"))
    assert sentence == "The number of training cases differs: 2 (unet); 1 (upernet)."
    (simulation.root / "preprocessed" / DATASET / "splits_final.json").unlink()
    assert unequal_budgets(run_table(comparison_of(simulation), ".png")) == [
        "The number of training cases differs: unknown (unet); 1 (upernet)."
    ]


def test_tables() -> None:
    assert interval(0.5, -0.25, 0.75).text == "0.500 [−0.250, 0.750]"
    assert probability(0.0004) == Cell("< 0.001", 0.0004, True) and probability(0.2) == Cell("0.200", 0.2, False)
    assert [significant(value).text for value in (0.01234, 12.345, 12345.6, float("nan"))] == [
        "0.0123",
        "12.3",
        "12,346",
        "–",
    ]
    table = Table("t", "A_b", "50%", ["Name", "p"], [[Cell("x_1"), probability(0.0004)]])
    assert to_markdown(table).splitlines() == ["| Name | p |", "| --- | --- |", "| x_1 | **< 0.001** |"]
    latex = to_latex(table, "tab:50% t")
    assert r"\label{tab:50-t}" in latex
    assert r"\caption{A\_b. 50\%}" in latex and r"x\_1 & \textbf{$<$ 0.001} \\" in latex and r"\toprule" in latex


def test_a_link_to_a_report_stays_a_link(tmp_path: Path) -> None:
    for name in ("older", "link"):
        with complete_folder(tmp_path / name) as folder:
            (folder / "report.html").write_text(name)
        if name == "older":
            (tmp_path / "link").symlink_to("older")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "older" / "report.html").read_text() == "link"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "older"]


def test_output_that_is_no_report_is_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExperimentError, match="holds other files than a report, such as thesis.txt"):
        check_output(tmp_path)
    with pytest.raises(ExperimentError, match="is not a folder"):
        check_output(tmp_path / "thesis.txt")
    with pytest.raises(ExperimentError, match="cannot write"):
        check_output(tmp_path / "thesis.txt" / "report")
    check_output(tmp_path / "new" / "report")
    report = tmp_path / "older"
    for name in ("report.html", "cases.csv", "figures/ranks.pdf"):
        (report / name).parent.mkdir(parents=True, exist_ok=True)
        (report / name).touch()
    check_output(report)
    (report / "figures" / "notes.txt").touch()
    with pytest.raises(ExperimentError, match="such as figures/notes.txt"):
        check_output(report)
    shutil.rmtree(report)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "thesis.txt"]


def test_older_report_is_lost_only_when_the_new_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, rename = tmp_path / "report" / "report.html", Path.rename
    for content in ("first", "second"):
        with complete_folder(tmp_path / "report") as folder:
            (folder / page.name).write_text(content)
        assert page.read_text() == content

    def refused(path: Path, target: Path) -> Path:
        if target == tmp_path / "report" and (path / page.name).read_text() == "third":
            raise PermissionError(13, "Permission denied", str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with (
        pytest.raises(ExperimentError, match="cannot write .*report: Permission denied"),
        complete_folder(tmp_path / "report") as folder,
    ):
        (folder / page.name).write_text("third")
    assert page.read_text() == "second" and [path.name for path in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nnUNetPlans_none"], "no training 'nnUNetPlans_none' of Dataset950_Simulated, 2d; existing: nnUNetTrainer__"),
        (["nnUNetPlans_unet", "nnUNetPlans_unet"], "two experiments have the name 'nnUNetPlans_unet'"),
        (["nnUNetPlans_unet", "-f", "3"], "nnUNetTrainer__nnUNetPlans_unet__2d has no fold 3; existing: 0, 1"),
        (["nnUNetPlans_unet", "--baseline", "x"], "--baseline 'x' is none of the experiments"),
        (["nnUNetPlans_unet", "--tubular", "9"], "tubular: 9 is no label of Dataset950_Simulated; allowed: [1, 2]"),
        (["nnUNetPlans_unet", "--nsd-tolerance", "-1"], "--nsd-tolerance must be a number above 0, found -1.0"),
        (["nnUNetPlans_unet", "--nsd-tolerance", "0"], "--nsd-tolerance must be a number above 0, found 0.0"),
        (["nnUNetPlans_unet", "--processes", "0"], "--processes must be at least 1, found 0"),
        (["a=nnUNetPlans_none"], "no training 'nnUNetPlans_none' of Dataset950_Simulated, 2d; existing: nnUNetTrainer"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(
    simulation: Simulation, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        run_compare_entry(["-d", "950", "-c", "2d", "-o", str(simulation.root / "report"), *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert message in error and error.count("\n") == 1


def test_compare_takes_plans_and_folders(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple] = []
    monkeypatch.setattr("nnunetv2.study.report.write.write_report", lambda *arguments: written.append(arguments))
    models = ["unet=nnUNetPlans_unet", "nnUNetTrainer__nnUNetPlans_upernet__2d"]
    (simulation.root / "groups.csv").write_text("case,group\nimage_000,a\n")
    options = ["--baseline", "unet", "--tubular", "1", "--groups", str(simulation.root / "groups.csv")]
    run_compare_entry(["-d", "950", "-c", "2d", *models, *options, "-o", str(simulation.root / "report")])
    ((comparison, output, processes, held_out),) = written
    assert output == simulation.root / "report" and processes is None and held_out is None
    assert comparison.groups == {"image_000": "a"} and comparison.tubular == [1] and comparison.baseline == "unet"
    assert [(member.experiment, member.fold, member.folder) for member in comparison.members] == [
        (name, str(fold), simulation.fold_folder(experiment, fold))
        for name, experiment in (("unet", "unet"), ("nnUNetTrainer__nnUNetPlans_upernet__2d", "upernet"))
        for fold in (0, 1)
    ]


def test_missing_library_is_told_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = find_spec("pandas")
    monkeypatch.setattr(
        "nnunetv2.study.report.libraries.find_spec", lambda name: None if name in ("jinja2", "skimage") else there
    )
    with pytest.raises(SystemExit) as end:
        run_compare_entry(["-d", "none", "-c", "2d", "-o", "report", "x"])
    assert end.value.code == 2
    assert 'a report needs scikit-image, jinja2: pip install ".[study]"' in capsys.readouterr().err


def test_interrupted_compare_says_so(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nnunetv2.study.report.write.write_report", interrupted)
    with pytest.raises(SystemExit) as end:
        run_compare_entry(["-d", "950", "-c", "2d", "-o", str(simulation.root / "report"), "nnUNetPlans_unet"])
    assert end.value.code == 130
    assert capsys.readouterr().err.startswith("nnUNetv2_vit_compare: stopped;")


def test_names_of_plans_may_have_an_equals_sign(simulation: Simulation) -> None:
    model = simulation.fold_folder("unet", 0).parent
    model.rename(model.with_name("nnUNetTrainer__nnUNetPlans_lr=1__2d"))
    names = ["nnUNetPlans_lr=1", "a=nnUNetPlans_lr=1", "b=nnUNetTrainer__nnUNetPlans_lr=1__2d"]
    comparison = comparison_of_folders("950", "2d", names, folds=["0", "0"])
    assert [(member.experiment, member.fold) for member in comparison.members] == [
        ("nnUNetPlans_lr=1", "0"),
        ("a", "0"),
        ("b", "0"),
    ]
