"""What is particular to each decoder: its options, equivalences, class token, and numbers of parameters."""

from importlib import import_module

import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import nn

from nnunetv2.model.fidelity_projection import FidelityAwareProjection
from nnunetv2.model.model_dinounet import resolve_options as resolve_widths
from nnunetv2.model.model_dpt import MIN_BATCH_SIZE_FOR_BATCH_NORM, DPTSegmentationModel, resolve_options
from nnunetv2.model.model_linear import LinearSegmentationModel
from nnunetv2.model.model_segformer import SegFormerSegmentationModel, create_segformer_model
from nnunetv2.model.model_unetr import UNETRSegmentationModel
from nnunetv2.model.primus import PrimusMultiscaleSegmentationModel, PrimusSegmentationModel
from nnunetv2.model.upsample import resize

WITHOUT_CLASS_TOKEN = "timm:vit_little_patch16_reg1_gap_256"


def build(module: str, num_classes: int = 3, **options) -> nn.Module:
    torch.manual_seed(0)
    create = import_module(f"nnunetv2.model.{module}").create_segmentation_model
    return create(num_classes=num_classes, **{"backbone_size": "tiny", **options}).eval()


def maps(model: nn.Module, height: int = 5, width: int = 7) -> list[torch.Tensor]:
    return [torch.rand(2, model.embed_dim, height, width, dtype=torch.float64) for _ in model.feature_indices]


@pytest.mark.parametrize(
    ("module", "options", "base", "large"),
    [
        # reference/heads.md §3, four classes, trainable with a frozen backbone
        ("model_segformer", {"upsampling": "bilinear"}, 1_051_140, 1_313_284),
        ("model_segformer", {"upsampling": "full"}, 1_051_140, 1_313_284),
        ("model_segformer", {}, 2_739_972, 3_002_116),
        # without the 1,180,672 of the layer that is never run
        ("model_dpt", {}, 41_569_028 - 1_180_672, 62_739_972 - 1_180_672),
        ("model_unetr", {}, 10_565_956, 11_548_996),
        ("model_unetr", {"upsample_mode": "bilinear"}, 10_651_524, 11_634_564),
        ("model_unetr", {"decoder_channels": [1024, 512, 256, 128, 64]}, 36_350_596, 38_316_676),
        ("primus", {"embed_dim": 768}, 1_569_076, 2_356_276),
        ("primus", {}, 1_569_076, 2_788_420),
        ("primus", {"multiscale": True, "embed_dim": 768}, 25_076_932, 37_662_916),
        ("primus", {"multiscale": True}, 25_076_932, 44_577_028),
        # batch norm and a 1×1 convolution on the last map: 2 D + 4 (D + 1)
        ("model_linear", {}, 2 * 768 + 4 * 769, 2 * 1024 + 4 * 1025),
    ],
)
def test_parameters_equal_those_of_the_reference(module: str, options: dict, base: int, large: int):
    for size, expected in (("base", base), ("large", large)):
        with torch.device("meta"):
            model = build(module, 4, **{"backbone_size": size, **options})
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


# --- SegFormer ------------------------------------------------------------------------------------------------------


def test_segformer_at_full_size_equals_resizing_every_map_first():
    model = build("model_segformer", upsampling="full", decoder_hidden_size=16).double()
    features = maps(model)
    expected = model.decode_head([resize(x, (80, 112)) for x in features])
    assert torch.allclose(model.decode(features, (80, 112)), expected, atol=1e-12)


def test_segformer_has_a_projection_per_map():
    """With the first three projections silent, nothing of the first three maps arrives."""
    model = build("model_segformer", upsampling="bilinear", decoder_hidden_size=16).double()
    features = maps(model)
    for projection in list(model.decode_head.linear_projections)[:3]:
        nn.init.zeros_(projection.proj.weight)
    changed = [torch.rand_like(x) for x in features[:3]]
    assert torch.equal(model.decode(features, (80, 112)), model.decode([*changed, features[3]], (80, 112)))


