"""How callers build a model, what they ask it for, and LoRA switched on and off by hand."""

import inspect
import logging
from importlib import import_module

import pytest
import torch
from torch import nn

from nnunetv2.experiment.decoder_options import MASK2FORMER, packaged_decoders
from nnunetv2.model.backbone import create_backbone, weights_follow
from nnunetv2.model.lora import disable_lora, enable_lora
from nnunetv2.model.model_dpt import DPTSegmentationModel
from nnunetv2.model.model_eomt import EoMTSegmentationModel
from nnunetv2.model.model_segformer import SegFormerSegmentationModel, create_segformer_model
from nnunetv2.model.model_upernet import UperNetSegmentationModel
from nnunetv2.model.segmentation_model import ViTSegmentationModel

EOMT, PMT = "nnunetv2.model.model_eomt", "nnunetv2.model.model_pmt"
MODULES = {*packaged_decoders(), MASK2FORMER, EOMT, PMT}
FACTORIES = {
    **{module: import_module(module).create_segmentation_model for module in sorted(MODULES)},
    "create_segformer_model": create_segformer_model,
}
CLASSES = {
    name: member
    for module in sorted(MODULES)
    for name, member in vars(import_module(module)).items()
    if inspect.isclass(member)
    and issubclass(member, ViTSegmentationModel)
    and member.__module__ == module
    and name == member.__name__  # not the factory, which is a class too
}
every_factory = pytest.mark.parametrize("create", FACTORIES.values(), ids=FACTORIES)
PUBLISHED_ORDER = ["backbone_name", "backbone_size", "num_classes"]
PUBLISHED_BACKBONE_ORDER = [
    *PUBLISHED_ORDER, "checkpoint_path", "freeze_backbone", "use_lora", "lora_rank", "lora_alpha", "lora_dropout",
    "lora_target_modules",
]  # fmt: skip


@pytest.fixture
def on_meta():
    with torch.device("meta"), weights_follow():
        yield


@pytest.mark.integration
@every_factory
def test_without_arguments_it_is_dinov3_large_frozen_with_one_class(create, on_meta):
    model = create()
    assert model.embed_dim == 1024 and len(model.backbone.blocks) == 24 and model.num_classes == 1
    assert model.mode == ("full" if create is EoMTSegmentationModel else "frozen")
    assert model.backbone_patch_size == model.patch_size == 16


@every_factory
def test_arguments_are_taken_in_the_published_order_and_by_keyword(create, on_meta):
    by_place = create("dinov2", "tiny", 3, None, False, True, 4, 16.0, 0.0, ["proj"])
    by_keyword = create(
        num_classes=3,
        backbone_size="tiny",
        backbone_name="dinov2",
        use_lora=True,
        lora_rank=4,
        lora_target_modules=["proj"],
    )
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (by_place, by_keyword)]
    assert shapes[0] == shapes[1] and by_place.num_classes == 3 and by_place.backbone_patch_size == 14
    adapters = {name: shape for name, shape in shapes[0].items() if "lora_A" in name}
    assert len(adapters) == 4 and all(".proj." in name and shape[0] == 4 for name, shape in adapters.items())


@pytest.mark.parametrize("called", [*FACTORIES.values(), *CLASSES.values()], ids=[*FACTORIES, *CLASSES])
def test_signatures_tell_the_published_order(called):
    parameters = inspect.signature(called).parameters
    assert list(parameters)[:3] == PUBLISHED_ORDER
    assert [parameters[name].default for name in PUBLISHED_ORDER] == ["dinov3", "large", 1]
    assert len(CLASSES) == 10


def test_the_backbones_options_keep_the_published_order():
    assert list(inspect.signature(ViTSegmentationModel).parameters)[: len(PUBLISHED_BACKBONE_ORDER)] == (
        PUBLISHED_BACKBONE_ORDER
    )


