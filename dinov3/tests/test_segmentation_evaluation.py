"""Evaluation of segmentors on images on disk."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from test_segmentors import segmentor
from torch import Tensor, nn

from dinov3.data.dataset import SegmentationDataset
from dinov3.data.pairs import ImagePair
from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.config import DecoderConfig, EvalConfig, SegmentationConfig
from dinov3.eval.segmentation.eval import evaluate_segmentation_model
from dinov3.eval.segmentation.metrics import calculate_segmentation_metrics
from dinov3.eval.segmentation.results import Evaluation
from dinov3.eval.segmentation.segmentor_checkpoint import load_segmentor
from dinov3.eval.segmentation.transforms import make_segmentation_eval_transforms

SIZES = [(64, 64), (48, 80), (64, 64), (70, 50), (64, 96)]


class RedModel(nn.Module):
    """Class 2 where the image is red, class 1 where it is green, class 0 where it is blue; notes what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def predict(self, inputs: Tensor, rescale_to: tuple[int, int]) -> Tensor:
        assert not self.training
        self.seen.append(tuple(inputs.shape))
        return nn.functional.interpolate(inputs.flip(1), rescale_to, mode="bilinear")


def pairs(folder: Path, sizes: list[tuple[int, int]] = SIZES, highest: int = 2) -> list[ImagePair]:
    """Write random images with random labels, some of them ignored; the last image has all classes."""
    random = np.random.default_rng(0)
    found = []
    for i, size in enumerate(sizes):
        pair = ImagePair(f"case_{i}", folder / f"case_{i}.png", folder / f"case_{i}_labels.png")
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(pair.image)
        labels = random.integers(0, (highest if i == len(sizes) - 1 else 1) + 1, size, dtype=np.uint8)
        labels[:5] = 255
        Image.fromarray(labels).save(pair.labels)
        found.append(pair)
    return found


def dataset(found: list[ImagePair], **options: Any) -> SegmentationDataset:
    return SegmentationDataset(found, make_segmentation_eval_transforms(**options), seed=0)


def config(num_classes: int = 3, **options: Any) -> SegmentationConfig:
    chosen = {"mode": "whole", "reduce_zero_label": False, **options}
    return SegmentationConfig(
        num_workers=0, decoder_head=DecoderConfig(num_classes=num_classes), eval=EvalConfig(**chosen)
    )


def evaluate(
    model: nn.Module, data: SegmentationDataset, settings: SegmentationConfig | None = None, **options: int
) -> Evaluation:
    return evaluate_segmentation_model(model, data, settings or config(), Accelerator(cpu=True), **options)


def counted(found: list[ImagePair]) -> Tensor:
    """The confusion matrix of each image, counted from the files as `RedModel` predicts."""
    matrices = []
    normalise = make_segmentation_eval_transforms()
    for pair in found:
        with Image.open(pair.image) as image, Image.open(pair.labels) as labels:
            (view,), expected = normalise(image, labels)
        matrix = torch.zeros(3, 3, dtype=torch.int64)
        for true, predicted in zip(expected.flatten().tolist(), view.flip(0).argmax(0).flatten().tolist(), strict=True):
            if true != 255:
                matrix[true, predicted] += 1
        matrices.append(matrix)
    return torch.stack(matrices)


def test_figures_are_those_of_the_counted_pixels(tmp_path: Path):
    found = pairs(tmp_path)
    result = evaluate(RedModel(), dataset(found))
    matrix = counted(found).sum(0)
    assert torch.equal(result.confusion_matrix, matrix)
    expected = calculate_segmentation_metrics(matrix)
    assert result.metrics == {name: float(value) for name, value in expected.items() if not value.dim()}
    assert result.per_class == {name: value.tolist() for name, value in expected.items() if value.dim()}
    assert result.num_images == 5 and result.seconds > 0 and result.examples == []


def test_metrics_of_single_images_are_averaged(tmp_path: Path):
    found = pairs(tmp_path)
    result = evaluate(RedModel(), dataset(found), config(compute_metric_per_image=True))
    expected = calculate_segmentation_metrics(counted(found))
    assert result.metrics["mIoU"] == pytest.approx(float(expected["mIoU"].mean()), abs=1e-12)
    assert result.per_class["Recall"] == pytest.approx(expected["Recall"].nanmean(0).tolist(), abs=1e-12)


def test_the_first_images_only(tmp_path: Path):
    found = pairs(tmp_path)
    result = evaluate(RedModel(), dataset(found), max_samples=2)
    assert torch.equal(result.confusion_matrix, counted(found[:2]).sum(0))
    assert result.num_images == 2
    assert result.per_class["Recall"][2] is None  # these images have no class 2
    assert json.loads(json.dumps(result.as_json(), allow_nan=False))["per_class"]["Recall"][2] is None


def test_what_is_no_metric_is_null(tmp_path: Path):
    (pair,) = pairs(tmp_path, [(64, 64)])
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(pair.labels)
    plain = evaluate(RedModel(), dataset([pair])).as_json()
    assert plain["metrics"]["aAcc"] is None and plain["metrics"]["mAcc"] is None
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_labels_that_are_no_class_name_the_file(tmp_path: Path):
    found = pairs(tmp_path, highest=7)
    with pytest.raises(ExperimentError) as error:
        evaluate(RedModel(), dataset(found))
    assert str(found[-1].labels) in str(error.value) and "from 0 to 2, or 255" in str(error.value)
    assert "reduce_zero_label" not in str(error.value)
    with pytest.raises(ExperimentError, match="reduce_zero_label"):
        evaluate(RedModel(), dataset(found, reduce_zero_label=True), config(reduce_zero_label=True))


