"""Loading the weights of segmentors: ours, the reference's, and files that do not fit."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_segmentors import segmentor, vit
from torch import Tensor, nn

from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.models import FeatureDecoder
from dinov3.eval.segmentation.segmentor_checkpoint import load_segmentor
from dinov3.models.lora import add_lora

State = dict[str, Tensor]
CLASS_LAYERS = {"linear": "segmentation_model.1.conv.", "m2f": "segmentation_model.1.predictor.class_embed."}


def trained(decoder_type: str = "m2f", backbone: nn.Module | None = None, **options: int) -> FeatureDecoder:
    """A segmentor whose weights and buffers are unlike those of a new one."""
    model = segmentor(decoder_type, backbone, **options)
    torch.manual_seed(5)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(0.1 * torch.rand_like(value) if value.is_floating_point() else 1)
    return model


def adapted() -> nn.Module:
    return add_lora(vit(), r=2, lora_alpha=4, lora_dropout=0.0, target_modules=["qkv"])


def head_of(state: State) -> State:
    """What the reference's file of a head must hold: all names without "backbone"."""
    return {name: value.clone() for name, value in state.items() if "backbone" not in name}


def renamed(rename: Callable[[str], str]) -> Callable[[State], State]:
    return lambda state: {rename(name): value for name, value in state.items()}


def differing(model: FeatureDecoder, state: State) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}


def refusal(model: FeatureDecoder, path: Path, **options: bool) -> str:
    with pytest.raises(ExperimentError) as error:
        load_segmentor(model, path, **options)
    message = str(error.value)
    assert str(path) in message and "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("decoder_type", ["linear", "m2f"])
def test_a_checkpoint_of_ours(decoder_type: str, tmp_path: Path):
    source = trained(decoder_type)
    optimizer = torch.optim.AdamW(source.parameters())
    state = {"model": source.state_dict(), "optimizer": optimizer.state_dict(), "step": 7, "best": 0.5, "config": {}}
    torch.save(state, tmp_path / "checkpoint_0000007.pth")
    model = segmentor(decoder_type)
    assert differing(model, source.state_dict())
    line = load_segmentor(model, tmp_path / "checkpoint_0000007.pth")
    assert not differing(model, source.state_dict())
    assert str(tmp_path / "checkpoint_0000007.pth") in line and "\n" not in line and "ViT" not in line
    assert f"{len(source.state_dict())} tensors" in line


PREFIXES = {
    "as it is": str,
    "module": lambda name: f"module.{name}",
    "compiled": lambda name: f"module._orig_mod.{name}",
    "bare": lambda name: name.removeprefix("segmentation_model."),
    "bare module": lambda name: name.replace("segmentation_model.", "module."),
}


@pytest.mark.parametrize("rename", PREFIXES.values(), ids=PREFIXES.keys())
def test_the_references_file_of_a_head(rename: Callable[[str], str], tmp_path: Path):
    source, model = trained(), segmentor()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(renamed(rename)(head_of(source.state_dict())), tmp_path / "head.pth")
    line = load_segmentor(model, tmp_path / "head.pth")
    assert differing(model, before) == set(head_of(before))
    assert not differing(model, source.state_dict()) & set(head_of(before))
    assert "the ViT stays as it is" in line


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_a_head_in_a_wrapper_and_in_other_formats(wrapper: str, tmp_path: Path):
    state = head_of(trained().state_dict())
    torch.save({wrapper: state, "epoch": 3}, tmp_path / "wrapped.pth")
    save_file(state, tmp_path / "head.safetensors")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("wrapped.pth", "head.safetensors", "old.pth"):
        model = segmentor()
        load_segmentor(model, tmp_path / name)
        assert not differing(model, {**model.state_dict(), **state})


def test_a_linear_head_alone(tmp_path: Path):
    source, model = trained("linear"), segmentor("linear")
    torch.save({n: v for n, v in source.state_dict().items() if ".1." in n[:21]}, tmp_path / "head.pth")
    load_segmentor(model, tmp_path / "head.pth")
    assert not {name for name in differing(model, source.state_dict()) if not name.startswith("segmentation_model.0.")}


@pytest.mark.parametrize("decoder_type", ["linear", "m2f"])
def test_a_whole_segmentor_in_the_references_names(decoder_type: str, tmp_path: Path):
    source, model = trained(decoder_type), segmentor(decoder_type)
    part = "backbone" if decoder_type == "m2f" else "feature_model"
    prefix = f"segmentation_model.0.{part}."
    state = {name: value for name, value in source.state_dict().items() if not name.startswith(prefix)}
    vit_state = getattr(source.segmentation_model[0], part).to_reference_state_dict()
    assert "storage_tokens" in vit_state and "blocks.0.attn.qkv.bias_mask" in vit_state
    state |= {f"{prefix}{name}": value for name, value in vit_state.items()}
    torch.save({"model": state}, tmp_path / "segmentor.pth")
    load_segmentor(model, tmp_path / "segmentor.pth")
    assert not differing(model, source.state_dict())


