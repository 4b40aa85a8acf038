"""Mask2Former as a network of nnU-Net: what it returns in which mode, for every backbone family."""

from typing import Any

import pytest
import torch
from networks import NETWORKS
from torch import nn

from dinov3.eval.segmentation.m2f_targets import queries_to_logits
from dinov3.eval.segmentation.mask_classification_loss import MaskClassificationLoss
from dinov3.eval.segmentation.models import build_segmentation_decoder
from nnunetv2.model.model_m2f import M2FSegmentationModel, create_segmentation_model

CLASSES, QUERIES, WIDTH = 3, 5, 32
SMALL = {"hidden_dim": WIDTH, "num_queries": QUERIES, "dim_feedforward": 32, "enc_layers": 1, "dec_layers": 3}
MODES = {"frozen": {}, "lora": {"use_lora": True}, "full": {"freeze_backbone": False}}
everywhere = pytest.mark.parametrize("family", NETWORKS)


def model_for(family: str = "dinov3", **options: Any) -> M2FSegmentationModel:
    torch.manual_seed(0)
    return create_segmentation_model(family, "tiny", CLASSES, **{**SMALL, **options})


@pytest.mark.parametrize(("family", "channels"), [("dinov3", 1), ("dinov3", 3), *((name, 4) for name in NETWORKS)])
def test_queries_in_training_and_dense_logits_in_evaluation(family: str, channels: int):
    model = model_for(family, input_channels=channels)
    for height, width in ((64, 64), (80, 112), (97, 131), (5, 3)):
        images = torch.rand(1, channels, height, width)  # a batch of one in training mode
        queries = model.train()(images)
        for output in (queries, *queries["aux_outputs"]):
            assert output["pred_masks"].shape == (1, QUERIES, -(-height // 4), -(-width // 4))
            assert output["pred_logits"].shape == (1, QUERIES, CLASSES + 1)
        assert len(queries["aux_outputs"]) == 3
        logits = model.eval()(images)
        assert logits.shape == (1, CLASSES, height, width) and logits.dtype == torch.float32


@pytest.mark.parametrize("regions", [False, True])
def test_the_activation_of_the_output_gives_the_probabilities(regions: bool):
    model = model_for(regions=regions).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        logits, queries = model(images), model.forward_queries(images)
    assert torch.equal(logits, queries_to_logits(queries["pred_masks"], queries["pred_logits"], (64, 96), regions))
    masks = nn.functional.interpolate(queries["pred_masks"], (64, 96), mode="bilinear").sigmoid()
    scores = queries["pred_logits"].softmax(-1)[..., :-1, None, None] * masks.unsqueeze(2)  # (B, Q, C, H, W)
    if regions:
        assert torch.allclose(logits.sigmoid(), 1 - (1 - scores).prod(1), atol=1e-5)
    else:
        assert torch.allclose(logits.softmax(1), scores.sum(1) / scores.sum((1, 2), keepdim=True)[:, 0], atol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (50, 75)])
@everywhere
def test_it_is_the_segmentor_of_dinov3(family: str, size: tuple[int, int]):
    model = model_for(family).eval()
    options = {key: SMALL[key] for key in ("dim_feedforward", "enc_layers", "dec_layers")}
    segmentor = build_segmentation_decoder(
        model_for(family).backbone, model.feature_indices, "m2f", WIDTH, CLASSES, num_queries=QUERIES, **options
    ).eval()
    adapter, head = segmentor.segmentation_model
    adapter.load_state_dict(model.adapter.state_dict(), strict=False)
    head.load_state_dict(model.head.state_dict())
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        ours, theirs = model.forward_queries(images), segmentor(images)
    for name in ("pred_masks", "pred_logits"):
        torch.testing.assert_close(ours[name], theirs[name])


def loss_of(model: M2FSegmentationModel, images: torch.Tensor) -> torch.Tensor:
    loss = MaskClassificationLoss(64, 3.0, 0.75, 5.0, 5.0, 2.0, CLASSES, 0.1)
    masks = torch.zeros(2, *images.shape[-2:])
    masks[0, :20], masks[1, 20:] = 1, 1
    targets = [{"masks": masks, "labels": torch.tensor([0, 2])}] * len(images)
    return loss.loss_total(loss.of_all_layers(model(images), targets))


@pytest.mark.parametrize("mode", MODES)
@everywhere
def test_what_trains_gets_a_gradient_and_nothing_else(family: str, mode: str):
    model = model_for(family, **MODES[mode]).train()
    assert model.mode == mode
    loss_of(model, torch.rand(2, 3, 64, 64)).backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not without  # distributed training would wait for them
    in_backbone = {n for n, p in model.backbone.named_parameters() if p.grad is not None}
    if mode == "frozen":
        assert not in_backbone and not any(m.training for m in model.backbone.modules())
    elif mode == "lora":
        assert in_backbone and all("lora_" in name for name in in_backbone)
    else:
        assert {name.partition(".")[0] for name in in_backbone} >= {"blocks", "patch_embed"}


def test_lora_can_be_merged():
    model = model_for(use_lora=True).double().eval()  # in float32 the two round differently
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = model.forward_queries(images)["pred_logits"]
        model.disable_lora()
        assert torch.allclose(model.forward_queries(images)["pred_logits"], before, atol=1e-5)
    assert model.mode == "frozen"


@everywhere
def test_saved_and_loaded_it_gives_the_same_logits(family: str):
    model, other = model_for(family, use_lora=True).eval(), model_for(family, use_lora=True).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
        other.load_state_dict(model.state_dict())
        images = torch.rand(1, 3, 50, 60)
        assert torch.equal(model(images), model(images)) and torch.equal(model(images), other(images))


def test_an_object_stays_in_place():
    """What the masks show in a corner of an odd-sized image is in that corner of the logits."""
    model = model_for().eval()
    masks = torch.full((1, QUERIES, 25, 33), -20.0)  # of an image of 97 × 131, at stride 4
    masks[0, 1, 20:, 28:] = 20
    classes = torch.full((1, QUERIES, CLASSES + 1), -20.0)
    classes[0, :, 0], classes[0, 1] = 0.0, torch.tensor([-20.0, -20.0, 20.0, -20.0])
    masks[0, 0] = 0.0  # background, half sure
    labels = model.dense_logits({"pred_masks": masks, "pred_logits": classes}, (97, 131)).argmax(1)[0]
    rows, columns = (labels == 2).nonzero().unbind(1)
    assert abs(int(rows.min()) - 97 * 20 / 25) <= 1 and abs(int(columns.min()) - 131 * 28 / 33) <= 1
    assert int(rows.max()) == 96 and int(columns.max()) == 130


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match="needs four feature layers"):
        model_for(out_layers=[0, 1])
    with pytest.raises(ValueError, match="unknown set of layers"):
        model_for(out_layers="FIVE_LAST")
    with pytest.raises(ValueError, match="hidden_dim must be a multiple of 32"):
        model_for(hidden_dim=40)
    with pytest.raises(ValueError, match=r"at least the number of classes \(3\), found 2"):
        model_for(num_queries=2)
    with pytest.raises(TypeError, match="hiden_dim"):
        model_for(hiden_dim=32)
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, H, W\)"):
        model_for()(torch.rand(1, 1, 64, 64))
    assert model_for(out_layers="FOUR_LAST").feature_indices == [0, 1, 2, 3]
