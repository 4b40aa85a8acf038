"""Upsampling decoders: shapes, channel widths, and that skips count."""

import pytest
import torch

from nnunetv2.model.upsample import (
    ProgressiveUpsampleDecoder,
    ProgressiveUpsampler,
    group_norm,
    halving_channels,
)


@pytest.mark.parametrize(("channels", "groups"), [(32, 32), (48, 16), (20, 4), (7, 1), (256, 32)])
def test_groups_divide_the_channels(channels: int, groups: int):
    assert group_norm(channels).num_groups == groups


def test_widths_of_the_reference():
    assert [512, *halving_channels(256, 4)] == [512, 256, 128, 64, 32]
    assert [384, *halving_channels(192, 4)] == [384, 192, 96, 48, 32]


@pytest.mark.parametrize("size", [(64, 64), (57, 75), (10, 90)])
def test_upsampler(size: tuple[int, int]):
    upsampler = ProgressiveUpsampler(24, 3, hidden_channels=64)
    assert upsampler(torch.rand(1, 24, 4, 5), size).shape == (1, 3, *size)
    assert [stage[0].out_channels for stage in upsampler.stages] == [64, 32]


def test_classifying_before_resizing_is_the_same_as_after():
    upsampler = ProgressiveUpsampler(8, 3, hidden_channels=32, num_stages=1).eval()
    x = torch.rand(1, 8, 4, 4)
    features = {}
    upsampler.stages[0].register_forward_hook(lambda _m, _i, output: features.update(out=output))
    with torch.no_grad():
        logits = upsampler(x, (40, 40))
        late = upsampler.classifier(torch.nn.functional.interpolate(features["out"], (40, 40), mode="bilinear"))
    assert torch.allclose(logits, late, atol=1e-5)


def test_decoder_uses_every_skip():
    decoder = ProgressiveUpsampleDecoder(64, 2, [16, 16, 16], dropout=0.0)
    x, skips = torch.rand(1, 64, 4, 4), [torch.rand(1, 16, 4, 4, requires_grad=True) for _ in range(3)]
    logits = decoder(x, skips, (61, 64))
    assert logits.shape == (1, 2, 61, 64)
    logits.square().mean().backward()
    assert all(skip.grad.abs().sum() > 0 for skip in skips)


def test_decoder_wants_as_many_skips_as_it_was_built_for():
    with pytest.raises(ValueError):
        ProgressiveUpsampleDecoder(64, 2, [16, 16])(torch.rand(1, 64, 4, 4), [torch.rand(1, 16, 4, 4)], (64, 64))
