"""Behaviours that every decoder shares; parametrised over the decoders and backbone families."""

from collections.abc import Iterable, Iterator
from dataclasses import fields
from importlib import import_module
from typing import Any

import pytest
import torch
from networks import NETWORKS, SAME_NETWORK
from torch import nn

from dinov3.eval.segmentation.models.utils.extent import pad_to_multiple
from dinov3.eval.segmentation.precision import autocast_for
from nnunetv2.experiment.decoder_options import packaged_decoders, read_options
from nnunetv2.model.backbone import FAMILIES
from nnunetv2.model.model import create_segmentation_model as create_first_model
from nnunetv2.model.model_upernet import UperNetSegmentationModel, create_segmentation_model
from nnunetv2.model.segmentation_model import ViTSegmentationModel
from nnunetv2.model.upsample import resize

SMALL = {"hidden_size": 32, "backbone_size": "tiny"}
# Every packaged decoder in every form, with reduced widths.
DECODERS = {
    "upernet": ("model_upernet", {"hidden_size": 32}),
    "upernet_plain": ("model_upernet", {"hidden_size": 32, "use_progressive_upsample": False}),
    "segformer": ("model_segformer", {"decoder_hidden_size": 32}),
    "segformer_bilinear": ("model_segformer", {"decoder_hidden_size": 32, "upsampling": "bilinear"}),
    "segformer_full": ("model_segformer", {"decoder_hidden_size": 32, "upsampling": "full"}),
    "dpt": ("model_dpt", {"fusion_hidden_size": 32}),
    "dpt_add": ("model_dpt", {"fusion_hidden_size": 32, "readout_type": "add"}),
    "dpt_ignore": (
        "model_dpt",
        {"fusion_hidden_size": 32, "readout_type": "ignore", "use_batch_norm_in_fusion_residual": False},
    ),
    "unetr": ("model_unetr", {"decoder_channels": [64, 32, 32, 16, 8]}),
    "unetr_bilinear": ("model_unetr", {"decoder_channels": [64, 32, 32, 16, 8], "upsample_mode": "bilinear"}),
    "unetr_image": ("model_unetr", {"decoder_channels": [64, 32, 32, 16, 8], "image_branch": True}),
    "primus": ("primus", {"embed_dim": 64}),
    "primus_multiscale": ("primus", {"multiscale": True}),
    "linear": ("model_linear", {}),
}
everywhere = pytest.mark.parametrize("family", NETWORKS)
every_decoder = pytest.mark.parametrize("decoder", DECODERS)


def model_for(family: str = "dinov3", decoder: str = "upernet", seed: int = 0, **options: Any) -> ViTSegmentationModel:
    torch.manual_seed(seed)
    module, small = DECODERS[decoder]
    create = import_module(f"nnunetv2.model.{module}").create_segmentation_model
    return create(num_classes=3, backbone_name=family, **{"backbone_size": "tiny", **small, **options})


def without_dropout(decoder: str) -> dict[str, float]:
    """The keyword that switches a decoder's dropout off, if it has any."""
    options = {option.name for option in fields(read_options(f"nnunetv2.model.{DECODERS[decoder][0]}"))}
    return {name: 0.0 for name in ("decoder_dropout", "dropout") if name in options}


def test_every_packaged_decoder_and_every_family_is_tested():
    tested = {f"nnunetv2.model.{module}" for module, _ in DECODERS.values()}
    of_masks = {f"nnunetv2.model.model_{name}" for name in ("m2f", "eomt", "pmt")}  # see test_mask_classification.py
    assert tested | {"nnunetv2.model.model"} == set(packaged_decoders()) - of_masks
    assert {*NETWORKS, *SAME_NETWORK} >= set(FAMILIES)


