"""No dependency, and no edit, changes the names or shapes in a checkpoint unnoticed."""

import difflib

import pytest
import torch
from state_dict_names import DECODERS, REGENERATE, cases, current, describe, read_pinned

from nnunetv2.training.experiment.decoder_options import MASK2FORMER, packaged_decoders

PINNED = read_pinned()


@pytest.mark.parametrize("name", cases())
def test_a_state_dict_has_the_names_shapes_and_types_that_are_pinned(name: str):
    changes = difflib.unified_diff(PINNED.get(name, []), current(name), "pinned", "now", n=0, lineterm="")
    told = "\n".join(changes)
    assert not told, (
        f"the state dict of {name!r} has changed: checkpoints that were written before would not load.\n{told}\n"
        f"If that is meant, run `{REGENERATE}` and say in the changelog what becomes of them."
    )


def test_every_packaged_decoder_and_nothing_that_is_gone_is_pinned():
    assert {f"nnunetv2.model.{module}" for module, _ in DECODERS.values()} == {*packaged_decoders(), MASK2FORMER}
    assert PINNED.keys() == cases().keys()


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
