"""Our EoMT is that of Hugging Face: with the same weights every layer says the same, and the loss is the same."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from published_decoders import BLOCKS, CLASSES, EOMT, POINTS, QUERIES, SHAPE, hugging_face_eomt
from torch import Tensor, nn

from dinov3.eval.segmentation.mask_classification_loss import MaskClassificationLoss
from dinov3.weights.fitting import fit_weights
from dinov3.weights.layouts import recognise_weights
from nnunetv2.model.eomt_names import split_eomt
from nnunetv2.model.model_eomt import EoMTSegmentationModel


def our_model(kind: str, cells: int) -> EoMTSegmentationModel:
    options = {"num_queries": QUERIES, "num_blocks": BLOCKS, "query_bias": True}
    model = EoMTSegmentationModel(kind, "tiny", CLASSES, **options)
    if kind == "dinov2":  # the tiny one has no registers
        model.backbone = timm.create_model(
            "vit_small_patch14_reg4_dinov2", num_classes=0, img_size=cells * 14, dynamic_img_size=True, **SHAPE
        )
    return model


def converted(state: dict[str, Tensor], ours: EoMTSegmentationModel) -> dict[str, Tensor]:
    """Their weights by our names."""
    aside = ("attn_mask_probs", "criterion.empty_weight")
    decoder, vit = split_eomt({name: value for name, value in state.items() if name not in aside})
    fit = fit_weights(recognise_weights(Path("eomt"), "", vit), ours.backbone)
    return {**decoder, **{f"backbone.{name}": value for name, value in fit.tensors.items()}}


def both(kind: str, cells: int) -> tuple[EoMTSegmentationModel, nn.Module, Tensor]:
    """Ours and theirs with the same weights, in training mode, and images."""
    torch.manual_seed(0)
    theirs, ours = hugging_face_eomt(kind, cells), our_model(kind, cells)
    found = converted(theirs.state_dict(), ours)
    # the mean and std of the input, and rotary periods, which theirs computes
    own = {name: value for name, value in ours.state_dict().items() if name.startswith("input_") or "periods" in name}
    ours.load_state_dict({**found, **own})
    side = cells * EOMT[kind][2]
    return ours.train(), theirs.train(), torch.randn(2, 3, side, side)


def their_layers(model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Mask and class logits of every layer, which the model keeps to itself."""
    layers, predict = [], model.predict

    def record(tokens: Tensor) -> tuple[Tensor, Tensor]:
        layers.append(predict(tokens))
        return layers[-1]

    monkeypatch.setattr(model, "predict", record)
    model(pixel_values=images)
    return layers


def check_close(found: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= share * float(expected.abs().max())


both_kinds = pytest.mark.parametrize("kind", EOMT)


@pytest.mark.parametrize("probabilities", [(1.0, 1.0), (0.0, 0.0), (0.5, 0.25)])
@pytest.mark.parametrize("cells", [4, 6])
@both_kinds
def test_masks_and_classes_of_every_layer(
    kind: str, cells: int, probabilities: tuple[float, float], monkeypatch: pytest.MonkeyPatch
):
    ours, theirs, images = both(kind, cells)
    theirs.attn_mask_probs.copy_(torch.tensor(probabilities))
    ours.set_mask_probabilities(probabilities)
    with torch.no_grad():
        torch.manual_seed(1)  # of the queries whose masks do not apply
        expected = their_layers(theirs, images, monkeypatch)
        torch.manual_seed(1)
        queries = ours(images)
    found = [*queries["aux_outputs"], queries]
    assert len(found) == len(expected) == BLOCKS + 1
    for layer, (masks, classes) in zip(found, expected, strict=True):
        check_close(layer["pred_masks"], masks)
        check_close(layer["pred_logits"], classes)
    hidden = [float((masks < 0).float().mean()) for masks, _ in expected]
    assert all(0.1 < share < 0.9 for share in hidden), hidden  # the masks have something to say


@both_kinds
def test_evaluation_mode_has_no_masks(kind: str):
    ours, theirs, images = both(kind, 4)
    theirs.attn_mask_probs.zero_()
    with torch.no_grad():
        expected, found = theirs.eval()(pixel_values=images), ours.eval().forward_queries(images)
        dense = ours(images)
    check_close(found["pred_masks"], expected.masks_queries_logits)
    check_close(found["pred_logits"], expected.class_queries_logits)
    assert torch.equal(dense, ours.dense_logits(found, images.shape[-2:]))


def spread(*shape: int, **_: Any) -> Tensor:
    """In place of random points: for any number of masks the same points."""
    points = torch.Generator().manual_seed(shape[-2])
    return torch.empty(shape[-2:]).uniform_(generator=points).expand(shape).contiguous()


@both_kinds
def test_the_whole_loss_and_its_gradient(kind: str, monkeypatch: pytest.MonkeyPatch):
    ours, theirs, images = both(kind, 4)
    side = images.shape[-1]
    masks = torch.zeros(2, side, side)
    masks[0, : side // 2], masks[1, side // 2 :, 10:] = 1, 1
    targets = [{"masks": masks, "labels": torch.tensor([0, 2])}, {"masks": masks[:1], "labels": torch.tensor([1])}]
    loss = MaskClassificationLoss(POINTS, 3.0, 0.75, 5.0, 5.0, 2.0, CLASSES, 0.1)
    monkeypatch.setattr(torch, "rand", spread)
    found = loss.loss_total(loss.of_all_layers(ours(images), targets))
    expected = theirs(
        pixel_values=images,
        mask_labels=[target["masks"] for target in targets],
        class_labels=[target["labels"] for target in targets],
    ).loss
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    found.backward()
    expected.backward()
    check_close(ours.decoder.q.weight.grad, theirs.query.weight.grad, 1e-4)
    check_close(ours.backbone.cls_token.grad, theirs.embeddings.cls_token.grad, 1e-4)
