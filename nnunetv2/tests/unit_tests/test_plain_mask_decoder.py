"""PMT's decoder reproduces the reference's numbers and takes its published weights; masked attention in detail."""

from pathlib import Path

import pytest
import torch
from golden_cases import Case, check_equal
from torch import Tensor

from nnunetv2.model.masked_attention import attention_mask, draw_masked_queries
from nnunetv2.model.model_pmt import PlainMaskDecoder
from nnunetv2.model.query_prediction import Prediction, num_upscale_blocks

SIZES = {"embed_dim": 16, "num_heads": 2, "num_classes": 3, "num_queries": 5, "num_blocks": 3, "mlp_dim": 24}


@pytest.fixture
def case(golden: Path) -> Case:
    return Case(golden / "mask_transformers", "plain_mask_decoder")


def build(case: Case) -> PlainMaskDecoder:
    spec = case.spec
    decoder = PlainMaskDecoder(
        spec["embed_dim"],
        spec["num_heads"],
        spec["num_classes"],
        spec["num_q"],
        spec["num_blocks"],
        spec["hidden_dim"],
        num_levels=spec["levels"],
        patch_size=spec["patch_size"],
    )
    decoder.load_published_state_dict(case.state)
    return decoder


def run(decoder: PlainMaskDecoder, case: Case, features: list[Tensor]) -> list[Prediction]:
    inputs = case.inputs()
    rope = (inputs["cos"], inputs["sin"])
    return decoder(features, tuple(case.spec["grid"]), case.spec["num_prefix_tokens"], rope)


def features_of(case: Case) -> list[Tensor]:
    return [case.inputs()[f"features.{level}"] for level in range(case.spec["levels"])]


def named(predictions: list[Prediction]) -> dict[str, Tensor]:
    masks = {f"pred_masks.{i}": masks for i, (masks, _) in enumerate(predictions)}
    return masks | {f"pred_logits.{i}": classes for i, (_, classes) in enumerate(predictions)}


@pytest.mark.parametrize(
    ("mode", "training", "masked"), [("train", True, True), ("eval", False, True), ("unmasked", False, False)]
)
def test_outputs_equal_the_reference(case: Case, mode: str, training: bool, masked: bool):
    decoder = build(case).train(training)
    assert decoder.masked_attention == training
    decoder.masked_attention = masked
    with torch.no_grad():
        predictions = run(decoder, case, features_of(case))
    expected = case.outputs(f"{mode}.")
    assert len(predictions) * 2 == len(expected)
    check_equal(named(predictions), expected)


def test_gradients_equal_the_reference(case: Case):
    decoder = build(case).eval()
    decoder.masked_attention = True
    features = [values.requires_grad_() for values in features_of(case)]
    terms = [
        (masks * torch.linspace(-1, 1, masks.numel()).view_as(masks)).sum() / 100
        + (classes * torch.linspace(1, -1, classes.numel()).view_as(classes)).sum()
        for masks, classes in run(decoder, case, features)
    ]
    sum(terms).backward()
    found = {f"features.{level}": values.grad for level, values in enumerate(features)}
    check_equal({**found, "q.weight": decoder.q.weight.grad}, case.gradients())


def test_another_weight_is_told(case: Case):
    decoder = build(case).eval()
    with torch.no_grad():
        decoder.blocks[1].layer_scale2.lambda1[0] += 1e-2
        predictions = run(decoder, case, features_of(case))
    with pytest.raises(AssertionError, match="pred_"):
        check_equal(named(predictions), case.outputs("unmasked."))