def test_segformer_by_its_first_name():
    model = create_segformer_model(num_classes=2, backbone_size="tiny")
    assert isinstance(model, SegFormerSegmentationModel) and model.upsampling == "bilinear"
    assert model.decode_head.classifier.in_channels == 256
    assert create_segformer_model(backbone_size="tiny", decoder_hidden_size=16, upsampling="full").upsampling == "full"


# --- DPT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("readout", "uses_token"), [("project", True), ("add", True), ("ignore", False)])
def test_dpt_reads_the_class_token(readout: str, uses_token: bool):
    model = build("model_dpt", fusion_hidden_size=16, readout_type=readout)
    image = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        tokens = model.encode(image)
        before = model.decode(tokens, (32, 48))
        changed = [torch.cat([torch.ones_like(x[:, :1]), x[:, 1:]], dim=1) for x in tokens]
        assert torch.equal(before, model.decode(changed, (32, 48))) != uses_token
    prefix = model.backbone.forward_features(image)[:, :1]
    assert torch.allclose(tokens[-1][:, :1], prefix, atol=1e-5) == uses_token  # the class token, no register token


def test_dpt_needs_a_class_token_or_ignores_it():
    options = {"backbone_name": WITHOUT_CLASS_TOKEN, "fusion_hidden_size": 16}
    with pytest.raises(ValueError, match=r"readout_type 'project' needs a class token.*set 'ignore'"):
        build("model_dpt", **options)
    model = build("model_dpt", readout_type="ignore", **options)
    assert model(torch.rand(1, 3, 40, 50)).shape == (1, 3, 40, 50)


def test_dpt_decides_on_batch_norm_by_the_batch():
    name = "use_batch_norm_in_fusion_residual"
    few, enough = (resolve_options({name: "auto", "x": 1}, MIN_BATCH_SIZE_FOR_BATCH_NORM - i, False) for i in (1, 0))
    assert (few, enough) == ({name: False, "x": 1}, {name: True, "x": 1})
    assert resolve_options({name: False}, 99, False) == {name: False} and resolve_options({}, 99, False) == {}
    with_norm, without = (build("model_dpt", fusion_hidden_size=16, **{name: value}) for value in (True, False))
    count = [sum(isinstance(m, nn.BatchNorm2d) for m in model.neck.modules()) for model in (with_norm, without)]
    assert count == [14, 0]  # two in each of seven residual units


def test_dpt_runs_all_that_it_has():
    model = build("model_dpt", fusion_hidden_size=16, freeze_backbone=True)
    ran = set()
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None and not name.startswith("backbone"):
            module.register_forward_hook(lambda *_, name=name: ran.add(name))
    model(torch.rand(1, 3, 32, 32))
    assert ran == {name.rpartition(".")[0] for name, _ in model.named_parameters() if not name.startswith("backbone")}


# --- UNETR ----------------------------------------------------------------------------------------------------------


def test_unetr_with_an_image_branch_sees_what_the_patches_lose():
    options = {"decoder_channels": [32, 16, 16, 8, 8]}
    for image_branch in (False, True):
        model = build("model_unetr", image_branch=image_branch, **options)
        image = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            _, *features = model.encode(image)
            changed = model.decode([image + 1, *features], (32, 32))
            assert torch.equal(model.decode([image, *features], (32, 32)), changed) != image_branch


def test_unetr_doubles_the_map_of_each_depth_the_right_number_of_times():
    model = build("model_unetr", decoder_channels=[32, 16, 12, 8, 4]).double()
    features = maps(model)
    sizes = [tuple(b(x).shape[1:]) for b, x in zip(model.decoder.branches, features[::-1], strict=True)]
    assert sizes == [(32, 10, 14), (16, 20, 28), (12, 40, 56), (8, 80, 112)]
    assert model.decoder(features).shape == (2, 4, 80, 112)
    given = []
    for branch in model.decoder.branches:
        branch.register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0]))
    model.decoder(features)
    assert all(x is feature for x, feature in zip(given, features[::-1], strict=True))  # deepest first


def test_unetr_has_the_slope_that_it_is_told():
    model = build("model_unetr", decoder_channels=[8] * 5, negative_slope=0.3)
    slopes = {module.negative_slope for module in model.decoder.modules() if isinstance(module, nn.LeakyReLU)}
    assert slopes == {0.3}