def test_neither_modes_nor_random_numbers_are_changed(tmp_path: Path):
    model = segmentor("linear").train()
    model.segmentation_model[1].batchnorm_layer.eval()
    modes = [module.training for module in model.modules()]
    assert True in modes and False in modes
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    before = torch.get_rng_state()
    evaluate(model, dataset(pairs(tmp_path)), num_examples=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


@pytest.mark.parametrize("decoder_type", ["linear", "m2f"])
def test_tiles_of_the_size_of_the_image_are_the_whole_image(decoder_type: str, tmp_path: Path):
    data = dataset(pairs(tmp_path, [(64, 64), (64, 64)]))
    model = segmentor(decoder_type)
    whole = evaluate(model, data, config(mode="whole"))
    slide = evaluate(model, data, config(mode="slide", crop_size=64, stride=40))
    assert torch.equal(whole.confusion_matrix, slide.confusion_matrix) and whole.metrics == slide.metrics


def test_tiles_are_as_configured(tmp_path: Path):
    model = RedModel()
    evaluate(model, dataset(pairs(tmp_path, [(64, 96)])), config(mode="slide", crop_size=48, stride=40))
    assert model.seen == [(1, 3, 48, 48)] * 6


def test_views_and_their_mirror_images(tmp_path: Path):
    model = RedModel()
    data = dataset(pairs(tmp_path, [(64, 96)]), tta_ratios=(0.5, 1.0))
    evaluate(model, data, config(use_tta=True))
    assert model.seen == [(1, 3, 32, 48)] * 2 + [(1, 3, 64, 96)] * 2
    evaluate(RedModel(), data, config(use_tta=True), num_examples=1)


def test_examples_are_always_the_first_images(tmp_path: Path):
    found = pairs(tmp_path, [(64, 64), (20, 1024), (64, 64)])
    examples = evaluate(RedModel(), dataset(found), num_examples=2).examples
    assert [example.name for example in examples] == ["case_0", "case_1"]
    with Image.open(found[0].image) as image, Image.open(found[0].labels) as labels:
        assert np.array_equal(examples[0].image, np.array(image))
        assert np.array_equal(examples[0].labels, np.array(labels))
    expected = np.abs(examples[0].image.argmax(-1) - 2) == examples[0].prediction
    assert expected.mean() > 0.9  # but for the normalisation
    assert examples[1].image.shape == (10, 512, 3) and examples[1].image.dtype == np.uint8
    assert examples[1].labels.shape == examples[1].prediction.shape == (10, 512)
    assert set(np.unique(examples[1].labels)) <= {0, 1, 255}


@pytest.mark.parametrize("decoder_type", ["linear", "m2f"])
def test_a_saved_segmentor_gives_the_same_figures(decoder_type: str, tmp_path: Path):
    data = dataset(pairs(tmp_path))
    model = segmentor(decoder_type)
    logged = evaluate(model.train(), data)
    torch.save({"model": model.state_dict(), "step": 3}, tmp_path / "checkpoint_0000003.pth")
    other = segmentor(decoder_type)
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.1)
    assert evaluate(other, data).metrics != logged.metrics
    load_segmentor(other, tmp_path / "checkpoint_0000003.pth")
    again = evaluate(other, data)
    assert again.metrics == logged.metrics and torch.equal(again.confusion_matrix, logged.confusion_matrix)


def _evaluate_in_process(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(segmentor("linear"))
    assert accelerator.num_processes == 2 and isinstance(model, nn.parallel.DistributedDataParallel)
    found = [ImagePair(f"case_{i}", folder / f"case_{i}.png", folder / f"case_{i}_labels.png") for i in range(5)]
    for per_image in (False, True):
        settings = config(compute_metric_per_image=per_image)
        result = evaluate_segmentation_model(model, dataset(found), settings, accelerator, num_examples=4)
        names = [example.name for example in result.examples]
        content = {"figures": result.metrics, "matrix": result.confusion_matrix.tolist(), "examples": names}
        (folder / f"{per_image}_{rank}.json").write_text(json.dumps(content))
    accelerator.end_training()


@pytest.mark.integration
def test_two_processes_find_what_one_finds(tmp_path: Path):
    found = pairs(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_evaluate_in_process, (tmp_path, port), nprocs=2)
    for per_image in (False, True):
        single = evaluate(segmentor("linear"), dataset(found), config(compute_metric_per_image=per_image))
        for rank in range(2):
            content = json.loads((tmp_path / f"{per_image}_{rank}.json").read_text())
            assert content["matrix"] == single.confusion_matrix.tolist()
            assert content["figures"] == pytest.approx(single.metrics, abs=1e-12 if per_image else 0)
            # the examples of both processes, on the main process
            assert content["examples"] == ([f"case_{i}" for i in range(4)] if rank == 0 else [])
