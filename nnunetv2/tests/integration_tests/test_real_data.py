"""The main job on a few cases of each real data set: photographs, microscopy, volumes read by slices, regions."""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunetv2.experiment.schema import packaged_configs

TRAINING_CASES = 5  # nnU-Net's five folds


class Case(NamedTuple):
    """A packaged configuration, shrunk, on a few cases of a data set."""

    config: str
    number: int
    dataset: str
    images: str  # the data set whose images are read
    labels: str
    options: tuple[str, ...]
    heads: int  # output channels: classes, or regions
    ignored: str = ""  # a label that is declared as nnU-Net's ignore label
    side: int = 0  # of what is cut out of the middle of the images; 0: nothing is cut
    daily: bool = False  # whether `make test` runs it too, and not `make test-nightly` only

    def __str__(self) -> str:
        size = f"-{self.side}" if self.side else ""
        return f"{self.config}-{self.dataset}{'-ignore' if self.ignored else ''}{size}"


PHOTOGRAPHS = ("train.patch_size=[512,512]", "train.batch_size=1")
MICROSCOPY = ("train.patch_size=[200,264]",)
SLICES = ("train.batch_size=4",)
SMALL_PATCHES = ("train.patch_size=[160,160]", "train.batch_size=2")
M2F = ("model.hidden_dim=32", "model.num_queries=8", "m2f_train.num_points=256")
QUERIES = ("model.decoder.num_queries=8", "m2f_train.num_points=256")
DINO_UNET = ("train.patch_size=null", "model.decoder.features_per_stage=[16,16,32,32]", "model.decoder.rank=32")
UNCERTAIN = "crossing_or_uncertain"
SIDE = 640  # four windows instead of thirty
CROPS, CROP_SIDE = ("train.patch_size=[160,160]", "train.batch_size=1"), 240  # four small windows, for every day
INPUT_NORM = "none, channels pass"
LESAV, NUCLEI, HIPPOCAMPUS = "Dataset101_LESAV", "Dataset102_NucleiDSB2018", "Dataset103_Hippocampus"
LESAV_AV, REGIONS = "Dataset111_LESAV_AV", "Dataset113_HippocampusRegions"
CASES = [
    Case(
        "upernet_test_dinov3",
        101,
        LESAV,
        LESAV,
        "labelsTr",
        (*CROPS, "model.decoder.hidden_size=32"),
        2,
        side=CROP_SIDE,
        daily=True,
    ),
    Case("upernet_test_dinov3", 101, LESAV, LESAV, "labelsTr", (*PHOTOGRAPHS, "model.decoder.hidden_size=32"), 2),
    Case("linear_test_dinov3", 102, NUCLEI, NUCLEI, "labelsTr", MICROSCOPY, 2, daily=True),
    Case(
        "dpt_test_dinov3",
        103,
        HIPPOCAMPUS,
        HIPPOCAMPUS,
        "labelsTr",
        (*SLICES, "model.decoder.fusion_hidden_size=32"),
        3,
        daily=True,
    ),
    Case(
        "unetr_test_dinov2",
        103,
        HIPPOCAMPUS,
        HIPPOCAMPUS,
        "labelsTr",
        (*SLICES, "model.decoder.decoder_channels=[32,16,16,8,8]"),
        3,
    ),
    Case("primus_test_dinov2", 103, HIPPOCAMPUS, HIPPOCAMPUS, "labelsTr", (*SLICES, "model.decoder.embed_dim=64"), 3),
    Case(
        "primus_multiscale_test_dinov3",
        111,
        LESAV_AV,
        LESAV,
        "labelsTr_av",
        (*PHOTOGRAPHS, "model.decoder.embed_dim=32"),
        4,
        side=SIDE,
    ),
    Case(
        "segformer_test_dinov2",
        111,
        LESAV_AV,
        LESAV,
        "labelsTr_av",
        (*CROPS, "model.decoder.decoder_hidden_size=32"),
        3,
        ignored=UNCERTAIN,
        side=CROP_SIDE,
        daily=True,
    ),
    Case("dinounet_test_dinov2", 103, HIPPOCAMPUS, HIPPOCAMPUS, "labelsTr", (*SLICES, *DINO_UNET), 3),
    Case("m2f_test_dinov3", 102, NUCLEI, NUCLEI, "labelsTr", (*M2F, *SMALL_PATCHES), 2, side=240),
    Case("m2f_test_dinov3", 103, HIPPOCAMPUS, HIPPOCAMPUS, "labelsTr", (*SLICES, *M2F), 3),
    Case("m2f_test_dinov3", 111, LESAV_AV, LESAV, "labelsTr_av", (*PHOTOGRAPHS, *M2F), 4, side=SIDE),
    Case("m2f_test_dinov3", 111, LESAV_AV, LESAV, "labelsTr_av", (*CROPS, *M2F), 3, UNCERTAIN, CROP_SIDE, daily=True),
    Case("m2f_test_dinov2", 113, REGIONS, HIPPOCAMPUS, "labelsTr", (*SLICES, *M2F, "lora.enabled=true"), 2, daily=True),
    Case("eomt_test_dinov3", 102, NUCLEI, NUCLEI, "labelsTr", (*QUERIES, *SMALL_PATCHES), 2, side=240, daily=True),
    Case("pmt_test_dinov3", 103, HIPPOCAMPUS, HIPPOCAMPUS, "labelsTr", (*SLICES, *QUERIES), 3, daily=True),
    Case("segformer_test_dinov3", 113, REGIONS, HIPPOCAMPUS, "labelsTr", (*SLICES, "lora.enabled=true"), 2, daily=True),
]
TINY = (
    "model.backbone_size=tiny",
    "model.pretrained=false",
    "train.num_epochs=2",
    "train.num_iterations_per_epoch=2",
    "train.num_val_iterations_per_epoch=1",
    "train.precision=float32",
)