def parameters_with_gradient(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize(("family", "channels"), [("dinov3", 1), ("dinov3", 3), *((name, 4) for name in NETWORKS)])
@every_decoder
def test_logits_have_the_size_of_the_image(family: str, decoder: str, channels: int):
    model = model_for(family, decoder, input_channels=channels)
    for size in ((64, 64), (80, 112), (97, 131)):
        logits = model(torch.rand(1, channels, *size))  # a batch of one in training mode
        assert logits.shape == (1, 3, *size) and logits.dtype == torch.float32
    assert model.eval()(torch.rand(1, channels, 5, 3)).shape == (1, 3, 5, 3)


@pytest.mark.parametrize(("family", "same"), SAME_NETWORK.items())
def test_families_that_share_a_network_give_the_same_logits(family: str, same: str):
    """So that the tests over `NETWORKS` hold for every family."""
    model, other = model_for(family).eval(), model_for(same).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            nn.init.normal_(parameter, std=0.1)
        other.load_state_dict(model.state_dict())
        image = torch.rand(1, 3, 50, 60)
        assert torch.equal(model(image), other(image))


@pytest.mark.integration
@every_decoder
def test_a_large_image(decoder: str):
    assert model_for(decoder=decoder).eval()(torch.rand(1, 3, 512, 512)).shape == (1, 3, 512, 512)


class DotBackbone(nn.Module):
    """Stands in for the features: each patch's mean brightness, in every channel."""

    def __init__(self, patch: int, channels: int):
        super().__init__()
        self.patch, self.channels = patch, channels
        self.norm = nn.LayerNorm(channels)  # not used: brightness is to arrive as it is

    def forward_intermediates(
        self, x: torch.Tensor, indices: list[int], return_prefix_tokens: bool = False, **_: Any
    ) -> list[torch.Tensor]:
        brightness = nn.functional.avg_pool2d(x.mean(1, keepdim=True), self.patch)
        maps = [brightness.expand(-1, self.channels, -1, -1)] * len(indices)
        return [(x, x.new_zeros(len(x), 1, self.channels)) for x in maps] if return_prefix_tokens else maps


def centre_of_mass(heat: torch.Tensor) -> torch.Tensor:
    """Centre (row, column) of a non-negative map (H, W), in pixels."""
    rows, columns = (torch.arange(n, dtype=heat.dtype) + 0.5 for n in heat.shape)
    return torch.stack([(heat.sum(1) * rows).sum(), (heat.sum(0) * columns).sum()]) / heat.sum()


def reactions(
    model: ViTSegmentationModel, size: tuple[int, int], dots: list[tuple[int, int]]
) -> Iterator[torch.Tensor]:
    """Where, in pixels, the logits react to one bright patch, for each dot in (row, column) of the patch grid."""
    patch = model.patch_size
    images = torch.zeros(1 + len(dots), 3, *size)
    for image, (row, column) in zip(images[1:], dots, strict=True):
        image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = 1
    with torch.no_grad():
        dark, *bright = model(images)
    for logits in bright:
        heat = (logits - dark).abs().sum(0)
        yield centre_of_mass((heat - 0.3 * heat.max()).clamp(min=0))


def misplacement(
    models: Iterable[ViTSegmentationModel], size: tuple[int, int], keep_backbone: bool = False
) -> tuple[float, float]:
    """Two dots: by how many pixels their reactions lie apart too far, and how far the first lies from its dot.

    The kernels are random, which shifts the reactions of each network a little: the mean over the networks counts.
    """
    dots, errors = [(4, 5), (11, 16)], []
    for model in models:
        if not keep_backbone:
            model.backbone = DotBackbone(model.patch_size, model.embed_dim)
        first, second = reactions(model, size, dots)
        true_first, true_second = ((torch.tensor(dot) + 0.5) * model.patch_size for dot in dots)
        errors.append(torch.stack([second - first - (true_second - true_first), first - true_first]))
    distance, offset = torch.stack(errors).mean(0)
    return float(distance.norm()), float(offset.norm())


# Patches of 16 fill the first size; the others are padded.
@pytest.mark.integration
@pytest.mark.parametrize(("family", "size"), [("dinov3", (256, 384)), ("dinov3", (261, 379)), ("dinov2", (261, 379))])
@every_decoder
def test_a_bright_dot_stays_in_place(family: str, decoder: str, size: tuple[int, int]):
    pooled = {"pool_scales": [1]} if decoder.startswith("upernet") else {}
    # DPT's coarsest map has steps of two patches, between which the reaction of a single network can shift
    number, tolerance = (6, 4) if decoder.startswith("dpt") else (1, 2)
    models = [model_for(family, decoder, seed, **pooled).eval() for seed in range(number)]
    distance_error, offset = misplacement(models, size)
    assert distance_error < tolerance and offset < models[0].patch_size


@pytest.mark.integration
@every_decoder
def test_the_dot_test_sees_upsampling_by_sixteen_behind_patches_of_fourteen(decoder: str):
    pooled = {"pool_scales": [1]} if decoder.startswith("upernet") else {}
    model = model_for("dinov2", decoder, **pooled).eval()
    decode = model.decode

    def scaled(features: list[torch.Tensor], output_size: Any) -> torch.Tensor:
        logits = resize(decode(features, output_size), [n * 16 // 14 for n in output_size])
        return logits[..., : output_size[0], : output_size[1]]

    model.decode = scaled
    distance_error, _ = misplacement([model], (261, 379))
    assert distance_error > 14


def test_padding_reflects_where_it_can_and_repeats_otherwise():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    padded = pad_to_multiple(image, 5, mode="reflect")
    assert padded.shape == (1, 1, 5, 5)
    assert padded[0, 0, :, 0].tolist() == [0, 4, 8, 4, 0] and padded[0, 0, 0].tolist() == [0, 1, 2, 3, 2]
    repeated = pad_to_multiple(image, 8)
    assert torch.equal(repeated, pad_to_multiple(image, 8, mode="reflect"))
    assert torch.equal(repeated[0, 0, 3:, :4], image[0, 0, -1:].expand(5, -1))
    assert pad_to_multiple(image[..., :3], 3) is not None and pad_to_multiple(image[..., :3], 3).shape[-1] == 3


# --- freezing -----------------------------------------------------------------------------------------------------


@every_decoder
@everywhere
def test_frozen_no_gradient_reaches_the_backbone(family: str, decoder: str):
    model = model_for(family, decoder, freeze_backbone=True).train()
    assert model.mode == "frozen" and not any(m.training for m in model.backbone.modules())
    model(torch.rand(2, 3, 48, 48)).square().mean().backward()
    decoder = {n for n, _ in model.named_parameters() if not n.startswith("backbone.")}
    assert parameters_with_gradient(model) == decoder


@every_decoder
def test_frozen_dropout_and_stochastic_depth_stay_off(decoder: str):
    model = model_for(decoder=decoder, freeze_backbone=True, **without_dropout(decoder))
    for module in model.backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    image = torch.rand(1, 3, 48, 48)
    model.train()
    assert torch.equal(model(image), model(image))


@every_decoder
@everywhere
def test_lora_trains_adapters_and_decoder_only(family: str, decoder: str):
    model = model_for(family, decoder, use_lora=True).train()
    assert model.mode == "lora"
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model(torch.rand(2, 3, 48, 48)).square().mean().backward()
    expected = {n for n, _ in model.named_parameters() if not n.startswith("backbone.") or "lora_" in n}
    assert parameters_with_gradient(model) == expected


@every_decoder
@everywhere
def test_merging_lora_keeps_the_logits(family: str, decoder: str):
    model = model_for(family, decoder, use_lora=True).double().eval()  # in float32 the two round differently
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    image = torch.rand(1, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        before = model(image)
        model.disable_lora()
        assert torch.allclose(model(image), before, atol=1e-5)
    assert model.mode == "frozen"


@every_decoder
@everywhere
def test_full_every_trainable_parameter_gets_a_gradient(family: str, decoder: str):
    model = model_for(family, decoder, freeze_backbone=False).train()
    assert model.mode == "full"
    model(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert {n for n, p in model.named_parameters() if p.grad is None} == set()


def test_full_training_of_a_vit_whose_final_norm_is_the_classifiers():
    model = model_for("timm:vit_little_patch16_reg1_gap_256", freeze_backbone=False)
    model(torch.rand(1, 3, 32, 32)).square().mean().backward()
    assert {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None} == set()
    assert any(p.requires_grad for p in model.backbone.parameters())


def test_many_feature_layers_do_not_grow_beyond_the_image():
    model = model_for(out_layers=[0, 1, 2, 3])
    sizes = []
    for stage in model.upsampler.stages:
        stage.register_forward_hook(lambda _m, _i, output: sizes.append(tuple(output.shape[-2:])))
    model(torch.rand(1, 3, 32, 20))
    assert sizes == [(4, 4), (8, 8), (16, 16), (32, 32)]
    deep = create_segmentation_model("timm:vit_tiny_patch16_224", hidden_size=32, out_layers=range(8))
    deep.upsampler.stages[-2].register_forward_hook(lambda _m, _i, output: sizes.append(tuple(output.shape[-2:])))
    assert deep(torch.rand(1, 3, 32, 32)).shape == (1, 1, 32, 32) and sizes[-1] == (32, 32)


def check_compiled(model: nn.Module) -> None:
    image = torch.rand(2, 3, 50, 60)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(image), model(image), atol=1e-5)


@pytest.mark.integration  # seconds each
@every_decoder
def test_every_decoder_compiles_in_one_piece(decoder: str):
    # nnU-Net compiles by default on a GPU
    check_compiled(model_for(decoder=decoder, freeze_backbone=True, **without_dropout(decoder)))


@pytest.mark.integration
@pytest.mark.parametrize("mode", [{"use_lora": True, "lora_dropout": 0.0}, {"freeze_backbone": False}])
def test_every_mode_compiles_in_one_piece(mode: dict):
    check_compiled(model_for(decoder_dropout=0.0, **mode))


def test_blocks_behind_the_last_feature_layer_do_not_train():
    model = model_for(freeze_backbone=False, out_layers=[0, 1])
    model(torch.rand(2, 3, 48, 48)).square().mean().backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not without and not any(p.requires_grad for p in model.backbone.blocks[2:].parameters())


# --- input ----------------------------------------------------------------------------------------------------------


def test_input_normalisation_is_applied_inside_and_is_part_of_the_state():
    norm = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.5]}
    inside, outside = model_for(input_norm=norm).eval(), model_for().eval()
    image = torch.rand(1, 3, 48, 64)
    mean, std = (torch.tensor(norm[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(inside(image), outside((image - mean) / std), atol=1e-5)
    assert {"input_mean", "input_std"} <= inside.state_dict().keys()


def test_wrong_shapes_are_told():
    model = model_for()
    for shape in ((1, 1, 32, 32), (3, 32, 32), (1, 3, 8, 32, 32)):
        with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, H, W\)"):
            model(torch.rand(shape))


@pytest.mark.parametrize(
    ("family", "decoder"), [*(("dinov3", name) for name in DECODERS), *((name, "upernet") for name in NETWORKS[1:])]
)
def test_saved_and_loaded_it_gives_the_same_logits(family: str, decoder: str):
    model = model_for(family, decoder, use_lora=True).eval()
    other = model_for(family, decoder, use_lora=True).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    image = torch.rand(1, 3, 50, 60)
    with torch.no_grad():
        assert torch.equal(model(image), model(image))
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(image), other(image))


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(12, [2, 5, 8, 11]), (24, [5, 11, 17, 23]), (32, [7, 15, 23, 31]), (40, [9, 19, 29, 39]), (4, [0, 1, 2, 3])],
)
def test_feature_layers_by_depth(depth: int, expected: list[int]):
    assert ViTSegmentationModel.choose_layers(depth) == expected
    assert ViTSegmentationModel.choose_layers(depth, [1, 3]) == [1, 3]


@pytest.mark.parametrize("layers", [[3, 1], [0, 4], [-1], [], [1, 1]])
def test_impossible_feature_layers(layers: list[int]):
    with pytest.raises(ValueError, match="out_layers"):
        ViTSegmentationModel.choose_layers(4, layers)


def test_unknown_keywords_are_type_errors():
    with pytest.raises(TypeError, match="hiden_size"):
        create_segmentation_model(hiden_size=3, **SMALL)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 1},
        {"pool_scales": []},
        {"pool_scales": [0]},
        {"decoder_dropout": 1.0},
        {"precision": "float8"},
        {"deep_supervision": True},
        {"input_norm": {"mean": [0.0], "std": [1.0]}},
    ],
)
def test_impossible_options(options: dict):
    with pytest.raises(ValueError):
        create_segmentation_model(**{**SMALL, **options})


