"""No dependency, and no edit, changes what older checkpoints and plans depend on unnoticed."""

import difflib

import pytest
import torch
from state_dict_names import (
    DECODERS,
    REGENERATE,
    current,
    describe,
    describe_defaults,
    describe_model,
    pins,
    read_pinned,
)
from torch import nn

from nnunetv2.experiment.decoder_options import MASK2FORMER, packaged_decoders

PINNED = read_pinned()


@pytest.mark.parametrize("name", pins())
def test_what_older_checkpoints_and_plans_depend_on_is_as_pinned(name: str):
    changes = difflib.unified_diff(PINNED.get(name, []), current(name), "pinned", "now", n=0, lineterm="")
    told = "\n".join(changes)
    assert not told, (
        f"{name!r} has changed: checkpoints or plans that were written before would not load, or mean another training."
        f"\n{told}\nIf that is meant, run `{REGENERATE}` and say in the changelog what becomes of them."
    )


def test_every_packaged_decoder_and_nothing_that_is_gone_is_pinned():
    of_masks = {MASK2FORMER, "nnunetv2.model.model_eomt", "nnunetv2.model.model_pmt"}
    assert {f"nnunetv2.model.{module}" for module, _ in DECODERS.values()} == {*packaged_decoders(), *of_masks}
    assert PINNED.keys() == pins().keys()


def test_another_order_of_the_parameters_shows_and_which_of_them_train():
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    model = nn.ModuleDict({"first": first, "second": second})
    swapped = nn.ModuleDict({"second": second, "first": first})
    assert describe(model.state_dict()) == describe(swapped.state_dict())
    lines = describe_model(model)
    assert describe_model(swapped) != lines
    second.requires_grad_(False)
    assert describe_model(model) != lines


def test_another_default_shows():
    def factory(num_classes: int, hidden_size: int = 512, **options: int) -> nn.Module: ...

    def changed(num_classes: int, hidden_size: int = 256, **options: int) -> nn.Module: ...

    assert describe_defaults(factory) == ["hidden_size=512"]
    assert describe_defaults(changed) == ["hidden_size=256"]


def test_repeated_parts_share_a_line_and_every_difference_shows():
    state = {f"blocks.{i}.norm.{part}": torch.empty(4) for i in range(3) for part in ("weight", "bias")}
    lines = ["blocks.{0-2}.norm.bias (4,) float32", "blocks.{0-2}.norm.weight (4,) float32"]
    assert describe(state) == lines
    for changed in (
        {**state, "blocks.1.norm.bias": torch.empty(5)},
        {**state, "blocks.1.norm.bias": torch.empty(4, dtype=torch.float16)},
        {**state, "blocks.3.norm.bias": torch.empty(4)},
        {name.replace("norm", "norm1"): tensor for name, tensor in state.items()},
        {name: tensor for name, tensor in state.items() if name != "blocks.1.norm.bias"},
    ):
        assert describe(changed) != lines
    assert describe({"stem.0.weight": torch.empty(2), "stem.3.weight": torch.empty(2)}) == [
        "stem.{0,3}.weight (2,) float32"
    ]
    assert describe({"head.4.bias": torch.empty(())}) == ["head.4.bias () float32"]