def subset(case: Case, real_data: Path, raw: Path) -> Path:
    """Write a data set of a few of the real cases, or of parts of them; return the folder of its test image."""

    def provide(path: Path) -> Path:
        return cut(path, raw / case.dataset / path.parent.name / path.name, case.side) if case.side else path

    source = real_data / case.images
    description = json.loads((real_data / case.dataset / "dataset.json").read_text())
    ending = description["file_ending"]
    names = sorted(path.name.removesuffix(ending) for path in (source / case.labels).iterdir())
    chosen = names[:: max(1, len(names) // TRAINING_CASES)][:TRAINING_CASES]  # of all image sizes
    description["numTraining"] = len(chosen)
    if case.ignored:
        description["labels"]["ignore"] = description["labels"].pop(case.ignored)
    description["dataset"] = {
        name: {
            "images": [str(provide(source / "imagesTr" / f"{name}_0000{ending}"))],
            "label": str(provide(source / case.labels / f"{name}{ending}")),
        }
        for name in chosen
    }
    test = raw / case.dataset / "test"
    test.mkdir(parents=True)
    (raw / case.dataset / "dataset.json").write_text(json.dumps(description))
    image = provide(sorted((source / "imagesTs").iterdir())[0])
    (test / image.name).symlink_to(image)
    return test


def cut(source: Path, target: Path, side: int) -> Path:
    """Write the middle of an image, or of its labels."""
    image = Image.open(source)
    left, top = ((length - side) // 2 for length in image.size)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.crop((left, top, left + side, top + side)).save(target)
    return target


@pytest.fixture(scope="module")
def planned(real_data: Path, make_workplace: Callable) -> Callable:
    """Plan and preprocess each data set once, however many configurations train on it, each with results of its own."""

    @functools.cache
    def plan(dataset: Case) -> tuple:
        place = make_workplace(dataset.dataset)
        test = subset(dataset, real_data, place.raw)
        place.plan(str(dataset.number))
        return place, test

    def prepare(case: Case, folder: Path) -> tuple:
        place, test = plan(case._replace(config="", options=(), heads=0, daily=False))
        return place.with_results(str(folder / "results")), test

    return prepare


def parameters(chosen: Iterable[Case], *marks: pytest.MarkDecorator) -> list:
    """Each data set is planned by one worker, and different ones can run side by side."""
    return [pytest.param(case, marks=[*marks, pytest.mark.xdist_group(case.dataset)]) for case in chosen]


# In `make test` one of them is killed and resumed, in `make test-nightly` all of them.
INTERRUPTED = [case for case in CASES if case.config == "linear_test_dinov3"]
STRAIGHT = [case for case in CASES if case.daily and case not in INTERRUPTED]
NIGHTLY = [case for case in CASES if case not in INTERRUPTED]


@pytest.mark.parametrize("case", parameters(STRAIGHT), ids=str)
def test_train_and_predict(case: Case, real_data: Path, planned: Callable, tmp_path: Path):
    place, test = planned(case, tmp_path)
    place.run(*training(case), "--config", case.config, *TINY, *case.options)
    results = folder_of(case, place)
    place.predict(test, tmp_path / "predicted", *prediction(case))
    check_prediction(case, test, tmp_path / "predicted", results)
    check_drawing(case, real_data, place, results.parent, tmp_path)


@pytest.mark.parametrize("case", [*parameters(INTERRUPTED), *parameters(NIGHTLY, pytest.mark.nightly)], ids=str)
def test_train_resume_and_predict(case: Case, real_data: Path, planned: Callable, tmp_path: Path):
    """All of it as processes, the first one killed."""
    place, test = planned(case, tmp_path)
    results = folder_of(case, place)
    train = (*training(case), "--config", case.config, *TINY, *case.options)
    place.kill_once_there_is(results / "checkpoint_best.pth", *train)
    (results / "checkpoint_final.pth").unlink(missing_ok=True)  # if it was not killed before its end
    place.run_process(*training(case), "--name", case.config, "--c")
    options = ("-c", "2d", "-f", 0, "-device", "cpu", "-npp", 1, "-nps", 1)
    place.run_process("nnUNetv2_predict", "-i", test, "-o", tmp_path / "predicted", *options, *prediction(case))
    check_prediction(case, test, tmp_path / "predicted", results)
    check_drawing(case, real_data, place, results.parent, tmp_path)


def trainer_of(case: Case) -> str:
    return "nnUNetTrainer_m2f" if case.config.startswith(("m2f", "eomt", "pmt")) else "nnUNetTrainer_vit"


def folder_of(case: Case, place) -> Path:
    return place.results / case.dataset / f"{trainer_of(case)}__nnUNetPlans_{case.config}__2d" / "fold_0"


def training(case: Case) -> tuple[object, ...]:
    return "nnUNetv2_train_vit", case.number, "2d", 0, "-device", "cpu"


def prediction(case: Case) -> tuple[object, ...]:
    model = ("-d", case.number, "-tr", trainer_of(case), "-p", f"nnUNetPlans_{case.config}")
    return (*model, "--disable_tta", "--save_probabilities")


def check_prediction(case: Case, test: Path, output: Path, results: Path) -> None:
    """The files of the training and of the prediction are there and hold what they must."""
    assert (results / "checkpoint_final.pth").is_file()
    image = sitk.ReadImage(str(next(test.iterdir())))
    (path,) = (p for p in output.iterdir() if p.name.endswith((".png", ".nii.gz")))
    predicted = sitk.ReadImage(str(path))
    assert predicted.GetSize() == image.GetSize()
    labels = 3 if case.number == 113 else case.heads  # regions: two channels stand for three labels
    assert set(np.unique(sitk.GetArrayFromImage(predicted))) <= set(range(labels))
    probabilities = np.load(next(output.glob("*.npz")))["probabilities"]
    assert len(probabilities) == case.heads and np.isfinite(probabilities).all()
    if case.number != 113:  # regions overlap, so that theirs need not sum to one
        assert np.allclose(probabilities.sum(0), 1, atol=1e-3)
    assert json.loads((results / "validation" / "summary.json").read_text())["foreground_mean"]
    assert INPUT_NORM in next(results.glob("training_log_*.txt")).read_text()


def check_drawing(case: Case, real_data: Path, place, model: Path, output: Path) -> None:
    """Draw what a model makes of a training image and its truth, and of another slice of a volume."""
    if case.number not in (102, 113):
        return
    folder = place.raw / case.dataset if case.side else real_data / case.images
    label = sorted((folder / case.labels).iterdir())[1]
    ending = "".join(label.suffixes)
    image = folder / "imagesTr" / f"{label.name.removesuffix(ending)}_0000{ending}"
    draw = ("nnUNetv2_vit_draw", "-m", model, "-f", 0, "-i", image, "--truth", label)
    place.run(*draw, "-o", output / "middle.png")
    assert (output / "middle.png").stat().st_size > 10_000
    if ending == ".nii.gz":
        place.run(*draw, "-o", output / "other.png", "--slice", 12)
        assert (output / "other.png").read_bytes() != (output / "middle.png").read_bytes()


def test_every_decoder_is_trained_on_real_data():
    heads = {case.config.partition("_test_")[0] for case in CASES}
    assert heads == {name.partition("_test_")[0] for name in packaged_configs() if "_test_" in name}


def test_every_data_set_has_a_dense_decoder_and_a_mask_transformer_in_the_daily_tests():
    daily = {(case.images, trainer_of(case)) for case in CASES if case.daily}
    assert daily == {(case.images, trainer) for case in CASES for trainer in map(trainer_of, CASES)}
