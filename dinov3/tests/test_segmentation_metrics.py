"""Metrics of segmentation."""

import math

import numpy as np
import pytest
import torch
from torch.multiprocessing import spawn

from dinov3.eval.segmentation.metrics import (
    PerImageSegmentationMetrics,
    SegmentationMetrics,
    calculate_segmentation_metrics,
)

LABELS = torch.tensor([[[0, 0, 1, 1], [0, 0, 255, 255]], [[0, 0, 0, 0], [0, 0, 0, 255]]])
PREDS = torch.tensor([[[0, 0, 1, 0], [0, 1, 1, 0]], [[0, 0, 0, 0], [0, 0, 2, 3]]])


def measured(kind: type[SegmentationMetrics], preds=PREDS, labels=LABELS, num_classes: int = 4, **options) -> dict:
    metrics = kind(num_classes, **options)
    metrics.update(preds, labels)
    return metrics.compute()


def check_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name].nan_to_num(-1), value.nan_to_num(-1)), name


def test_metrics_of_all_pixels():
    found = measured(SegmentationMetrics)  # right: 9 of 11 of class 0, 1 of 2 of class 1
    nan = pytest.approx([math.nan], nan_ok=True)
    assert found["confusion_matrix"].tolist() == [[9, 1, 1, 0], [1, 1, 0, 0], [0] * 4, [0] * 4]
    assert float(found["aAcc"]) == pytest.approx(10 / 13)
    assert found["IoU"][:3].tolist() == pytest.approx([9 / 12, 1 / 3, 0]) and found["IoU"][3:].tolist() == nan
    assert found["Dice"][:3].tolist() == pytest.approx([18 / 21, 1 / 2, 0])
    assert found["Precision"][:3].tolist() == pytest.approx([9 / 10, 1 / 2, 0])
    assert found["Recall"][:2].tolist() == pytest.approx([9 / 11, 1 / 2]) and found["Recall"][2:3].tolist() == nan
    assert float(found["mIoU"]) == pytest.approx((9 / 12 + 1 / 3) / 3)
    assert float(found["mRecall"]) == float(found["mAcc"]) == pytest.approx((9 / 11 + 1 / 2) / 2)
    assert torch.equal(found["Dice"][:3], found["Fscore"][:3])


def test_metrics_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    labels, preds = generator.integers(5, size=(2, 3, 20, 30))
    found = measured(SegmentationMetrics, torch.from_numpy(preds), torch.from_numpy(labels), 5, beta=2.0)
    flat = labels.ravel(), preds.ravel()
    precision, recall, fscore, _ = sklearn.precision_recall_fscore_support(*flat, beta=2.0)
    for name, expected in {"Precision": precision, "Recall": recall, "Fscore": fscore}.items():
        assert found[name].numpy() == pytest.approx(expected)
        assert float(found[f"m{name}"]) == pytest.approx(expected.mean())
    assert found["IoU"].numpy() == pytest.approx(sklearn.jaccard_score(*flat, average=None))
    assert found["Dice"].numpy() == pytest.approx(sklearn.f1_score(*flat, average=None))
    assert float(found["aAcc"]) == pytest.approx(sklearn.accuracy_score(*flat))


def test_scores_of_the_classes_are_taken_too():
    scores = torch.nn.functional.one_hot(PREDS, 4).movedim(-1, 1).float()
    for kind in (SegmentationMetrics, PerImageSegmentationMetrics):
        check_same(measured(kind, scores), measured(kind))


def test_per_image_metrics_are_averages_over_the_images_that_have_them():
    found = measured(PerImageSegmentationMetrics)
    images = [measured(SegmentationMetrics, PREDS[i : i + 1], LABELS[i : i + 1]) for i in range(2)]
    for name in ("mIoU", "aAcc", "mDice", "mPrecision", "mRecall"):
        assert float(found[name]) == pytest.approx(sum(float(image[name]) for image in images) / 2)
    assert float(found["IoU"][0]) == pytest.approx((3 / 5 + 6 / 7) / 2)
    assert float(found["IoU"][1]) == pytest.approx(1 / 3), "class 1 is in the first image only"
    assert found["IoU"][3].isnan()
    assert torch.equal(found["confusion_matrix"], measured(SegmentationMetrics)["confusion_matrix"])


@pytest.mark.parametrize("kind", [SegmentationMetrics, PerImageSegmentationMetrics])
def test_batches_add_up_and_a_reset_forgets(kind: type[SegmentationMetrics]):
    metrics, whole = kind(4), measured(kind)
    for _ in range(2):
        metrics.reset()
        for i in range(2):
            metrics.update(PREDS[i : i + 1], LABELS[i : i + 1])
        check_same(metrics.compute(), whole)


def test_without_any_label_nothing_is_known():
    found = calculate_segmentation_metrics(torch.zeros(3, 3))
    assert all(value.isnan().all() for value in found.values())


def test_labels_that_are_no_class_are_refused():
    with pytest.raises(ValueError, match=r"from 0 to 1, or 255 \(ignored\), found 2, 254"):
        measured(SegmentationMetrics, torch.zeros(1, 1, 4), torch.tensor([[[0, 2, 254, 255]]]), 2)


def measure_in_process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for kind in (SegmentationMetrics, PerImageSegmentationMetrics):
        metrics = kind(4)
        metrics.update(PREDS[rank : rank + 1], LABELS[rank : rank + 1])
        found[kind.__name__] = metrics.compute()
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.integration
def test_two_processes_have_the_metrics_of_all_their_images(tmp_path):
    spawn(measure_in_process, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for kind in (SegmentationMetrics, PerImageSegmentationMetrics):
            check_same(found[kind.__name__], measured(kind))
