"""Probabilities of whole images, tiles and views."""

import pytest
import torch
import torch.nn.functional as F
from test_segmentors import segmentor
from torch import Tensor, nn

from dinov3.eval.segmentation.inference import (
    accumulation_device,
    make_inference,
    resize_probabilities,
    tile_corners,
)


class PixelModel(nn.Module):
    """Classifies every pixel by itself, so that tiles of any size agree; notes the sizes of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def predict(self, inputs: Tensor, rescale_to: tuple[int, int]) -> Tensor:
        self.seen.append(tuple(inputs.shape))
        logits = torch.cat([inputs, inputs[:, :1] * inputs[:, 1:2]], dim=1)
        return F.interpolate(logits, rescale_to, mode="bilinear", align_corners=False)


class ColumnModel(nn.Module):
    """Prefers class 0 left of the middle of what it sees and class 1 right of it."""

    def predict(self, inputs: Tensor, rescale_to: tuple[int, int]) -> Tensor:
        columns = torch.linspace(1, -1, rescale_to[1]).expand(len(inputs), rescale_to[0], -1)
        return torch.stack([columns, -columns], dim=1)


def images(height: int = 40, width: int = 56, number: int = 2) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(number, 3, height, width)


@pytest.mark.parametrize("decoder_type", ["linear", "m2f"])
def test_slide_over_an_image_of_the_crop_size_is_whole(decoder_type: str):
    model = segmentor(decoder_type).eval()
    x = images(64, 96)
    whole = make_inference(x, model, "whole", rescale_to=(70, 100))
    slide = make_inference(x, model, "slide", rescale_to=(70, 100), crop_size=(64, 96), stride=(40, 40))
    assert whole.shape == (2, 3, 70, 100) and whole.dtype == torch.float32
    assert torch.allclose(whole, slide, rtol=0, atol=1e-5)
    assert torch.allclose(whole.sum(1), torch.ones(2, 70, 100), atol=1e-5)


@pytest.mark.parametrize("decoder_type", ["linear", "m2f"])
def test_whole_inference_agrees_with_predict(decoder_type: str):
    model = segmentor(decoder_type).eval()
    x = images(64, 96)
    output = model.predict(x, rescale_to=(64, 96))
    found = make_inference(x, model)
    if decoder_type == "linear":
        expected = output.softmax(1)
    else:
        scores = torch.einsum(
            "bqc,bqhw->bchw", output["pred_logits"].softmax(-1)[..., :-1], output["pred_masks"].sigmoid()
        )
        expected = scores / scores.sum(1, keepdim=True)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 56), (16, 30), (17, 16), (8, 50)])
@pytest.mark.parametrize("tile_batch_size", [1, 3])
def test_tiles_of_a_model_of_pixels_give_the_whole(size: tuple[int, int], tile_batch_size: int):
    x, model = images(*size), PixelModel()
    slide = make_inference(x, model, "slide", crop_size=16, stride=11, tile_batch_size=tile_batch_size)
    assert all(side <= 16 for shape in model.seen for side in shape[-2:])
    assert max(shape[0] for shape in model.seen) <= 2 * tile_batch_size
    assert torch.allclose(slide, make_inference(x, model), rtol=0, atol=1e-5)


def test_overlapping_tiles_are_averaged():
    found = make_inference(images(4, 12), ColumnModel(), "slide", crop_size=8, stride=4)
    tile = torch.stack([torch.linspace(1, -1, 8), -torch.linspace(1, -1, 8)]).softmax(0)
    assert torch.allclose(found[0, :, 0, :4], tile[:, :4])
    assert torch.allclose(found[0, :, 0, 4:8], (tile[:, 4:] + tile[:, :4]) / 2)
    assert torch.allclose(found[0, :, 0, 8:], tile[:, 4:])


def test_tiles_cover_everything_and_end_with_the_image():
    assert list(tile_corners(1024, 512, 341)) == [0, 341, 512]
    assert list(tile_corners(853, 512, 341)) == [0, 341]
    assert list(tile_corners(512, 512, 341)) == list(tile_corners(100, 512, 341)) == [0]


def test_the_mirrored_view_is_mirrored_back():
    x = images()
    model = PixelModel()
    assert torch.allclose(make_inference(x, model, apply_horizontal_flip=True), make_inference(x, model), atol=1e-6)
    assert make_inference(x, ColumnModel(), apply_horizontal_flip=True).sub(0.5).abs().max() < 1e-6


def test_views_are_averaged_in_the_size_that_is_asked_for():
    first, second = images(), images(20, 28)
    model = PixelModel()
    found = make_inference([first, second], model, rescale_to=(30, 42))
    views = [make_inference(view, model, rescale_to=(30, 42)) for view in (first, second)]
    assert torch.allclose(found, sum(views) / 2, atol=1e-6)
    assert make_inference([first, second], model).shape == (2, 4, 40, 56)


def test_probabilities_are_resized_as_logits():
    logits = 5 * torch.randn(1, 4, 8, 8)
    found = resize_probabilities(logits.softmax(1), (20, 24))
    expected = F.interpolate(logits, (20, 24), mode="bilinear", align_corners=False).softmax(1)
    assert torch.allclose(found, expected, atol=1e-5)
    certain = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    found = resize_probabilities(certain.repeat(1, 1, 4, 4), (9, 9))
    assert torch.allclose(found, certain.expand(1, 2, 9, 9), atol=1e-30)


def test_averages_go_to_the_cpu_where_a_gpu_has_no_room(monkeypatch):
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 10_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 900)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 500)
    assert accumulation_device(cuda, 500) == cuda and accumulation_device(cuda, 501) == cpu
    assert accumulation_device(cpu, 10**15) == cpu


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_result_does_not_depend_on_where_it_is_averaged(monkeypatch):
    x = images().cuda()
    expected = make_inference(x, PixelModel(), "slide", crop_size=16)
    assert expected.is_cuda
    monkeypatch.setattr("dinov3.eval.segmentation.inference.MEMORY_SHARE", 0)
    found = make_inference(x, PixelModel(), "slide", crop_size=16)
    assert found.device.type == "cpu" and torch.allclose(found, expected.cpu(), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inference_mode": "tiles"}, "one of whole, slide, found 'tiles'"),
        ({"inference_mode": "slide"}, "slide needs crop_size"),
        ({"inference_mode": "slide", "crop_size": 16, "stride": 17}, r"from 1 to crop_size \(16\), found 17"),
        ({"inference_mode": "slide", "crop_size": 16, "stride": 0}, "found 0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_inference(images(), PixelModel(), **options)