# --- Primus ---------------------------------------------------------------------------------------------------------


def test_primus_reads_one_depth_or_four():
    single, multiscale = build("primus"), build("primus", multiscale=True)
    assert type(single) is PrimusSegmentationModel and single.feature_indices == [3]
    assert type(multiscale) is PrimusMultiscaleSegmentationModel and multiscale.feature_indices == [0, 1, 2, 3]
    for model, depths in ((single, 1), (multiscale, 4)):
        assert isinstance(model.decoder.projection, nn.Identity)
        assert model.decoder.patch_decoder[0][0].in_channels == depths * model.embed_dim
    projected = build("primus", multiscale=True, embed_dim=32)
    assert (projected.decoder.projection.in_channels, projected.decoder.projection.out_channels) == (4 * 96, 4 * 32)


def test_primus_halves_the_channels_at_each_doubling():
    widths = [stage[0].out_channels for stage in list(build("primus", embed_dim=64).decoder.patch_decoder)[:-1]]
    assert widths == [32, 16, 8, 4]
    assert build("primus", backbone_name="dinov2").decoder(maps(build("primus"))[:1][0].float()[None]).shape[-1] == 112


def test_primus_normalises_the_channels_of_every_pixel():
    stage = build("primus", embed_dim=64).decoder.patch_decoder[0]
    doubled = stage[0](torch.rand(2, 64, 3, 5))
    expected = nn.functional.layer_norm(doubled.movedim(1, -1), (32,), eps=1e-6).movedim(-1, 1)
    assert torch.allclose(stage[1](doubled), expected, atol=1e-5)


def test_primus_starts_from_hes_initialisation():
    decoder = build("primus", embed_dim=256, num_classes=8).decoder
    for layer in (decoder.projection, decoder.patch_decoder[0][0]):
        # PyTorch's fan-in of a transposed convolution counts its output channels
        fan_in = nn.init._calculate_fan_in_and_fan_out(layer.weight)[0]
        expected = (2 / (1 + 0.01**2) / fan_in) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.05) and not layer.bias.any()


def test_primus_interaction_indices_are_the_feature_layers():
    assert build("primus", multiscale=True, interaction_indices=[1, 3]).feature_indices == [1, 3]
    # as when plans are read: both are stored
    assert build("primus", multiscale=True, interaction_indices=[1, 3], out_layers=[1, 3]).feature_indices == [1, 3]
    with pytest.raises(ValueError, match=r"interaction_indices \[1, 3\] and out_layers \[0, 3\] differ"):
        build("primus", multiscale=True, interaction_indices=[1, 3], out_layers=[0, 3])


# --- Dino U-Net -----------------------------------------------------------------------------------------------------

NARROW = {"features_per_stage": [8, 12, 16, 20], "rank": 8}


def test_dino_unet_has_about_as_many_parameters_as_the_paper_says():
    """The readme of the paper: about 5, 11 and 18 million with the adapter; what a projection holds is not all told."""
    for size, millions in (("small", 5), ("base", 11), ("large", 18)):
        with torch.device("meta"):
            model = build("model_dinounet", 4, backbone_size=size)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6 == pytest.approx(millions, rel=0.26)
        assert model.feature_indices == ([4, 11, 17, 23] if size == "large" else [2, 5, 8, 11])


def test_dino_unet_gives_nnunets_decoder_maps_at_strides_1_to_8():
    model = build("model_dinounet", **NARROW)
    assert isinstance(model.decoder, UNetDecoder)
    given = []
    model.decoder.register_forward_pre_hook(lambda _module, inputs: given.extend(inputs[0]))
    model(torch.rand(1, 3, 61, 96))
    assert [tuple(x.shape[1:]) for x in given] == [(8, 64, 96), (12, 32, 48), (16, 16, 24), (20, 8, 12)]


