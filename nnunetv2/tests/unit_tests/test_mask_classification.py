"""Mask2Former, EoMT and PMT as networks of nnU-Net: what they return in which mode, for every backbone family."""

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from networks import NETWORKS
from test_segmentation_model import check_compiled, misplacement, parameters_with_gradient
from torch import nn

from dinov3.eval.segmentation.m2f_targets import queries_to_logits
from dinov3.eval.segmentation.mask_classification_loss import MaskClassificationLoss
from dinov3.eval.segmentation.models import build_segmentation_decoder
from nnunetv2.model.backbone import create_backbone
from nnunetv2.model.mask_classification import MaskClassificationModel
from nnunetv2.model.model_eomt import num_query_blocks
from nnunetv2.model.model_m2f import M2FSegmentationModel

CLASSES, QUERIES, WIDTH = 3, 5, 32
# Every network of mask classification, with reduced widths; how many auxiliary outputs it has, and its modes.
M2F = {"hidden_dim": WIDTH, "num_queries": QUERIES, "dim_feedforward": 32, "enc_layers": 1, "dec_layers": 3}
DECODERS: dict[str, dict[str, Any]] = {
    "m2f": M2F,
    "eomt": {"num_queries": QUERIES, "num_blocks": 2, "freeze_backbone": False},
    "pmt": {"num_queries": QUERIES, "num_blocks": 2, "mlp_dim": 24},
}
AUXILIARY = {"m2f": 3, "eomt": 2, "pmt": 2}
ANNEALED = ("eomt", "pmt")
MODES = {"frozen": {}, "lora": {"use_lora": True}, "full": {"freeze_backbone": False}}
CASES = [(decoder, mode) for decoder in DECODERS for mode in MODES if (decoder, mode) != ("eomt", "frozen")]
WITHOUT_PREFIX = "timm:vit_medium_patch16_gap_240"
nightly = (pytest.mark.integration, pytest.mark.nightly)
# the first two have all that matters here: rotary and absolute positions, patches of 16 and 14, registers and none
everywhere = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=nightly if name in NETWORKS[2:] else ()) for name in NETWORKS]
)
every_decoder = pytest.mark.parametrize("decoder", DECODERS)
annealed = pytest.mark.parametrize("decoder", ANNEALED)


def model_for(family: str = "dinov3", decoder: str = "m2f", seed: int = 0, **options: Any) -> MaskClassificationModel:
    torch.manual_seed(seed)
    create = import_module(f"nnunetv2.model.model_{decoder}").create_segmentation_model
    return create(family, "tiny", CLASSES, **{**DECODERS[decoder], **options})


def stride_of(model: MaskClassificationModel) -> float:
    """Of the masks; what comes of the patches is twice doubled."""
    return model.padding_multiple / 8 if isinstance(model, M2FSegmentationModel) else model.patch_size / 4


@pytest.mark.parametrize(("family", "channels"), [("dinov3", 1), ("dinov3", 3), *((name, 4) for name in NETWORKS)])
@every_decoder
def test_queries_in_training_and_dense_logits_in_evaluation(family: str, decoder: str, channels: int):
    model = model_for(family, decoder, input_channels=channels)
    stride = stride_of(model)
    assert 3 < stride < 5
    for height, width in ((64, 64), (80, 112), (97, 131), (5, 3)):
        images = torch.rand(1, channels, height, width)  # a batch of one in training mode
        queries = model.train()(images)
        for output in (queries, *queries["aux_outputs"]):
            assert output["pred_masks"].shape == (1, QUERIES, math.ceil(height / stride), math.ceil(width / stride))
            assert output["pred_logits"].shape == (1, QUERIES, CLASSES + 1)
        assert len(queries["aux_outputs"]) == AUXILIARY[decoder]
        logits = model.eval()(images)
        assert logits.shape == (1, CLASSES, height, width) and logits.dtype == torch.float32


@pytest.mark.parametrize("regions", [False, True])
@every_decoder
def test_the_activation_of_the_output_gives_the_probabilities(decoder: str, regions: bool):
    model = model_for(decoder=decoder, regions=regions).eval()
    assert (model.regions, model.num_queries) == (regions, QUERIES)
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
    options = {key: M2F[key] for key in ("dim_feedforward", "enc_layers", "dec_layers")}
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


def loss_of(model: MaskClassificationModel, images: torch.Tensor) -> torch.Tensor:
    loss = MaskClassificationLoss(64, 3.0, 0.75, 5.0, 5.0, 2.0, CLASSES, 0.1)
    masks = torch.zeros(2, *images.shape[-2:])
    masks[0, :20], masks[1, 20:] = 1, 1
    targets = [{"masks": masks, "labels": torch.tensor([0, 2])}] * len(images)
    return loss.loss_total(loss.of_all_layers(model(images), targets))


@pytest.mark.parametrize(("decoder", "mode"), CASES)
@everywhere
def test_what_trains_gets_a_gradient_and_nothing_else(family: str, decoder: str, mode: str):
    model = model_for(family, decoder, **MODES[mode]).train()
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


