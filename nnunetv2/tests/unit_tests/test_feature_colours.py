"""Patch features as colours."""

import pytest
import torch
from torch.nn import functional

from nnunetv2.run.feature_colours import enlarged, feature_colours


def smooth_features(channels: int = 12, height: int = 6, width: int = 9) -> torch.Tensor:
    """Maps of three directions."""
    torch.manual_seed(0)
    return (torch.randn(channels, 3) @ torch.rand(3, height * width)).unflatten(1, (height, width))


def test_three_directions_are_all_of_the_variance_and_are_told_apart():
    colours = feature_colours(smooth_features())
    assert colours.picture.shape == (6, 9, 3) and colours.explained == pytest.approx(1, abs=1e-6)
    assert colours.picture.min() == 0 and colours.picture.max() == 1
    flat = colours.picture.double().flatten(0, 1)
    noisy = feature_colours(smooth_features() + 5 * torch.randn(12, 6, 9))
    assert torch.linalg.matrix_rank(flat - flat.mean(0)) == 3 and noisy.explained < 0.9


def test_red_is_the_direction_of_most_variance():
    features = torch.zeros(5, 1, 4)
    features[2, 0] = torch.tensor([0.0, 10.0, 20.0, 30.0])
    features[4, 0] = torch.tensor([0.0, 1.0, -1.0, 0.0])
    red, green, blue = feature_colours(features).picture[0].unbind(-1)
    assert red.argsort().tolist() == [0, 1, 2, 3]  # the larger feature is the brighter one, whatever the solver's sign
    assert int(green.argmax()) == 1 and int(green.argmin()) == 2
    assert not blue.isnan().any()


def test_the_same_features_have_the_same_colours_whatever_the_sign_of_a_solver(monkeypatch: pytest.MonkeyPatch):
    features = smooth_features()
    before = feature_colours(features).picture
    eigh = torch.linalg.eigh

    def turned(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        variances, directions = eigh(matrix)
        return variances, -directions

    monkeypatch.setattr(torch.linalg, "eigh", turned)
    assert torch.equal(feature_colours(features).picture, before)


def test_a_constant_map_is_black():
    colours = feature_colours(torch.ones(4, 2, 3))
    assert not colours.picture.any() and colours.explained == 0


def test_cells_are_drawn_as_pixels_of_the_image():
    picture = torch.rand(2, 3, 3)
    drawn = enlarged(picture, 4, (7, 10))
    assert drawn.shape == (7, 10, 3)
    whole = functional.interpolate(picture.movedim(-1, 0)[None], scale_factor=4)[0].movedim(0, -1)
    assert torch.equal(drawn, whole[:7, :10])
