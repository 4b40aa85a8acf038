"""The files that an evaluation writes: figures, confusion matrix and pictures."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_segmentors import segmentor
from training_cases import tiny_config, write_images

from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.config import DatasetConfig, DecoderConfig, EvalConfig, SegmentationConfig, values_of
from dinov3.eval.segmentation.eval import evaluate_checkpoint
from dinov3.eval.segmentation.figures import (
    GREY,
    YELLOW,
    class_colours,
    confusion_figure,
    draw_confusion_matrix,
    draw_examples,
    examples_figure,
)
from dinov3.eval.segmentation.models.from_config import segmentor_from_config
from dinov3.eval.segmentation.report import class_names_of, describe_evaluation, write_report
from dinov3.eval.segmentation.results import Evaluation, Example

NAMES = ["background", "vessel", 'naïve, "quoted"']
MATRIX = torch.tensor([[80, 20, 0], [10, 30, 0], [0, 0, 0]])


def evaluation() -> Evaluation:
    per_class = {"IoU": [0.7, 0.5, None], "Recall": [0.8, 0.75, None]}
    return Evaluation({"mIoU": 0.6, "mDice": math.nan}, per_class, MATRIX, 4, 1.23456, [])


def example(height: int = 40, width: int = 60, num_classes: int = 3) -> Example:
    random = np.random.default_rng(0)
    labels = random.integers(0, num_classes, (height, width))
    prediction = random.integers(0, num_classes, (height, width))
    labels[:5] = 255
    return Example("case", random.integers(0, 256, (height, width, 3), dtype=np.uint8), labels, prediction)


def test_results_and_the_table_of_the_confusion_matrix(tmp_path: Path):
    returned = write_report(evaluation(), tmp_path, NAMES, {"step": 3})
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results == returned
    assert results["metrics"] == {"mIoU": 0.6, "mDice": None}
    assert results["per_class"] == {
        "background": {"IoU": 0.7, "Recall": 0.8},
        "vessel": {"IoU": 0.5, "Recall": 0.75},
        NAMES[2]: {"IoU": None, "Recall": None},
    }
    assert results["num_images"] == 4 and results["seconds"] == 1.235 and results["step"] == 3
    with (tmp_path / "confusion_matrix.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["true class", *NAMES]
    assert [row[0] for row in rows[1:]] == NAMES
    assert [[int(value) for value in row[1:]] for row in rows[1:]] == MATRIX.tolist()
    with Image.open(tmp_path / "confusion_matrix.png") as picture:
        assert min(picture.size) > 300
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "confusion_matrix.csv",
        "confusion_matrix.png",
        "results.json",
    ]


def test_how_it_was_evaluated():
    options = EvalConfig(mode="slide", crop_size=64, stride=40, use_tta=True, compute_metric_per_image=True)
    model = segmentor("linear")
    found = describe_evaluation(model, SegmentationConfig(eval=options), "x.pth")
    assert found["evaluation"]["checkpoint"] == "x.pth" and found["evaluation"]["metrics_are"] == "means over images"
    assert [found["evaluation"][key] for key in ("mode", "crop_size", "stride")] == ["slide", 64, 40]
    assert found["evaluation"]["test_time_augmentation"] == {"ratios": [1.0], "mirrored": True}
    parameters = dict(model.named_parameters())
    head = sum(value.numel() for name, value in parameters.items() if name.startswith("segmentation_model.1."))
    assert found["parameters"] == {"total": sum(value.numel() for value in parameters.values()), "trainable": head}
    whole = describe_evaluation(model, SegmentationConfig(eval=EvalConfig(mode="whole")), "x.pth")["evaluation"]
    assert whole["crop_size"] is whole["stride"] is whole["test_time_augmentation"] is None


def test_names_of_classes():
    def names(given: list[str] | None) -> list[str]:
        datasets = DatasetConfig(class_names=given)
        return class_names_of(SegmentationConfig(datasets=datasets, decoder_head=DecoderConfig(num_classes=3)))

    assert names(None) == ["class 0", "class 1", "class 2"]
    assert names(NAMES) == NAMES


@pytest.mark.parametrize("number", [2, 9, 10, 20, 150])
def test_colours_of_classes_differ(number: int):
    names = ["background", *(f"class {i}" for i in range(1, number))]
    colours = np.concatenate([class_colours(names), [GREY]])
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[~np.eye(number + 1, dtype=bool)].min() > (0.2 if number <= 20 else 0.05)
    assert (colours[0] == 0).all() and colours.min() >= 0 and colours.max() <= 1


def test_panels_of_an_example():
    case = example()
    figure = examples_figure([case], NAMES, 3, 255)
    image, labels, prediction, errors = (np.array(axes.images[0].get_array()) for axes in figure.axes)
    colours, ignored = class_colours(NAMES), case.labels == 255
    assert np.array_equal(image, case.image)
    assert np.array_equal(labels[~ignored], colours[case.labels[~ignored]])
    assert (labels[ignored] == GREY).all() and (errors[ignored] == GREY).all()
    assert np.array_equal(prediction, colours[case.prediction])
    yellow = (errors == YELLOW).all(-1)
    assert np.array_equal(yellow, (case.labels != case.prediction) & ~ignored)
    share = yellow.sum() / (~ignored).sum()
    assert figure.axes[3].get_xlabel().startswith(f"{share:.1%}")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*NAMES, "ignored", "error"]


def test_a_legend_names_the_most_frequent_of_many_classes():
    case = example(num_classes=150)
    case.labels[5:20], case.prediction[5:20] = 149, 148
    texts = [
        text.get_text() for text in examples_figure([case], [str(i) for i in range(150)], 150, 255).legends[0].texts
    ]
    assert len(texts) == 22 and {"148", "149"} <= set(texts) and texts[-2:] == ["ignored", "error"]
    few = Example("few", case.image, np.zeros((40, 60), int), np.ones((40, 60), int))
    legend = examples_figure([few], [str(i) for i in range(150)], 150, 255).legends[0]
    assert [text.get_text() for text in legend.texts] == ["0", "1", "error"]


def test_pictures_are_written_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "examples.png"
    long = "a/very/long/name/of/an/image/that/does/not/fit/beside/its/panel"
    draw_examples([example(), example(90, 30)._replace(name=long), example(20, 200)], path, NAMES, 3, 255)
    with Image.open(path) as picture:
        assert picture.size[0] > 1000
    before = path.read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        draw_examples([example()], path, NAMES, 3, 255)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_confusion_matrix_as_a_picture(tmp_path: Path):
    panel = confusion_figure(MATRIX, NAMES).axes[0]
    shares = np.ma.filled(panel.images[0].get_array(), np.nan)
    assert np.allclose(shares[:2], [[0.8, 0.2, 0.0], [0.25, 0.75, 0.0]]) and np.isnan(shares[2]).all()
    assert [text.get_text() for text in panel.texts] == ["0.80", "0.20", "0.00", "0.25", "0.75", "0.00"]
    assert [text.get_text() for text in panel.get_yticklabels()] == NAMES and "grey" in panel.get_ylabel()
    many = [f"class {i}" for i in range(150)]
    assert not confusion_figure(torch.eye(150).long(), many).axes[0].texts
    draw_confusion_matrix(torch.eye(21).long(), tmp_path / "matrix.png", many[:21])
    assert (tmp_path / "matrix.png").is_file()


@pytest.fixture
def changes(tmp_path: Path) -> dict[str, Any]:
    """Images, and the configuration of an evaluation of a segmentor."""
    write_images(tmp_path)
    values: dict[str, Any] = {"output_dir": str(tmp_path / "evaluation"), "load_from": str(tmp_path / "trained.pth")}
    values |= {"eval_only": True, "datasets": {"class_names": ["a", "b", "c"]}, "eval": {"num_visualizations": 1}}
    torch.manual_seed(3)
    model = segmentor_from_config(tiny_config(tmp_path))
    torch.save({"model": model.state_dict()}, tmp_path / "trained.pth")
    return values


def test_the_evaluation_of_a_checkpoint(tmp_path: Path, changes: dict[str, Any]):
    results = evaluate_checkpoint(None, tiny_config(tmp_path, **changes))
    folder = tmp_path / "evaluation"
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["num_images"] == 2 and list(results["per_class"]) == ["a", "b", "c"]
    assert results["evaluation"]["checkpoint"] == changes["load_from"]
    written = {path.name for path in folder.iterdir()}
    assert written >= {"results.json", "confusion_matrix.csv", "confusion_matrix.png", "predictions.png", "config.yaml"}
    again = evaluate_checkpoint(None, tiny_config(tmp_path, **changes))
    assert again["metrics"] == results["metrics"] and again["per_class"] == results["per_class"]


def test_a_checkpoint_of_other_classes_is_not_evaluated(tmp_path: Path, changes: dict[str, Any]):
    changes["decoder_head"], changes["datasets"] = {"num_classes": 4}, {}
    with pytest.raises(ExperimentError, match="it has 3 classes, expected 4"):
        evaluate_checkpoint(None, tiny_config(tmp_path, **changes))
    assert not (tmp_path / "evaluation" / "results.json").exists()


def test_the_folder_of_a_training_is_not_for_its_evaluation(tmp_path: Path, changes: dict[str, Any]):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoint_final.pth").write_bytes((tmp_path / "trained.pth").read_bytes())
    (folder / "results.json").write_text("{}")
    (folder / "config.yaml").write_text(yaml.safe_dump(values_of(tiny_config(tmp_path))))
    with pytest.raises(ExperimentError, match="eval_only"):
        evaluate_checkpoint(None, tiny_config(tmp_path, **{**changes, "output_dir": str(folder)}))
    assert (folder / "results.json").read_text() == "{}"
