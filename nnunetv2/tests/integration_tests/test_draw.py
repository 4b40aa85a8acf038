"""What the command `nnUNetv2_vit_draw` draws in colour images, and refuses; for others see the real data."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image

from nnunetv2.run.draw_command import create_parser, panels, run_draw_entry
from nnunetv2.run.image_slice import Slice, read_slice
from nnunetv2.run.model_views import (
    Prediction,
    Query,
    class_names,
    confident_queries,
    feature_pictures,
    load_model,
    most_confident,
    predict,
)
from nnunetv2.run.slice_figure import (
    GREY,
    Label,
    confidence_tiles,
    foreground,
    query_tiles,
    segmentation_tiles,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

COMMAND, FIRST_NAME, TRAINER = "nnUNetv2_vit_draw", "nnUNetv2_m2f_draw", "nnUNetTrainer_m2f"
STORED = Path(__file__).parents[1] / "stored_folds"
STORED_IMAGE = STORED / "image_0000.png"
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
    def width(command: str, name: str, *options: object) -> int:
        options = ("--queries", 1, *options)
        trained_m2f.run(command, "-m", model, "-f", 0, "-i", image, "-o", tmp_path / name, *options)
        return matplotlib.image.imread(tmp_path / name).shape[1]

    truth = image.parents[1] / "labelsTr" / image.name.replace("_0000", "")
    three = width(FIRST_NAME, "3.png", "--features", "none")
    four = width(COMMAND, "4.png", "--features", "none", "--truth", truth)
    assert four == pytest.approx(three * 4 / 3, rel=0.01) and width(COMMAND, "3.png") == four
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
    prediction = predict(predictor, sliced.image)
    assert np.array_equal(prediction.labels, seen) and seen.any()
    assert np.array_equal(prediction.probabilities.argmax(0), seen)
    assert [label.name for label in foreground(predictor)] == ["artery", "vein"]
    queries = confident_queries(predictor, sliced.image, 3)
    assert len(queries) == 3 and {query.name for query in queries} <= set(class_names(predictor))
    assert class_names(predictor) == ["background", "artery", "vein"]


def titles(model: Path, *options: str) -> list[str]:
    """What stands above the panels of a picture."""
    line = ["-m", str(model), "-f", "0", "-i", str(STORED_IMAGE), "-o", "picture.png", *options]
    predictor = load_model(model, "0", "checkpoint_final.pth", "cpu")
    sliced = read_slice(predictor, [STORED_IMAGE], None, None)
    return [panel.title for panel in panels(create_parser().parse_args(line), predictor, sliced, foreground(predictor))]


@pytest.mark.parametrize(("name", "blocks"), [("dpt", (0, 2, 3, 5)), ("dinounet", (0, 2, 3, 5)), ("segformer", (3,))])
def test_of_a_dense_decoder_the_confidence_is_drawn(name: str, blocks: tuple[int, ...]):
    image, prediction, confidence, *features = titles(STORED / name, "--features", "all" if len(blocks) > 1 else "last")
    assert (image, prediction) == ("image", "prediction") and re.fullmatch(r"confidence \(mean 0\.\d\d\)", confidence)
    assert [title.partition(" (")[0] for title in features] == [f"features, block {block}" for block in blocks]
    assert all(re.search(r"\(\d+% of variance\)", title) for title in features)


@pytest.mark.parametrize("network", ["m2f", "eomt", "pmt"])
def test_of_mask_classification_the_queries_are_drawn(network: str):
    told = titles(STORED / network, "--queries", "2")
    assert [title.split()[0] for title in told] == ["image", "prediction", "query", "query", "features,"]
    assert not [title for title in titles(STORED / network, "--features", "none") if title.startswith("features")]


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    """The folder of a U-Net of nnU-Net's own trainer, untrained."""
    stages, modules = 3, {"conv_op": "torch.nn.Conv2d", "norm_op": "torch.nn.InstanceNorm2d", "nonlin": "torch.nn.ReLU"}
    keywords = {"n_stages": stages, "features_per_stage": [4] * stages, "kernel_sizes": [[3, 3]] * stages, **modules}
    keywords |= {"strides": [[1, 1], [2, 2], [2, 2]], "n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1}
    network = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    plans = json.loads((STORED / "dpt" / "plans.json").read_text())
    architecture = {"network_class_name": network, "arch_kwargs": keywords, "_kw_requires_import": list(modules)}
    plans["configurations"]["2d"]["architecture"] = architecture
    weights = get_network_from_plans(network, keywords, list(modules), 3, 3).state_dict()
    folder = tmp_path / "unet"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    shutil.copy(STORED / "dpt" / "dataset.json", folder)
    kept = {"trainer_name": "nnUNetTrainer", "init_args": {"configuration": "2d"}}
    checkpoint = {"network_weights": weights, "inference_allowed_mirroring_axes": [0, 1], **kept}
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def test_of_nnunets_own_network_prediction_and_confidence_are_drawn(unet: Path, refusal: Refusal):
    assert [title.split()[0] for title in titles(unet)] == ["image", "prediction", "confidence"]
    told = refusal("--features", "all", m=unet, i=STORED_IMAGE)
    assert "--features: " in told and "holds a PlainConvUNet, which has no ViT: leave it out" in told
    plans = json.loads((unet / "plans.json").read_text())
    configuration = plans["configurations"]["2d"]
    keywords = configuration["architecture"]["arch_kwargs"]
    configuration["patch_size"] = [8, 64, 64]
    keywords |= {"conv_op": "torch.nn.Conv3d", "norm_op": "torch.nn.InstanceNorm3d", "kernel_sizes": [[1, 3, 3]] * 3}
    keywords["strides"] = [[1, 1, 1], [1, 2, 2], [1, 2, 2]]
    checkpoint = torch.load(unet / "fold_0" / "checkpoint_final.pth")
    required = configuration["architecture"]["_kw_requires_import"]
    volumes = get_network_from_plans(configuration["architecture"]["network_class_name"], keywords, required, 3, 3)
    torch.save({**checkpoint, "network_weights": volumes.state_dict()}, unet / "fold_0" / "checkpoint_final.pth")
    (unet / "plans.json").write_text(json.dumps(plans))
    assert "holds a model of patches [8, 64, 64]; slices are drawn of 2D models" in refusal(m=unet, i=STORED_IMAGE)


def test_the_features_are_those_of_the_vit_and_always_the_same():
    predictor = load_model(STORED / "dpt", "0", "checkpoint_final.pth", "cpu")
    image = read_slice(predictor, [STORED_IMAGE], None, None).image
    first, second = (list(feature_pictures(predictor, image[:, :70, :90], every_layer=True)) for _ in range(2))
    assert [view.block for view in first] == predictor.network.feature_indices
    for view, again in zip(first, second, strict=True):
        assert view.picture.shape == image[0, :70, :90].shape + (3,) and np.array_equal(view.picture, again.picture)
        patch = predictor.network.patch_size
        assert (view.picture[:patch, :patch] == view.picture[0, 0]).all() and len(np.unique(view.picture)) > 9


def test_the_confidence_is_the_probability_of_what_is_predicted():
    probabilities = np.array([[[0.5, 0.1]], [[0.3, 0.8]], [[0.2, 0.1]]], dtype=np.float32)
    (classes,) = confidence_tiles(Prediction(probabilities.argmax(0), probabilities), [])
    assert classes.image.tolist() == [[0.5, pytest.approx(0.8)]] and classes.lowest == pytest.approx(1 / 3)
    assert classes.title == "confidence (mean 0.65)"
    regions = list(confidence_tiles(Prediction(probabilities.argmax(0), probabilities[:2]), ["organ", "tumour"]))
    assert [tile.title for tile in regions] == ["confidence, organ (mean 0.70)", "confidence, tumour (mean 0.75)"]
    assert regions[0].image.ravel().tolist() == pytest.approx([0.5, 0.9]) and regions[0].lowest == 0.5


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
    panels = list(segmentation_tiles(Slice("case", image, truth), labels, predicted))
    assert [panel.title for panel in panels] == ["image", "truth", "prediction"]
    assert [panel.title for panel in query_tiles([query])] == ["query 7: vein 0.50"]
    assert panels[0].image.tolist() == [[0, 0.25, 0.5, 1]]
    shown = {panel.title: [mask[0].astype(int).tolist() for _, mask in panel.masks] for panel in panels[1:3]}
    assert shown["truth"] == [[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert shown["prediction"] == [[1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert len(list(segmentation_tiles(Slice("case", image, None), labels, predicted))) == 2


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