@pytest.mark.parametrize("decoder_type", ["linear", "m2f"])
def test_another_number_of_classes(decoder_type: str, tmp_path: Path):
    source, model = trained(decoder_type), segmentor(decoder_type, num_classes=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(source.state_dict(), tmp_path / "x.pth")
    message = refusal(model, tmp_path / "x.pth")
    assert "3 classes" in message and "5" in message and "decoder_head.num_classes" in message
    assert not differing(model, before)
    line = load_segmentor(model, tmp_path / "x.pth", allow_other_classes=True)
    assert "class layer stays as it is" in line and "3 classes" in line
    layer = CLASS_LAYERS[decoder_type]
    assert before.keys() - differing(model, before) >= {f"{layer}weight", f"{layer}bias"}
    shared = {name: value for name, value in source.state_dict().items() if not name.startswith(layer)}
    assert not differing(model, {**before, **shared})
    # the same number: the class layer is loaded
    same = segmentor(decoder_type)
    assert "class layer" not in load_segmentor(same, tmp_path / "x.pth", allow_other_classes=True)
    assert not differing(same, source.state_dict())


def test_adapters(tmp_path: Path):
    plain, with_adapters = trained("linear"), trained("linear", adapted(), lora_enabled=True)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    torch.save(with_adapters.state_dict(), tmp_path / "lora.pth")
    message = refusal(segmentor("linear"), tmp_path / "lora.pth")
    assert "LoRA" in message and "lora.enabled=true" in message
    model = segmentor("linear", adapted(), lora_enabled=True)
    message = refusal(model, tmp_path / "plain.pth")
    assert "LoRA" in message and "lora.enabled=false" in message
    load_segmentor(model, tmp_path / "lora.pth")
    assert not differing(model, with_adapters.state_dict())


def test_heads_and_adapters_without_the_vit(tmp_path: Path):
    source, model = trained("m2f", adapted(), lora_enabled=True), segmentor("m2f", adapted(), lora_enabled=True)
    state = source.state_dict()
    chosen = {name: value for name, value in state.items() if "backbone" not in name or "lora_" in name}
    assert any("lora_" in name for name in chosen)
    torch.save(chosen, tmp_path / "adapters.pth")
    load_segmentor(model, tmp_path / "adapters.pth")
    assert not differing(model, state) & chosen.keys()
    torch.save(head_of(state), tmp_path / "head.pth")
    load_segmentor(model, tmp_path / "head.pth")
    chosen.pop(next(name for name in chosen if "lora_" in name))
    torch.save(chosen, tmp_path / "incomplete.pth")
    assert "1 missing tensor: " in refusal(model, tmp_path / "incomplete.pth")


def test_files_that_do_not_fit(tmp_path: Path):
    path = tmp_path / "x.pth"
    whole = trained().state_dict()

    def saved(state: object) -> Path:
        torch.save(state, path)
        return path

    message = refusal(segmentor("linear"), saved(whole))
    assert "type m2f, expected linear (decoder_head.type)" in message
    assert "type linear, expected m2f" in refusal(segmentor(), saved(trained("linear").state_dict()))
    assert "it holds no decoder" in refusal(segmentor(), saved(vit().to_reference_state_dict()))
    assert "1 missing tensor: segmentation_model.0.level_embed" in refusal(
        segmentor(), saved({name: value for name, value in whole.items() if name != "segmentation_model.0.level_embed"})
    )
    assert "1 unknown tensor: segmentation_model.1.more" in refusal(
        segmentor(), saved({**whole, "segmentation_model.1.more": torch.zeros(2)})
    )
    message = refusal(segmentor(hidden_dim=64), saved(whole))
    assert re.search(
        r"\d+ other shapes, such as segmentation_model\.1\.\S+ is \(.*\) in the file, \(.*\) in the", message
    )
    assert "query_feat.weight is (7, 32) in the file, (9, 32)" in refusal(segmentor(num_queries=9), saved(whole))
    # a ViT in part: of another depth
    shallow = {name: value for name, value in whole.items() if ".blocks.3." not in name}
    assert "missing tensors, such as segmentation_model.0.backbone.blocks.3" in refusal(segmentor(), saved(shallow))
    message = refusal(segmentor(backbone=vit(qkv_bias=False)), saved(_in_reference_names(trained())))
    assert "query bias" in message


def _in_reference_names(model: FeatureDecoder) -> State:
    backbone = model.segmentation_model[0].backbone.to_reference_state_dict()
    return head_of(model.state_dict()) | {f"segmentation_model.0.backbone.{n}": v for n, v in backbone.items()}


def test_files_that_cannot_be_read(tmp_path: Path):
    model = segmentor("linear")
    assert "not found" in refusal(model, tmp_path / "none.pth")
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 not much")
    refusal(model, tmp_path / "damaged.pth")
    torch.save({"optimizer": {}, "step": 3}, tmp_path / "other.pth")
    assert "no dictionary of tensors" in refusal(model, tmp_path / "other.pth")
    torch.save({"model": model.state_dict(), "code": Path}, tmp_path / "code.pth")
    assert "could run code" in refusal(model, tmp_path / "code.pth")