@every_decoder
def test_lora_can_be_merged(decoder: str):
    model = model_for(decoder=decoder, use_lora=True).double().eval()  # in float32 the two round differently
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = model.forward_queries(images)["pred_logits"]
        model.disable_lora()
        assert torch.allclose(model.forward_queries(images)["pred_logits"], before, atol=1e-5)
    assert model.mode == "frozen"


@every_decoder
@everywhere
def test_saved_and_loaded_it_gives_the_same_logits(family: str, decoder: str):
    model, other = (model_for(family, decoder, use_lora=True).eval() for _ in range(2))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
        other.load_state_dict(model.state_dict())
        images = torch.rand(1, 3, 50, 60)
        assert torch.equal(model(images), model(images)) and torch.equal(model(images), other(images))


@every_decoder
def test_an_object_stays_in_place(decoder: str):
    """What the masks show in a corner of an odd-sized image is in that corner of the logits."""
    model = model_for(decoder=decoder).eval()
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
    with pytest.raises(TypeError, match="hiden_dim"):
        model_for(hiden_dim=32)
    assert model_for(out_layers="FOUR_LAST").feature_indices == [0, 1, 2, 3]


@every_decoder
def test_what_no_network_of_mask_classification_can_do_is_told(decoder: str):
    with pytest.raises(ValueError, match=r"at least the number of classes \(3\), found 2"):
        model_for(decoder=decoder, num_queries=2)
    with pytest.raises(TypeError, match="no_such_option"):
        model_for(decoder=decoder, no_such_option=32)
    model = model_for(decoder=decoder)
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, H, W\)"):
        model(torch.rand(1, 1, 64, 64))
    for wrong in ([0.5] * (model.num_masked_blocks + 1), [1.5] * max(1, model.num_masked_blocks), [float("nan")]):
        with pytest.raises(ValueError, match=rf"must be {model.num_masked_blocks} numbers in \[0, 1\], found"):
            model.set_mask_probabilities(wrong)


# --- EoMT and PMT: queries among the tokens of plain blocks -----------------------------------------------------------


@annealed
@pytest.mark.parametrize("family", [WITHOUT_PREFIX, "timm:vit_little_patch16_reg1_gap_256"])
def test_vits_without_class_token_and_with_their_norm_behind_an_average(family: str, decoder: str):
    model = model_for(family, decoder, use_lora=True)
    assert model.train()(torch.rand(1, 3, 40, 50))["pred_masks"].shape == (1, QUERIES, 10, 13)
    assert model.eval()(torch.rand(1, 3, 40, 50)).shape == (1, CLASSES, 40, 50)


@annealed
@pytest.mark.parametrize("family", ["timm:eva02_tiny_patch14_224", "timm:vit_small_patch16_rope_mixed_224"])
def test_vits_with_rotary_positions_of_other_kinds(family: str, decoder: str):
    model = model_for(family, decoder, freeze_backbone=False)
    loss_of(model.train(), torch.rand(1, 3, 56, 64)).backward()
    assert not {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}


@annealed
def test_masks_apply_in_training_only_and_with_their_probability(decoder: str):
    model, images = model_for(decoder=decoder), torch.rand(2, 3, 64, 64)
    assert model.num_masked_blocks == 2 and model_for().num_masked_blocks == 0
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)  # new weights attend to all tokens almost alike
    found = {}
    with torch.no_grad():
        for probabilities in ((1.0, 1.0), (0.0, 0.0), (1, 0)):
            state = torch.get_rng_state()
            model.train().set_mask_probabilities(probabilities)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
            found[probabilities] = model(images)
            assert torch.equal(state, torch.get_rng_state())  # nothing is drawn
        evaluated = model.eval().forward_queries(images)
    layers = {key: [*queries["aux_outputs"], queries] for key, queries in found.items()}
    for name in ("pred_masks", "pred_logits"):
        everything, nothing, first = (torch.stack([layer[name] for layer in layers[key]]) for key in layers)
        assert torch.equal(everything[0], nothing[0]) and torch.equal(everything[1], first[1])
        assert not torch.allclose(everything[1], nothing[1], rtol=1e-2)
        assert not torch.allclose(everything[2], first[2], rtol=1e-2)
        assert torch.allclose(evaluated[name], nothing[-1], rtol=1e-4, atol=1e-4)
    assert not any("prob" in name for name in model.state_dict())


@annealed
def test_the_last_layer_alone_gives_the_dense_logits(decoder: str):
    model, images = model_for(decoder=decoder).eval(), torch.rand(1, 3, 50, 60)
    predicted = []
    model.decoder.upscale.register_forward_hook(lambda *_: predicted.append(1))
    with torch.no_grad():
        logits = model(images)
        assert len(predicted) == 1
        assert torch.equal(logits, model.dense_logits(model.forward_queries(images), (50, 60)))
    assert len(predicted) == 1 + AUXILIARY[decoder] + 1


