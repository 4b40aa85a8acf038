"""Segmentors are built and run without memory for weights, on PyTorch's `meta` device."""

import pytest
import torch
from golden_cases import flatten

from dinov3.eval.segmentation.models import FeatureDecoder, build_segmentation_decoder
from dinov3.hub.backbones import create_model

HEAD = {"hidden_dim": 64, "num_queries": 7, "dim_feedforward": 64}


def build(decoder_type: str, **options) -> FeatureDecoder:
    head = HEAD if decoder_type == "m2f" else {}
    with torch.device("meta"):
        vit = create_model("dinov3_vits16", pretrained=False)
    return build_segmentation_decoder(vit, decoder_type=decoder_type, num_classes=3, **head, **options)


def devices(model: FeatureDecoder) -> set[str]:
    return {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}


@pytest.mark.integration
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decoder_type", ["m2f", "linear"])
def test_a_segmentor_runs_on_meta(decoder_type: str, dtype: torch.dtype):
    model = build(decoder_type, autocast_dtype=dtype)
    assert devices(model) == {"meta"}
    for images in (torch.empty(2, 3, 64, 96, device="meta"), torch.empty(1, 3, 97, 131, device="meta")):
        for mode in (True, False):
            shapes = {key: tuple(value.shape) for key, value in flatten(model.train(mode)(images)).items()}
            quarter = tuple(-(-side // 4) for side in images.shape[-2:])
            patches = tuple(-(-side // 16) for side in images.shape[-2:])
            if decoder_type == "m2f":
                assert (len(images), 7, *quarter) in shapes.values() and (len(images), 7, 4) in shapes.values()
            else:
                assert set(shapes.values()) == {(len(images), 3, *patches)}
        predicted = flatten(model.predict(images, rescale_to=(50, 60))).values()
        assert any(tuple(value.shape[-2:]) == (50, 60) for value in predicted)


def test_under_the_device_it_is_the_same():
    with torch.device("meta"):
        inside = build("m2f")
    outside = build("m2f")
    assert devices(inside) == {"meta"}
    assert {n: p.shape for n, p in inside.named_parameters()} == {n: p.shape for n, p in outside.named_parameters()}


def test_the_largest_takes_no_memory():
    with torch.device("meta"):
        vit = create_model("dinov3_vit7b16", pretrained=False)
    model = build_segmentation_decoder(vit, decoder_type="m2f")
    # golden/README.md §3: the ViT-7B with Mask2Former, 2048 channels and 150 classes
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 927_420_375


def test_on_the_cpu_the_decoder_is_on_the_cpu():
    vit = create_model("dinov3_vits16", pretrained=False, embed_dim=64, depth=4, num_heads=2)
    assert devices(build_segmentation_decoder(vit, decoder_type="linear", num_classes=3)) == {"cpu"}