@pytest.mark.parametrize("model_class", [SegFormerSegmentationModel, UperNetSegmentationModel])
def test_a_class_is_called_as_its_factory(model_class, on_meta):
    model = model_class("dinov2", "tiny", 5, None, False)
    assert (model.num_classes, model.backbone_patch_size, model.mode) == (5, 14, "full")


def test_widths_are_attributes(on_meta):
    assert create_segformer_model(backbone_size="tiny", decoder_hidden_size=24).decoder_hidden_size == 24
    assert DPTSegmentationModel(backbone_size="tiny", fusion_hidden_size=24).fusion_hidden_size == 24


# --- LoRA -----------------------------------------------------------------------------------------------------------


def model_for(**options) -> SegFormerSegmentationModel:
    torch.manual_seed(0)
    return create_segformer_model(backbone_size="tiny", decoder_hidden_size=16, **options).eval()


def state_of(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("freeze_backbone", [True, False])
def test_without_lora_there_is_nothing_to_disable(freeze_backbone: bool, caplog: pytest.LogCaptureFixture):
    model = model_for(freeze_backbone=freeze_backbone)
    before, backbone, mode = state_of(model), model.backbone, model.mode
    model.disable_lora()
    assert (state_of(model), model.backbone, model.mode) == (before, backbone, mode)
    assert "LoRA is not enabled; disable_lora() has no effect" in caplog.text
    assert disable_lora(backbone) is backbone


def test_lora_is_enabled_by_the_keywords_of_the_factories(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    keywords = {"rank": 4, "lora_alpha": 8.0, "lora_dropout": 0.25, "target_modules": ["qkv", "proj"]}
    model = model_for()
    model.enable_lora(**keywords)
    backbone = enable_lora(create_backbone("dinov3", "tiny")[0], **keywords)
    assert state_of(model.backbone) == state_of(backbone) and model.mode == "lora"
    for adapted in (model.backbone, backbone):
        layer = adapted.get_base_model().blocks[0].attn.proj
        assert layer.lora_A["default"].out_features == 4 and layer.scaling["default"] == 8.0 / 4
        assert layer.lora_dropout["default"].p == 0.25
    assert all(
        trains == ("lora_" in name or not name.startswith("backbone.")) for name, trains in state_of(model).items()
    )
    # 4 blocks of rank 4: (96 + 288) on `qkv`, (96 + 96) on `proj`
    number = 4 * 4 * (96 + 288 + 96 + 96)
    assert caplog.text.count(f"LoRA on proj, qkv: {number:,} of the backbone's") == 2


def test_what_is_reported_to_train_leaves_out_blocks_that_are_never_run(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    model = model_for(use_lora=True, out_layers=[0, 1])
    trainable = sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)
    assert trainable == 2 * 8 * (96 + 288) and f"LoRA on qkv: {trainable:,} of" in caplog.text


def test_lora_enabled_by_hand_and_disabled_again():
    model = model_for()
    names = state_of(model)
    image = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        before = model(image)
        model.enable_lora()
        assert torch.equal(model(image), before)  # the second matrix of an adapter starts at zero
        model.disable_lora()
        assert model.mode == "frozen" and state_of(model) == names
        assert torch.allclose(model(image), before, atol=1e-6)


def test_lora_is_enabled_once():
    model = model_for(use_lora=True)
    before, backbone = state_of(model), model.backbone
    for enable in (model.enable_lora, lambda: enable_lora(model.backbone)):
        with pytest.raises(ValueError, match=r"^LoRA is already enabled; call disable_lora\(\) first$"):
            enable()
    assert (state_of(model), model.backbone, model.mode) == (before, backbone, "lora")
    model.disable_lora()
    model.enable_lora()
    assert state_of(model) == before


@pytest.mark.parametrize("training", [True, False])
def test_a_frozen_backbone_with_lora_is_in_the_mode_of_the_model(training: bool):
    model = model_for().train(training)
    assert not any(module.training for module in model.backbone.modules())
    model.enable_lora()
    assert all(module.training == training for module in model.modules())