def test_dino_unet_upsamples_by_one_transposed_convolution_applied_twice():
    up = build("model_dinounet", **NARROW).upsampling[0]
    once = nn.ConvTranspose2d(8, 8, 2, stride=2)
    once.load_state_dict(up.state_dict())
    x = torch.rand(1, 8, 3, 5)
    assert torch.equal(up(x), once(once(x)))


def test_the_projection_modulates_what_is_a_scales_own_by_what_all_share():
    projection = FidelityAwareProjection(6, [8, 16], 4).double()
    maps = [torch.rand(2, 6, 5, 7, dtype=torch.float64), torch.rand(2, 6, 3, 4, dtype=torch.float64)]
    (scale, other), (x, _) = projection.scales, maps
    first, second = projection(maps)
    assert (first.shape, second.shape) == ((2, 8, 5, 7), (2, 16, 3, 4))
    gamma, beta = scale.modulation(projection.shared(x)).chunk(2, dim=1)
    assert torch.allclose(first, scale.refinement((1 + gamma) * scale.specific(x) + beta), atol=1e-12)
    nn.init.normal_(projection.shared.weight)
    assert all((before != after).any() for before, after in zip((first, second), projection(maps), strict=True))
    nn.init.zeros_(other.modulation.weight), nn.init.zeros_(other.modulation.bias)
    assert torch.allclose(projection(maps)[1], other.refinement(other.specific(maps[1])), atol=1e-12)


def test_the_refinement_of_the_projection_weights_channels_by_the_whole_map():
    refinement = FidelityAwareProjection(6, [32], 4).scales[0].refinement
    x = torch.rand(1, 4, 5, 5)
    excite = refinement.body[-1].excite
    nn.init.zeros_(excite.weight), nn.init.constant_(excite.bias, -100.0)  # no channel passes
    assert torch.allclose(refinement(x), refinement.shortcut(x)) and excite.in_channels == 2


@pytest.mark.parametrize("size", [(64, 96), (65, 67), (97, 131)])
def test_auxiliary_outputs_have_the_sizes_of_nnunets_targets(size: tuple[int, int]):
    model = build("model_dinounet", auxiliary_outputs=True, deep_supervision=True, **NARROW)
    image = torch.rand(1, 3, *size)
    outputs = model(image)
    downsample = DownsampleSegForDSTransform(model.deep_supervision_scales)
    targets = downsample(segmentation=torch.zeros(1, *size))["segmentation"]
    assert [x.shape[-2:] for x in outputs] == [x.shape[-2:] for x in targets] and len(outputs) == 3
    model.decoder.deep_supervision = False  # as nnU-Net's trainer does
    assert torch.equal(model(image), outputs[0])


