"""What the command `nnUNetv2_m2f_draw` draws in colour images, and refuses; for others see the real data."""

import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image

from nnunetv2.run.draw_queries import run_draw_entry
from nnunetv2.run.image_slice import Slice, read_slice
from nnunetv2.run.query_figure import (
    GREY,
    Label,
    Query,
    confident_queries,
    foreground,
    load_model,
    most_confident,
    predict,
    tiles,
)

COMMAND, TRAINER = "nnUNetv2_m2f_draw", "nnUNetTrainer_m2f"
Refusal = Callable[..., str]


@pytest.fixture
def model(trained_m2f) -> Path:
    return trained_m2f.results / "Dataset900_DemoFundus" / f"{TRAINER}__nnUNetPlans_m2f_tiny__2d"


@pytest.fixture
def image(trained_m2f) -> Path:
    return sorted((trained_m2f.raw / "Dataset900_DemoFundus" / "imagesTr").iterdir())[0]


@pytest.fixture
def refusal(model: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Refusal:
    """Call the command with some arguments changed; return the one sentence that it ends in."""

    def run(*more: object, **changed: object) -> str:
        folder = tmp_path / "output"
        folder.mkdir(exist_ok=True)
        arguments = {"m": model, "f": 0, "i": image, "o": folder / "picture.png", **changed}
        line = [word for name, value in arguments.items() for word in (f"-{name}", value)]
        with pytest.raises(SystemExit, match="2"):
            run_draw_entry([str(word) for word in (*line, *more)])
        assert not list(folder.iterdir())
        return capsys.readouterr().err.strip().splitlines()[-1]

    return run


def test_a_picture_has_a_panel_for_each_query_and_one_for_the_truth(
    trained_m2f, model: Path, image: Path, tmp_path: Path
):
    def width(name: str, *options: object) -> int:
        trained_m2f.run(COMMAND, "-m", model, "-f", 0, "-i", image, "-o", tmp_path / name, *options)
        return matplotlib.image.imread(tmp_path / name).shape[1]

    truth = image.parents[1] / "labelsTr" / image.name.replace("_0000", "")
    three, four = width("3.png", "--queries", 1), width("4.png", "--queries", 1, "--truth", truth)
    assert four == pytest.approx(three * 4 / 3, rel=0.01)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.png", "4.png"]


def test_the_prediction_is_that_of_the_stock_command(trained_m2f, model: Path, image: Path, tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / image.name).symlink_to(image)
    trained = ("-d", 900, "-tr", TRAINER, "-p", "nnUNetPlans_m2f_tiny")
    trained_m2f.predict(tmp_path / "images", tmp_path / "predicted", *trained)
    (file,) = (tmp_path / "predicted").glob("*.png")
    predictor = load_model(model, "0", "checkpoint_final.pth", "cpu")
    sliced = read_slice(predictor, [image], None, None)
    rows, columns = np.nonzero(np.asarray(Image.open(image)).any(-1))  # nnU-Net crops the black border away
    seen = np.asarray(Image.open(file))[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert np.array_equal(predict(predictor, sliced.image), seen) and seen.any()
    assert [label.name for label in foreground(predictor)] == ["artery", "vein"]
    queries = confident_queries(predictor, sliced.image, 3)
    assert len(queries) == 3 and {query.name for query in queries} <= {"background", "artery", "vein"}


def test_the_surest_queries_come_first():
    classes = torch.tensor([[0.2, 0.7, 0.1], [0.05, 0.05, 0.9], [0.8, 0.1, 0.1]]).log()
    masks = torch.full((3, 2, 2), 0.0)
    found = most_confident(classes, masks, ["background", "vessel"], 2)
    assert [(query.number, query.name) for query in found] == [(2, "background"), (0, "vessel")]
    assert [query.score for query in found] == pytest.approx([0.8, 0.7]) and float(found[0].mask[0, 0]) == 0.5


def test_panels_show_labels_regions_and_what_is_ignored():
    truth, predicted = np.array([[0, 1, 2, 3]]), np.array([[1, 1, 2, 0]])
    labels = [Label("vessel", (1, 2), GREY), Label("vein", (2,), GREY), Label("ignore", (3,), GREY)]
    image = np.array([[[1.0, 2.0, 3.0, 5.0]]])
    query = Query(7, "vein", 0.5, np.zeros((1, 1)))
    panels = list(tiles(Slice("case", image, truth), labels, predicted, [query]))
    assert [panel.title for panel in panels] == ["image", "truth", "prediction", "query 7: vein 0.50"]
    assert panels[0].image.tolist() == [[0, 0.25, 0.5, 1]]
    shown = {panel.title: [mask[0].astype(int).tolist() for _, mask in panel.masks] for panel in panels[1:3]}
    assert shown["truth"] == [[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert shown["prediction"] == [[1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert len(list(tiles(Slice("case", image, None), labels, predicted, []))) == 2


def test_wrong_arguments(refusal: Refusal, trained_m2f, tmp_path: Path):
    assert "is not the folder of a trained model: it has no plans.json" in refusal(m=trained_m2f.root)
    assert "there is no fold 3 in" in refusal(f=3) and refusal(f=3).endswith("found: 0")
    told = refusal("-chk", "checkpoint_other.pth")
    assert "there is no checkpoint_other.pth" in told and "checkpoint_best.pth, checkpoint_final.pth" in told
    assert refusal(i=tmp_path / "x_0000.png").endswith(f"-i: no such file: {tmp_path / 'x_0000.png'}")
    assert "--slice must be from 0 to 0" in refusal("--slice", 1)
    assert "--queries must be at least 1, found 0" in refusal("--queries", 0)
    assert "--truth: no such file" in refusal("--truth", tmp_path / "y.png")
    assert refusal(o=tmp_path / "output" / "picture.jpg").endswith("-o must end in .png, found picture.jpg")
    assert "is not a file in an existing folder" in refusal(o=tmp_path / "no" / "picture.png")


def test_wrong_files(refusal: Refusal, image: Path, tmp_path: Path):
    text = tmp_path / "text_0000.webp"
    text.write_text("no image")
    assert "text_0000.webp must end in .png, as the images of the training do" in refusal(i=text)
    text = text.rename(tmp_path / "text_0000.png")
    assert "cannot read text_0000.png: " in refusal(i=text)
    pixels = matplotlib.image.imread(image)
    matplotlib.image.imsave(tmp_path / "truth.png", pixels[:-1])
    assert "--truth has the shape (1, 79, 80), the image (1, 80, 80)" in refusal("--truth", tmp_path / "truth.png")
    assert "-i: the model takes 3 channels, found 6" in refusal("-i", image, image)


def test_a_checkpoint_is_read_safely(refusal: Refusal, model: Path, tmp_path: Path):
    class Harm:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "harm",)

    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    torch.save({"network_weights": {"a": torch.zeros(1)}, "harm": Harm()}, copy / "fold_0" / "checkpoint_final.pth")
    assert "it holds Python objects" in refusal(m=copy)
    assert not (tmp_path / "harm").exists()
