"""Metrics per case on masks whose values were worked out by hand."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, gaussian_filter, label
from skimage.morphology import skeletonize

from nnunetv2.study.report.calibration import calibration_bins, expected_calibration_error
from nnunetv2.study.report.case_metrics import Mask, measure
from nnunetv2.study.report.classes import foreground_classes


def mask(rows: list[str], spacing: tuple[float, ...] = (1.0, 1.0)) -> Mask:
    return Mask(np.array([[character == "#" for character in row] for row in rows]), spacing)


def test_two_squares() -> None:
    # 4 pixels each, 2 in common
    reference = mask(["##..", "##..", "....", "...."])
    prediction = mask([".##.", ".##.", "....", "...."])
    metrics = measure(reference, prediction, False, 0.5)
    assert metrics["dice"] == pytest.approx(0.5)
    assert metrics["iou"] == pytest.approx(1 / 3)
    assert metrics["sensitivity"] == metrics["precision"] == pytest.approx(0.5)
    assert metrics["volume_error"] == 0
    # all pixels are surface; two of four coincide on either side, the others are 1 pixel apart
    assert metrics["nsd"] == pytest.approx(0.5)
    assert metrics["hd95"] == pytest.approx(1.0)
    assert "cldice" not in metrics


def test_distances_follow_the_spacing() -> None:
    reference = mask(["#....", ".....", "....."], (2.0, 0.5))
    prediction = mask([".....", ".....", "#...."], (2.0, 0.5))
    assert measure(reference, prediction, False, 3.9)["hd95"] == pytest.approx(4.0)
    assert measure(reference, prediction, False, 3.9)["nsd"] == 0
    assert measure(reference, prediction, False, 4.0)["nsd"] == 1


def test_one_empty_mask() -> None:
    full, empty = mask(["...", ".#.", "...", "..."]), mask(["..."] * 4)
    metrics = measure(full, empty, True, 1.0)
    assert metrics["dice"] == metrics["iou"] == metrics["sensitivity"] == metrics["nsd"] == metrics["cldice"] == 0
    assert metrics["volume_error"] == 1
    assert metrics["hd95"] == pytest.approx(5.0)  # the diagonal of 4 × 3
    assert metrics["betti0_error"] == 1
    assert np.isnan(metrics["precision"])
    metrics = measure(empty, full, True, 1.0)
    assert metrics["dice"] == metrics["precision"] == 0
    assert np.isnan(metrics["sensitivity"]) and np.isnan(metrics["volume_error"])


def test_two_empty_masks_are_undefined_as_in_nnunet() -> None:
    metrics = measure(mask(["..", ".."]), mask(["..", ".."]), True, 1.0)
    del metrics["reference_pixels"], metrics["predicted_pixels"]
    assert all(np.isnan(value) for value in metrics.values())


def test_centreline_and_components_of_a_broken_vessel() -> None:
    reference = mask(["........", "########", "........"])
    prediction = mask(["........", "###..###", "........"])
    metrics = measure(reference, prediction, True, 1.0)
    # all of the predicted centreline is true, 6 of 8 pixels of the true one are found
    assert metrics["cldice"] == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert metrics["betti0_error"] == 1


def test_pixels_that_touch_at_a_corner_are_one_component() -> None:
    assert mask(["#.", ".#"]).components == 1


@pytest.mark.parametrize(("shape", "part"), [((40, 50), np.s_[5:22, 30:50]), ((12, 20, 16), np.s_[0:9, 4:15, 3:12])])
def test_small_structures_are_measured_as_in_the_whole_image(shape: tuple[int, ...], part: tuple[slice, ...]) -> None:
    pixels, spacing = np.zeros(shape, bool), (3.0, 0.7, 1.9)[-len(shape) :]
    field = gaussian_filter(np.random.default_rng(0).normal(size=shape), 1)
    pixels[part] = (np.abs(field) < 0.05)[part]
    small = Mask(pixels, spacing)
    edge = pixels & ~binary_erosion(pixels)
    assert edge.any() and np.array_equal(small.surface.points, np.argwhere(edge) * spacing)
    assert np.array_equal(small.skeleton, skeletonize(pixels))
    assert small.components == label(pixels, np.ones((3,) * pixels.ndim))[1] > 1


def test_volume() -> None:
    reference = np.zeros((5, 5, 5), bool)
    reference[1:4, 1:4, 1:4] = True
    prediction = np.roll(reference, 1, axis=0)
    metrics = measure(Mask(reference, (3.0, 1.0, 1.0)), Mask(prediction, (3.0, 1.0, 1.0)), True, 1.0)
    assert metrics["dice"] == pytest.approx(18 / 27)
    # 9 of the 26 surface voxels of each are a slice away; the other side's middle one is a pixel away
    assert metrics["hd95"] == pytest.approx(3.0)
    assert metrics["nsd"] == pytest.approx(17 / 26)
    assert metrics["betti0_error"] == 0


@pytest.mark.integration  # monai takes seconds to load
@pytest.mark.filterwarnings("ignore::FutureWarning:monai")
def test_surface_metrics_are_those_of_monai() -> None:
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    rng = np.random.default_rng(0)
    for shape, spacing in (((48, 40), (1.0, 1.0)), ((40, 48), (0.7, 1.9)), ((12, 20, 16), (3.0, 0.8, 0.8))):
        field = gaussian_filter(rng.normal(size=shape), 2)
        noisy = field + 0.5 * gaussian_filter(rng.normal(size=shape), 2)
        reference, prediction = Mask(field > 0.05, spacing), Mask(noisy > 0.05, spacing)
        metrics = measure(reference, prediction, False, 1.0)
        # with a border of background, since MONAI sees no surface at the border of an image
        first, second = (torch.from_numpy(np.pad(m.pixels, 1))[None, None] for m in (reference, prediction))
        hd95 = compute_hausdorff_distance(second, first, percentile=95, spacing=spacing)
        nsd = compute_surface_dice(second, first, [1.0], spacing=spacing)
        assert metrics["hd95"] == pytest.approx(hd95.item(), rel=1e-5)
        assert metrics["nsd"] == pytest.approx(nsd.item(), rel=1e-5)


def test_calibration_by_hand() -> None:
    probability = np.array([0.05, 0.05, 1.0, 1.0])
    truth = np.array([False, True, True, True])
    bins = calibration_bins(probability, truth)
    assert bins[0, 0] == 2 and bins[0, -1] == 2 and bins[0].sum() == 4
    assert expected_calibration_error(bins) == pytest.approx((0.9 + 0.0) / 4)


def test_classes_of_labels_and_regions() -> None:
    labels = {"labels": {"background": 0, "artery": 1, "vein": 2, "ignore": 3}}
    artery, vein = foreground_classes(labels, [1])
    assert (artery.labels, artery.channel, artery.tubular) == ((1,), 1, True)
    assert (vein.labels, vein.channel, vein.tubular) == ((2,), 2, False)
    regions = {"labels": {"background": 0, "whole": [1, 2], "anterior": 1}}
    whole, anterior = foreground_classes(regions, [1])
    assert (whole.labels, whole.channel, whole.tubular) == ((1, 2), 0, False)
    assert (anterior.labels, anterior.channel, anterior.tubular) == ((1,), 1, True)
    assert whole.mask(np.array([0, 1, 2])).tolist() == [False, True, True]