def test_precision_is_that_of_the_forward_pass():
    cuda = torch.device("cuda")
    for precision, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        assert autocast_for(cuda, precision).fast_dtype == dtype
    assert not autocast_for(cuda, "float32")._enabled
    model, image = model_for().eval(), torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        full = model(image)
        model.precision = "bfloat16"
        reduced = model(image)
    assert reduced.dtype == torch.float32 and torch.allclose(full, reduced, atol=0.1)


def test_parameter_summary_is_printed(capsys):
    model = model_for(freeze_backbone=True)
    model.print_trainable_parameters()
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (
        capsys.readouterr().out == f"total: {total:,} parameters, {trainable:,} trainable ({trainable / total:.2%})\n"
    )
    model.print_trainable_parameters(detailed=True)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "backbone",
        "decode_head",
        "upsampler",
        "total",
    ]


@pytest.mark.parametrize(
    ("size", "hidden", "trainable", "total"),
    [("base", 384, 21_062_852, 106_704_068), ("large", 512, 37_426_692, 340_506_116)],
)
def test_parameters_equal_those_of_the_first_model(size: str, hidden: int, trainable: int, total: int):
    # reference/heads.md §3, "legacy UperNet + skips": hidden is half of the backbone's width. That model kept UperNet's
    # own 1×1 classifier, hidden → hidden, before the upsampler; ours hands on the features that went into it.
    classifier = hidden * hidden + hidden
    trainable, total = trainable - classifier, total - classifier
    with torch.device("meta"):
        model = create_segmentation_model(num_classes=4, hidden_size=hidden, backbone_size=size)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    assert sum(p.numel() for p in model.parameters()) == total


def test_first_names():
    model = create_first_model(head_type="upernet", decoder_dropout=0.2, **SMALL)
    assert isinstance(model, UperNetSegmentationModel)
    assert create_first_model(use_progressive_upsample=False, **SMALL).upsampler is None
    with pytest.raises(ValueError, match="unknown head_type 'fpn'"):
        create_first_model(head_type="fpn", **SMALL)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@every_decoder
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_on_a_gpu_as_on_the_cpu(precision: str, decoder: str):
    model = model_for(decoder=decoder, precision=precision).eval()
    image = torch.rand(2, 3, 70, 90)
    with torch.no_grad():
        expected = model(image)
        result = model.cuda()(image.cuda()).cpu()
    assert torch.allclose(result, expected, atol=1e-3 if precision == "float32" else 0.1)
