"""The figure of the data flow says what the network does."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from dinov3.eval.segmentation.models import build_segmentation_decoder
from dinov3.models.vision_transformer import DinoVisionTransformer

FOLDER = Path(__file__).resolve().parents[2] / "documentation"
H, W, C, D, K, F, Q = 64, 96, 3, 64, 5, 32, 7
SIZES = {"H": H, "W": W, "C": C, "D": D, "K": K, "F": F, "Q": Q, "T": H * W // 256, "N": 21 * H * W // 1024}


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield import_module("generate_segmentor")
    sys.modules.pop("generate_segmentor")


def expected_shape(text: str) -> tuple[int, ...]:
    """Sizes of `Q × H/4 × W/4`."""
    return tuple(int(eval(size, SIZES)) for size in text.replace("/", "//").split(" × "))  # the text is our own


def test_the_figure_is_the_one_that_the_script_writes(script: ModuleType):
    assert script.FIGURE.read_text(encoding="utf-8") == script.svg(script.mask2former()), "run `make docs`"


def test_the_shapes_are_those_of_the_network(script: ModuleType):
    vit = DinoVisionTransformer(embed_dim=D, depth=4, num_heads=2)
    model = build_segmentation_decoder(vit, decoder_type="m2f", hidden_dim=F, num_classes=K, num_queries=Q).eval()
    shapes: dict[str, tuple[int, ...]] = {"image": (C, H, W)}

    def remember(name: str, output: Tensor) -> None:
        if isinstance(output, Tensor):
            shapes[name] = tuple(output.shape[1:])

    for name, module in model.named_modules():
        module.register_forward_hook(lambda _module, _inputs, output, name=name: remember(name, output))
    with torch.no_grad():
        output = model(torch.rand(1, C, H, W))
    shapes["pred_masks"] = tuple(output["pred_masks"].shape[1:])
    prefix, channels = shapes["segmentation_model.0.backbone.norm"]
    shapes["segmentation_model.0.backbone.norm:patches"] = (prefix - 1, channels)
    for box in script.mask2former().boxes.values():
        assert shapes[box.source] == expected_shape(box.shape), box.title