def test_auxiliary_outputs_begin_at_the_corner_of_the_image():
    model = build("model_dinounet", auxiliary_outputs=True, deep_supervision=True, **NARROW)
    padded = [torch.rand(1, 3, 128 // step, 160 // step) for step in (1, 2, 4)]
    for whole, cropped in zip(padded, model.crop(padded, (97, 131)), strict=True):
        assert torch.equal(cropped, whole[..., : cropped.shape[-2], : cropped.shape[-1]])
        assert cropped.shape[-2] / whole.shape[-2] == pytest.approx(97 / 128, abs=0.02)


def test_dino_unet_takes_its_widths_from_the_plans():
    assert resolve_widths({"features_per_stage": "plans"}, 2, False, [16, 32, 64, 128, 256]) == {
        "features_per_stage": [16, 32, 64, 128]
    }
    assert resolve_widths({"features_per_stage": [8] * 4}, 2, False, None) == {"features_per_stage": [8] * 4}
    for planned in (None, [32, 64, 128]):
        with pytest.raises(ValueError, match="describe no U-Net of at least 4 stages"):
            resolve_widths({"features_per_stage": "plans"}, 2, False, planned)


# --- linear ---------------------------------------------------------------------------------------------------------


def test_the_linear_probe_is_linear_in_the_features():
    model = build("model_linear").double()
    assert isinstance(model, LinearSegmentationModel) and model.feature_indices == [3]
    (a,), (b,) = maps(model), maps(model)
    zero = model.head(torch.zeros_like(a))
    assert torch.allclose(model.head(a + b), model.head(a) + model.head(b) - zero, atol=1e-12)
    assert build("model_linear", out_layers=[1, 3]).head[-1].in_channels == 2 * 96


# --- options that cannot be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "options", "told"),
    [
        (
            "model_segformer",
            {"upsampling": "nearest"},
            "upsampling must be bilinear, progressive, full, found 'nearest'",
        ),
        ("model_segformer", {"decoder_hidden_size": 0}, "decoder_hidden_size must be at least 1, found 0"),
        ("model_segformer", {"decoder_dropout": 1}, r"decoder_dropout must be in \[0, 1\), found 1"),
        ("model_dpt", {"readout_type": "cls"}, "readout_type must be project, add, ignore, found 'cls'"),
        ("model_dpt", {"out_layers": [1, 3]}, r"DPT needs four feature layers, model.out_layers names \[1, 3\]"),
        ("model_dpt", {"use_batch_norm_in_fusion_residual": "auto"}, "must be true or false .*found 'auto'"),
        ("model_dpt", {"fusion_hidden_size": 0}, "fusion_hidden_size must be at least 1, found 0"),
        ("model_unetr", {"upsample_mode": "nearest"}, "upsample_mode must be deconv, bilinear, found 'nearest'"),
        (
            "model_unetr",
            {"decoder_channels": [8, 8]},
            r"decoder_channels must be five positive whole numbers, found \[8, 8\]",
        ),
        (
            "model_unetr",
            {"decoder_channels": [8.5, 8, 8, 8, 8]},
            r"five positive whole numbers, found \[8.5, 8, 8, 8, 8\]",
        ),
        ("model_unetr", {"decoder_channels": ["a", 8, 8, 8, 8]}, "five positive whole numbers"),
        ("model_unetr", {"negative_slope": -0.1}, r"negative_slope must be in \[0, 1\], found -0.1"),
        ("model_unetr", {"negative_slope": float("nan")}, r"negative_slope must be in \[0, 1\], found nan"),
        ("primus", {"interaction_indices": ["a"]}, r"\['a'\] must be ascending block indices from 0 to 3"),
        ("model_unetr", {"out_layers": [3]}, "UNETR needs four feature layers"),
        ("primus", {"patch_embed_size": 14}, "patch_embed_size must be a power of two, found 14"),
        ("primus", {"patch_embed_size": 0}, "patch_embed_size must be a power of two, found 0"),
        ("primus", {"embed_dim": 8}, "embed_dim is too small: the decoder has 8 channels"),
        (
            "model_dinounet",
            {"features_per_stage": [8, 8, 8]},
            r"must be four positive whole numbers.*found \[8, 8, 8\]",
        ),
        ("model_dinounet", {"features_per_stage": "plans"}, r"must be four positive whole numbers.*found 'plans'"),
        ("model_dinounet", {"rank": 0}, "rank must be at least 1, found 0"),
        ("model_dinounet", {"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\), found 1.0"),
        ("model_dinounet", {"out_layers": [3]}, "Dino U-Net's adapter needs four feature layers"),
        ("model_dinounet", {"deep_supervision": True}, "deep_supervision must be false"),
        ("model_linear", {"dropout": -0.1}, r"dropout must be in \[0, 1\), found -0.1"),
    ],
)
def test_impossible_options_are_told(module: str, options: dict, told: str):
    with pytest.raises(ValueError, match=told):
        build(module, **options)


def test_unknown_keywords_are_type_errors():
    for module in ("model_segformer", "model_dpt", "model_unetr", "primus", "model_linear", "model_dinounet"):
        with pytest.raises(TypeError, match="no_such_option"):
            build(module, no_such_option=1)


def test_submodules_have_the_documented_names():
    dpt, segformer = build("model_dpt", fusion_hidden_size=16), build("model_segformer", decoder_hidden_size=8)
    assert isinstance(dpt, DPTSegmentationModel) and {"neck", "head"} <= dict(dpt.named_children()).keys()
    assert "decode_head" in dict(segformer.named_children())
    assert isinstance(build("model_unetr", decoder_channels=[8] * 5), UNETRSegmentationModel)
