"""Test cases in a report: predicted by stored folds and their ensembles, measured, kept, refused where one lacks."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from simulated_folds import DATASET, Simulation, simulate
from skimage.io import imread
from stored_folds import FOLDER

from dinov3.errors import ExperimentError
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.study.members import Comparison, Member
from nnunetv2.study.report.held_out import HeldOut
from nnunetv2.study.report.write import write_report

pytestmark = pytest.mark.integration
CASES = ("image_900", "image_901")


@dataclass(frozen=True)
class Trained:
    simulation: Simulation
    comparison: Comparison
    held_out: HeldOut

    def write(self, name: str = "report") -> Path:
        write_report(self.comparison, self.simulation.root / name, 1, self.held_out)
        return self.simulation.root / name


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[Trained]:
    """Two folds and two seeds of an experiment, whose weights differ, and two test cases."""
    variables = dict(os.environ)
    simulation = Simulation(tmp_path, {"dpt": 0.4}, folds=2, cases=4, seeds=(0, 1))
    simulate(simulation)
    members = []
    for number, (fold, seed) in enumerate((fold, seed) for fold in range(2) for seed in simulation.seeds):
        folder = simulation.fold_folder("dpt", fold, seed)
        for name in ("plans.json", "dataset.json"):
            shutil.copy(FOLDER / "dpt" / name, folder.parent / name)
        _store_other_weights(folder / "checkpoint_final.pth", number)
        members.append(Member("dpt", str(fold), seed, None, folder))
    raw = tmp_path / "raw" / DATASET
    for folder, suffix in (("images", "_0000"), ("labels", "")):
        (raw / f"{folder}Ts").mkdir()
        for index, case in enumerate(CASES):
            source = raw / f"{folder}Tr" / f"{simulation.case(index)}{suffix}.png"
            shutil.copy(source, raw / f"{folder}Ts" / f"{case}{suffix}.png")
    comparison = Comparison("a_name", DATASET, "2d", members, "dpt", None, [], 1.0, [])
    yield Trained(simulation, comparison, HeldOut(raw / "imagesTs", raw / "labelsTs", torch.device("cpu")))
    os.environ.clear()
    os.environ.update(variables)


def _store_other_weights(path: Path, seed: int) -> None:
    checkpoint = torch.load(FOLDER / "dpt" / "fold_0" / "checkpoint_final.pth", weights_only=False)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: tensor.float() for name, tensor in checkpoint["network_weights"].items()}
    for tensor in weights.values():
        tensor += 0.3 * tensor.abs().mean() * torch.randn(tensor.shape, generator=generator)
    # without the bias towards the background, so that every class is predicted somewhere
    weights["head.head.4.bias"] += torch.tensor([0.95, 1.03, 1.36])
    torch.save({**checkpoint, "network_weights": weights}, path)


def _predicted(member: Member, image: Path) -> np.ndarray:
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(member.folder.parent), (int(member.fold),))
    array, properties = predictor.plans_manager.image_reader_writer_class().read_images([str(image)])
    _, probabilities = predictor.predict_single_npy_array(array, properties, save_or_return_probabilities=True)
    return probabilities[:, 0]


def _metrics(probabilities: np.ndarray, truth: np.ndarray, label: int) -> tuple[float, float]:
    predicted, reference = probabilities.argmax(0) == label, truth == label
    dice = 2 * (predicted & reference).sum() / (predicted.sum() + reference.sum())
    return float(dice), float(((probabilities[label] - reference) ** 2).mean())


def test_members_and_ensemble_are_those_of_the_stock_predictor(trained: Trained, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nnunetv2.study.report.write.draw_all", lambda *_: iter(()))  # no figure has to do with it
    threads = lambda number, **_: ThreadPoolExecutor(number)  # noqa: E731 - processes would load everything again
    monkeypatch.setattr("nnunetv2.study.report.case_table.ProcessPoolExecutor", threads)
    report = trained.write()
    rows = pd.read_csv(report / "test_cases.csv").set_index(["experiment", "case", "class"])[["dice", "brier"]]
    for case in CASES:
        image, truth = trained.held_out.images / f"{case}_0000.png", imread(trained.held_out.labels / f"{case}.png")
        probabilities = [_predicted(member, image) for member in trained.comparison.members]
        for name, label in (("artery", 1), ("vein", 2)):
            single = np.array([_metrics(array, truth, label) for array in probabilities])
            assert len(set(single[:, 0])) > 1 and len(set(single[:, 1])) == 4
            assert rows.loc["dpt", case, name].to_numpy() == pytest.approx(single, rel=1e-5)
            together = rows.loc["dpt, ensemble of 4", case, name].to_numpy()
            assert together.ravel() == pytest.approx(
                np.array(_metrics(np.mean(probabilities, axis=0), truth, label)), rel=1e-5
            )
    page = (report / "report.html").read_text()
    assert '<section id="test">' in page and "dpt, ensemble of 4" in page and "over 2 test cases" in page

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("predicted again")

    monkeypatch.setattr(nnUNetPredictor, "predict_from_files_sequential", refuse)
    monkeypatch.setattr("nnunetv2.ensembling.ensemble.ensemble_folders", refuse)
    before = (report / "test_cases.csv").read_bytes()
    assert (trained.write() / "test_cases.csv").read_bytes() == before

    os.utime(trained.comparison.members[0].folder / "checkpoint_final.pth", (0, 0))
    with pytest.raises(ExperimentError, match="dpt, fold 0, seed 0 cannot predict the test cases: .*predicted again"):
        trained.write()
    assert (report / "test_cases.csv").read_bytes() == before


def test_what_lacks_is_told_before_anything_is_predicted(trained: Trained):
    results = trained.simulation.root / "results"
    before = sorted(results.rglob("*"))

    def message(**changes: object) -> str:
        held_out = replace(trained.held_out, **{key: value for key, value in changes.items() if key != "groups"})
        comparison = replace(trained.comparison, groups=changes.get("groups"))
        with pytest.raises(ExperimentError) as refused:
            write_report(comparison, trained.simulation.root / "report", 1, held_out)
        assert sorted(results.rglob("*")) == before and not (trained.simulation.root / "report").exists()
        return str(refused.value)

    nowhere, labels = trained.simulation.root / "nowhere", trained.held_out.labels
    assert message(images=nowhere) == f"--test: the folder {nowhere} does not exist"
    assert message(labels=nowhere) == f"--test: the folder {nowhere} does not exist"
    assert message(images=labels) == f"--test: there is no image *_0000.png in {labels}"
    training = {trained.simulation.case(case): "a" for case in range(4)}
    assert message(groups=training) == "groups: the test case 'image_900' has no group"
    (labels / "image_901.png").unlink()
    assert message() == f"--test: {labels / 'image_901.png'} does not exist"
    shutil.copy(labels / "image_900.png", labels / "image_901.png")
    shutil.copy(trained.held_out.images / "image_900_0000.png", trained.held_out.images / "image_900_0001.png")
    assert "image_901 has 1 channels" in message() and "but image_900 has 2" in message()
    (trained.held_out.images / "image_900_0001.png").unlink()
    checkpoint = trained.comparison.members[-1].folder / "checkpoint_final.pth"
    checkpoint.unlink()
    before = sorted(results.rglob("*"))
    assert message() == f"--test: {checkpoint} does not exist"