@everywhere
def test_queries_run_through_the_last_blocks_of_eomts_vit_only(family: str):
    model = model_for(family, "eomt", use_lora=True).eval()
    blocks, tokens = model.backbone.blocks, []
    for block in blocks:
        block.register_forward_hook(lambda _module, inputs, _output: tokens.append(inputs[0].shape[1]))
    images = torch.rand(1, 3, 4 * model.patch_size, 5 * model.patch_size)
    with torch.no_grad():
        before = model.backbone.forward_features(images)
        tokens.clear()
        model(images)
        plain = model.backbone.num_prefix_tokens + 20
        assert tokens == [plain] * (len(blocks) - 2) + [plain + QUERIES] * 2
        assert torch.equal(model.backbone.forward_features(images), before)  # nothing in the ViT has changed


@pytest.mark.parametrize("part", ["queries", "patches"])
@everywhere
def test_adapters_of_eomts_last_blocks_get_gradients_from_queries_and_patches(family: str, part: str):
    model = model_for(family, "eomt", use_lora=True, lora_dropout=0.0).train()
    for name, parameter in model.backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    outputs = []
    model.backbone.blocks[-1].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    model(torch.rand(2, 3, 64, 64))
    first = model.backbone.num_prefix_tokens
    of_part = slice(first, first + QUERIES) if part == "queries" else slice(first + QUERIES, None)
    outputs[0][:, of_part].square().sum().backward()
    assert parameters_with_gradient(model.backbone) == {n for n, _ in model.backbone.named_parameters() if "lora_" in n}


@pytest.mark.parametrize(
    ("depth", "number"), [(2, 1), (4, 1), (6, 1), (8, 2), (12, 3), (18, 3), (24, 4), (32, 4), (40, 5), (48, 5)]
)
def test_how_many_blocks_queries_run_through(depth: int, number: int):
    assert num_query_blocks("auto", depth) == number < depth and num_query_blocks(1, depth) == 1
    for wrong in (0, depth, "all"):
        with pytest.raises(ValueError, match=f"num_blocks must be auto or from 1 to {depth - 1}, found {wrong!r}"):
            num_query_blocks(wrong, depth)


def test_eomt_with_a_frozen_vit_is_refused_and_pmt_named():
    with pytest.raises(
        ValueError, match=r"model\.freeze_backbone=false .*PMT.*nnunetv2\.model\.model_pmt, --config pmt"
    ):
        model_for(decoder="eomt", freeze_backbone=True)
    assert model_for(decoder="eomt", freeze_backbone=True, use_lora=True).mode == "lora"


def test_what_eomt_and_pmt_cannot_do_is_told():
    for options, told in (
        ({"out_layers": [0, 3]}, r"out_layers must be \[3\], found \[0, 3\]"),
        ({"num_blocks": 4}, "num_blocks must be auto or from 1 to 3, found 4"),
    ):
        with pytest.raises(ValueError, match=told):
            model_for(decoder="eomt", **options)
    for options, told in (
        ({"out_layers": [0, 3]}, "PMT needs four feature layers"),
        ({"num_blocks": 0}, "num_blocks must be at least 1, found 0"),
        ({"mlp_dim": 0}, "mlp_dim must be auto or at least 1, found 0"),
        ({"mlp_dim": "large"}, "mlp_dim must be auto or at least 1, found 'large'"),
    ):
        with pytest.raises(ValueError, match=told):
            model_for(decoder="pmt", **options)


@pytest.mark.parametrize(("family", "own"), [("dinov3", False), ("dinov2", True), ("retfound", True)])
def test_pmt_gives_vits_without_rotary_positions_those_of_dinov3(family: str, own: bool):
    model = model_for(family, "pmt", mlp_dim="auto")
    assert (model.rope is not None) == own
    assert model.decoder.blocks[0].mlp.up_proj.out_features == model.embed_dim
    if own:
        dinov3, _, _ = create_backbone("dinov3", "tiny")
        torch.testing.assert_close(model.rope.get_embed((3, 4)), dinov3.rope.get_embed((3, 4)))
    assert not any(name.startswith("rope") for name in model.state_dict())


@pytest.mark.integration
@pytest.mark.parametrize(("family", "size"), [("dinov3", (256, 384)), ("dinov3", (261, 379)), ("dinov2", (261, 379))])
@annealed
def test_a_bright_dot_stays_in_place(family: str, decoder: str, size: tuple[int, int]):
    models = [model_for(family, decoder, seed).eval() for seed in range(3)]
    distance_error, offset = misplacement(models, size, keep_backbone=True)
    assert distance_error < 4 and offset < models[0].patch_size


@pytest.mark.integration
@annealed
def test_it_compiles_in_one_piece(decoder: str):
    check_compiled(model_for(decoder=decoder).eval())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@annealed
def test_on_a_gpu_as_on_the_cpu(precision: str, decoder: str):
    model = model_for(decoder=decoder, precision=precision).eval()
    image = torch.rand(2, 3, 70, 90)
    with torch.no_grad():
        expected = model(image)
        result = model.cuda()(image.cuda()).cpu()
    assert torch.allclose(result, expected, atol=1e-3 if precision == "float32" else 0.2)
