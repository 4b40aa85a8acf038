"""Dense labels to targets of mask classification, and queries to dense logits."""

import math

import pytest
import torch

from dinov3.eval.segmentation.m2f_targets import queries_to_logits, semantic_to_m2f_targets

LABELS = torch.tensor([[0, 0, 2], [2, 255, 255]])


def test_labels_become_a_mask_per_class():
    for labels in (LABELS[None], LABELS[None, None]):
        (target,) = semantic_to_m2f_targets(labels)
        assert target["labels"].tolist() == [0, 2] and target["labels"].dtype == torch.int64
        assert target["masks"].dtype == torch.float32
        assert target["masks"].tolist() == [[[1, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0]]]
        assert target["valid"].tolist() == [[True, True, True], [True, False, False]]


def test_without_ignored_pixels_all_are_valid():
    (target,) = semantic_to_m2f_targets(LABELS[None], ignore_label=None)
    assert target["labels"].tolist() == [0, 2, 255] and "valid" not in target
    (target,) = semantic_to_m2f_targets(torch.zeros(1, 2, 2))
    assert target["labels"].tolist() == [0] and "valid" not in target


def test_nothing_labelled_gives_no_masks():
    (target,) = semantic_to_m2f_targets(torch.full((1, 1, 2, 3), -1.0), ignore_label=-1)
    assert target["masks"].shape == (0, 2, 3) and target["labels"].shape == (0,) and not target["valid"].any()


def test_regions_may_overlap_and_the_last_channel_may_be_what_is_ignored():
    regions = torch.tensor([[[1, 1, 0]], [[1, 0, 0]], [[0, 1, 1]]])[None]
    (target,) = semantic_to_m2f_targets(regions, ignore_label=None)
    assert target["labels"].tolist() == [0, 1, 2] and "valid" not in target
    assert torch.equal(target["masks"], regions[0].float())
    (target,) = semantic_to_m2f_targets(regions, ignore_label=-1)
    assert target["labels"].tolist() == [0, 1] and target["valid"].tolist() == [[True, False, False]]
    assert target["masks"].tolist() == [[[1, 0, 0]], [[1, 0, 0]]]


def test_other_shapes_are_told():
    with pytest.raises(ValueError, match="expected labels"):
        semantic_to_m2f_targets(torch.zeros(2))


def log_odds(p: float) -> float:
    return math.log(p / (1 - p))


def test_labels_from_queries_by_hand():
    # two queries: class scores 0.6, 0.2 (and 0.2 no object) and 0.1, 0.7 (0.2); masks 0.9 and 0.5
    classes = torch.tensor([[[0.6, 0.2, 0.2], [0.1, 0.7, 0.2]]]).log()
    masks = torch.tensor([log_odds(0.9), log_odds(0.5)]).view(1, 2, 1, 1)
    scores = torch.tensor([0.9 * 0.6 + 0.5 * 0.1, 0.9 * 0.2 + 0.5 * 0.7])
    probabilities = queries_to_logits(masks, classes).softmax(1).flatten()
    assert torch.allclose(probabilities, scores / scores.sum(), atol=1e-6)


def test_regions_from_queries_by_hand():
    classes = torch.tensor([[[0.6, 0.2, 0.2], [0.1, 0.7, 0.2]]]).log()
    masks = torch.tensor([log_odds(0.9), log_odds(0.5)]).view(1, 2, 1, 1)
    union = torch.tensor([1 - (1 - 0.9 * 0.6) * (1 - 0.5 * 0.1), 1 - (1 - 0.9 * 0.2) * (1 - 0.5 * 0.7)])
    probabilities = queries_to_logits(masks, classes, regions=True).sigmoid().flatten()
    assert torch.allclose(probabilities, union, atol=1e-6)


def test_scores_too_small_for_float32_keep_their_ratios():
    torch.manual_seed(0)
    masks, classes = torch.randn(1, 5, 4, 4) * 5 - 60, torch.randn(1, 5, 4) * 3
    classes[..., -1] += 35
    scores = torch.einsum("bqc,bqhw->bchw", classes.double().softmax(-1)[..., :-1], masks.double().sigmoid())
    expected = scores / scores.sum(1, keepdim=True)
    assert torch.allclose(queries_to_logits(masks, classes).softmax(1).double(), expected, atol=1e-5)


def test_labels_of_any_type():
    labels = torch.tensor([[[0, 1, 255, 255]]])
    for kind in (torch.uint8, torch.int32, torch.float32):
        (target,) = semantic_to_m2f_targets(labels.to(kind), ignore_label=-1)
        assert target["labels"].tolist() == [0, 1, 255] and "valid" not in target


def test_no_object_does_not_count():
    classes = torch.tensor([[[0.0, 0.0, 20.0]]])
    masks = torch.full((1, 1, 1, 1), 20.0)
    assert torch.allclose(queries_to_logits(masks, classes).softmax(1).flatten(), torch.tensor([0.5, 0.5]), atol=1e-6)
    assert float(queries_to_logits(masks, classes, regions=True).sigmoid().max()) < 1e-6


def test_certain_and_empty_pixels_stay_finite():
    classes = torch.tensor([[[200.0, -200.0, -200.0], [-200.0, -200.0, 200.0]]])
    masks = torch.tensor([[-200.0, 200.0], [-200.0, 200.0]]).view(1, 2, 1, 2)
    for regions in (False, True):
        logits = queries_to_logits(masks, classes, regions=regions)
        assert bool(logits.isfinite().all()) and logits.shape == (1, 2, 1, 2)
    assert logits[0, 0, 0].sigmoid().tolist() == pytest.approx([0, 1], abs=1e-6)


def test_masks_are_resized_before_the_sigmoid():
    masks = torch.tensor([-30.0, 10.0]).view(1, 1, 1, 2)
    classes = torch.tensor([[[20.0, 0.0]]])
    between = queries_to_logits(masks, classes, target_size=(1, 3), regions=True)[0, 0, 0, 1]
    assert float(between) == pytest.approx(-10, abs=1e-2)  # after the sigmoid it would be about 0
    assert queries_to_logits(masks.half(), classes.half()).dtype == torch.float32


@pytest.mark.parametrize("ignore_label", [255, None])
def test_one_label_map_gives_one_target(ignore_label: int | None):
    labels = torch.tensor([[0, 2, 2], [255, 0, 1]])
    target = semantic_to_m2f_targets(labels, ignore_label)
    (expected,) = semantic_to_m2f_targets(labels[None], ignore_label)
    assert isinstance(target, dict) and target.keys() == expected.keys()
    assert all(torch.equal(target[key], expected[key]) for key in expected)
    assert target["labels"].tolist() == ([0, 1, 2] if ignore_label else [0, 1, 2, 255])
    assert tuple(target["masks"].shape) == (len(target["labels"]), 2, 3)