@pytest.mark.parametrize("prefix", ["", "network."])
def test_published_names_load_strictly(case: Case, prefix: str):
    state = {f"{prefix}{name}": value for name, value in case.state.items()}
    decoder = build(case)
    loaded = {name: value.clone() for name, value in decoder.state_dict().items()}
    with torch.no_grad():
        for value in decoder.state_dict().values():
            value.zero_()
    decoder.load_published_state_dict(state)
    assert all(torch.equal(value, loaded[name]) for name, value in decoder.state_dict().items())
    assert loaded["scalers.0"].equal(case.state["decoder.scalers.0"])
    del state[f"{prefix}bn.2.running_var"]
    with pytest.raises(RuntimeError, match=r"Missing key.*bn\.2\.running_var"):
        decoder.load_published_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*r"):
        decoder.load_published_state_dict({**case.state, "decoder.r": torch.zeros(1)})


def test_only_the_last_layer_without_masks_unless_all_are_asked_for():
    decoder = PlainMaskDecoder(**SIZES).eval()
    features = [torch.randn(2, 1 + 6, 16) for _ in range(4)]
    arguments = (features, (2, 3), 1, (torch.ones(6, 8), torch.zeros(6, 8)))
    with torch.no_grad():
        (last,), layers = decoder(*arguments), decoder.predict_layers(*arguments)
    assert len(layers) == 4 and all(torch.equal(a, b) for a, b in zip(last, layers[-1], strict=True))


@pytest.mark.parametrize(("patch_size", "blocks"), [(8, 1), (14, 2), (16, 2), (32, 3)])
def test_masks_have_a_stride_of_about_four(patch_size: int, blocks: int):
    assert num_upscale_blocks(patch_size) == blocks and 3 < patch_size / 2**blocks < 5
    decoder = PlainMaskDecoder(**SIZES, patch_size=patch_size)
    masks = decoder.predict(torch.randn(1, 5 + 6, 16), (2, 3)).masks
    assert masks.shape == (1, 5, 2 * 2**blocks, 3 * 2**blocks)


# --- masked attention -----------------------------------------------------------------------------------------------


def allowed(masks: Tensor, masked: Tensor | None = None) -> Tensor:
    """Which of 1 prefix token, 3 queries and 2 × 2 patches attends to which, (8, 8)."""
    added = attention_mask(masks, (2, 2), 1, masked)
    assert added.shape == (len(masks), 1, 8, 8) and set(added.unique().tolist()) <= {0.0, -torch.inf}
    return added[0, 0] == 0


def test_queries_attend_to_the_patches_of_their_masks():
    masks = torch.full((1, 3, 2, 2), -1.0)
    masks[0, 0, 0, 1] = masks[0, 1, 1] = 1.0
    masks[0, 1, 0, 0] = 0.0  # not above 0
    found = allowed(masks)
    assert found[1, 4:].tolist() == [False, True, False, False]
    assert found[2, 4:].tolist() == [False, False, True, True]
    assert found[3, 4:].tolist() == [False] * 4  # of a mask that covers nothing: other tokens alone
    assert found[:, :4].all()  # everything attends to prefix tokens and queries
    assert found[0].all() and found[4:].all()  # prefix tokens and patches attend to everything


def test_masks_are_resized_to_the_patches():
    masks = torch.full((1, 3, 8, 8), -1.0)
    masks[0, 0, 4:, :4] = 1.0
    assert allowed(masks)[1, 4:].tolist() == [False, False, True, False]


def test_a_query_whose_mask_does_not_apply_attends_to_everything():
    masks = torch.full((1, 3, 2, 2), -1.0)
    found = allowed(masks, torch.tensor([[True, False, True]]))
    assert [bool(found[1 + query].all()) for query in range(3)] == [False, True, False]


def test_masks_apply_with_their_probability():
    masks = torch.zeros(50, 100, 2, 2)
    state = torch.get_rng_state()
    assert draw_masked_queries(masks, 1.0) is None and torch.equal(state, torch.get_rng_state())
    drawn = draw_masked_queries(masks, 0.3)
    assert drawn.shape == (50, 100) and 0.27 < float(drawn.float().mean()) < 0.33
    assert 0.1 < float(drawn.float().mean(1).std()) / (0.3 * 0.7) ** 0.5 * 10 < 2  # each query for itself
