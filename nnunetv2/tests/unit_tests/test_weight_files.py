"""Weight files of every origin: each raw layout arrives tensor by tensor, and what almost fits is refused by name."""

import argparse
import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_weights import (
    ORIGINS,
    Origin,
    RawFile,
    meddinov3,
    meta_dinov2,
    meta_dinov3,
    origin,
    prefixed,
    retfound_mae,
    timm_file,
)

from dinov3.models.timm_dinov3 import is_dinov3, match_reference
from dinov3.weights.fitting import fit_weights
from dinov3.weights.layouts import LAYOUTS, read_weights
from dinov3.weights.reading import read_checkpoint
from nnunetv2.model.backbone import FAMILIES, create_backbone, get_vit_features, load_backbone_weights
from nnunetv2.model.lora import enable_lora


def build_target(raw: RawFile, path: Path) -> torch.nn.Module:
    torch.manual_seed(5)
    if raw.build is None:
        return create_backbone(raw.family, "tiny", checkpoint_path=path)[0].eval()
    model = raw.build()
    if is_dinov3(model):
        match_reference(model)
    load_backbone_weights(model, path)
    return model.eval()


def image_for(model: torch.nn.Module) -> torch.Tensor:
    """An image on whose grid no network resamples its positions, so that the features must be the same."""
    generator = torch.Generator().manual_seed(0)
    has_positions = getattr(model, "pos_embed", None) is not None
    side = model.patch_embed.img_size[0] if has_positions else 48
    return torch.rand(1, 3, side, side, generator=generator)


@pytest.mark.parametrize("source", ORIGINS, ids=str)
def test_every_layout_gives_the_features_of_its_source(source: Origin, tmp_path: Path):
    raw = source.make()
    model = build_target(raw, raw.save(tmp_path / source.file_name))
    image = image_for(model)
    with torch.no_grad():
        expected, found = raw.last_features(image), get_vit_features(model, image, [3])[0]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4), (found - expected).abs().max()


@pytest.mark.parametrize("source", ORIGINS, ids=str)
def test_every_tensor_of_the_backbone_arrives(source: Origin, tmp_path: Path):
    raw = source.make()
    path = raw.save(tmp_path / source.file_name)
    model = build_target(raw, path)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(torch.nan)
    report = load_backbone_weights(model, path)
    untouched = {name for name, value in model.state_dict().items() if value.isnan().any()}
    assert untouched == ({"rope.periods"} if source.layout == "DINOv3 (Hugging Face)" else set())
    count = len(model.state_dict())
    assert f"{count - len(untouched)} of {count} tensors" in report


@pytest.mark.parametrize("source", ORIGINS, ids=str)
def test_every_layout_is_recognised(source: Origin, tmp_path: Path):
    assert read_weights(source.make().save(tmp_path / source.file_name)).layout.name == source.layout


def test_every_layout_is_tried():
    assert {layout.name for layout in LAYOUTS} == {source.layout for source in ORIGINS}


def test_the_content_not_the_ending_tells_the_container(tmp_path: Path):
    raw = timm_file("dinov3")
    saved = raw.save(tmp_path / "weights.safetensors").rename(tmp_path / "weights.pth")
    assert read_weights(saved).tensors.keys() == raw.content.keys()


def test_weights_arrive_below_adapters(tmp_path: Path):
    raw = meddinov3()
    path = raw.save(tmp_path / "meddinov3.pth")
    model = enable_lora(create_backbone("dinov3", "tiny")[0]).eval()
    load_backbone_weights(model, path)
    image = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        assert torch.allclose(get_vit_features(model, image, [3])[0], raw.last_features(image), atol=1e-5)


def test_the_report_tells_what_was_done(tmp_path: Path):
    raw = retfound_mae()
    raw.content["model"]["pos_embed"] = torch.rand(1, 1 + 10 * 10, 96)
    model = create_backbone("retfound", "tiny", in_chans=4)[0]
    report = load_backbone_weights(model, raw.save(tmp_path / "retfound.pth"))
    expected = len(model.state_dict())
    assert f"{expected} of {expected} tensors of the backbone from {tmp_path}/retfound.pth" in report
    assert "layout MAE (RETFound), under 'model'" in report
    assert "positions resampled from 10 × 10 to 14 × 14" in report
    assert "patch embedding adapted from 3 to 4 input channels" in report
    assert "4 other tensors left aside: mask_token, decoder_pos_embed, decoder_embed, decoder_blocks" in report


def test_a_fine_tuned_norm_is_taken_knowingly(tmp_path: Path):
    path = origin("RETFound (MAE), fine-tuned").make().save(tmp_path / "finetuned.pth")
    assert "WARNING: its fc_norm" in load_backbone_weights(create_backbone("retfound", "tiny")[0], path)
    assert "WARNING" not in load_backbone_weights(
        create_backbone("retfound", "tiny")[0], retfound_mae().save(tmp_path / "retfound.pth")
    )


# --- what almost fits ---------------------------------------------------------------------------------------------


def trunk_of(raw: RawFile) -> dict[str, torch.Tensor]:
    return next(
        (raw.content[key] for key in ("teacher", "model", "visionfm_state_dict") if key in raw.content), raw.content
    )


def last_with(state: dict, part: str) -> str:
    return [name for name in state if part in name][-1]


@pytest.mark.parametrize("source", ORIGINS, ids=str)
def test_a_missing_tensor_is_named(source: Origin, tmp_path: Path):
    raw = source.make()
    path = raw.save(tmp_path / source.file_name)
    model = build_target(raw, path)
    for part in ("norm1.weight", "mlp", "att"):
        names = [n for n in trunk_of(raw) if part in n and "head" not in n and "decoder" not in n and "bias" not in n]
        tensor = trunk_of(raw).pop(names[-1])
        raw.save(path)
        with pytest.raises(ValueError, match=rf"{source.file_name} .*1 missing tensor: blocks\.(3|11)\."):
            load_backbone_weights(model, path)
        trunk_of(raw)[names[-1]] = tensor


@pytest.mark.parametrize("source", ORIGINS, ids=str)
def test_a_tensor_of_another_shape_is_named(source: Origin, tmp_path: Path):
    raw = source.make()
    path = raw.save(tmp_path / source.file_name)
    model = build_target(raw, path)
    name = last_with({n: v for n, v in trunk_of(raw).items() if "decoder" not in n}, "norm2.weight")
    trunk_of(raw)[name] = torch.zeros(7)
    raw.save(path)
    with pytest.raises(
        ValueError, match=r"1 other shape: blocks\.(3|11)\.norm2\.weight is \(7,\) in the file, \((96|192),\)"
    ):
        load_backbone_weights(model, path)


@pytest.mark.parametrize("source", ORIGINS, ids=str)
def test_an_unknown_tensor_is_named(source: Origin, tmp_path: Path):
    raw = source.make()
    path = raw.save(tmp_path / source.file_name)
    model = build_target(raw, path)
    trunk = trunk_of(raw)
    prefix = next((p for p in ("module.", "backbone.") if all(name.startswith(p) for name in trunk)), "")
    trunk[f"{prefix}extra.weight"] = torch.zeros(1)
    raw.save(path)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"1 unknown tensor: extra\.weight"):
        load_backbone_weights(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("bias", ["q_proj.bias", "v_proj.bias"])
def test_one_missing_bias_of_hugging_face_is_no_zero(bias: str, tmp_path: Path):
    raw = origin("DINOv3, Hugging Face").make()
    raw.content.pop(last_with(raw.content, bias))
    with pytest.raises(ValueError, match=rf"1 missing tensor: blocks\.3\.attn\.{bias}"):
        read_weights(raw.save(tmp_path / "dinov3.safetensors"))


def test_one_missing_query_bias_of_timm_is_no_zero(tmp_path: Path):
    model = create_backbone("dinov3", "tiny", query_bias=True)[0]
    state = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    state.pop("blocks.2.attn.q_bias")
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"1 missing tensor: blocks\.2\.attn\.q_bias"):
        load_backbone_weights(model, tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "name", ["extra.rope.weight", "blocks.0.rope_q", "foo.periods", "local_cls_norm_extra", "blocks.9.attn.qkv.bias"]
)
def test_unknown_tensors_of_meta_are_not_dropped(name: str, tmp_path: Path):
    raw = meta_dinov3()
    raw.content[name] = torch.zeros(3 * 96)
    with pytest.raises(ValueError, match=r"unknown tensor"):
        load_backbone_weights(create_backbone("dinov3", "tiny")[0], raw.save(tmp_path / "x.pth"))


def test_unknown_tensors_that_timm_drops_are_not_dropped(tmp_path: Path):
    raw = timm_file("retfound")
    raw.content["pre_logits.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 unknown tensor: pre_logits\.weight"):
        load_backbone_weights(create_backbone("retfound", "tiny")[0], raw.save(tmp_path / "x.pth"))


def test_one_missing_zero_bias_of_meta_is_named(tmp_path: Path):
    raw = meta_dinov3()
    del raw.content["blocks.2.attn.qkv.bias"]
    with pytest.raises(ValueError, match=r"1 missing tensor: blocks\.2\.attn\.qkv\.bias"):
        load_backbone_weights(create_backbone("dinov3", "tiny")[0], raw.save(tmp_path / "x.pth"))


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_of_another_size_are_not_resampled(family: str, tmp_path: Path):
    raw = timm_file(family)
    raw.content["patch_embed.proj.weight"] = torch.rand(96, 3, 8, 8)
    with pytest.raises(
        ValueError, match=r"1 other shape: patch_embed\.proj\.weight is \(96, 3, 8, 8\) in the file, \(96"
    ):
        load_backbone_weights(create_backbone(family, "tiny")[0], raw.save(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.to(torch.int64), r"no dense array of floats: 'blocks\.3\.norm1\.weight' \(strided, int64, cpu\)"),
        (lambda t: t.to_sparse(), r"no dense array of floats: 'blocks\.3\.norm1\.weight' \(sparse_coo, float32, cpu\)"),
        (lambda t: t.to("meta"), r"no dense array of floats: 'blocks\.3\.norm1\.weight' \(strided, float32, meta\)"),
        (lambda t: t * torch.nan, r"1 with values that are not finite, such as blocks\.3\.norm1\.weight"),
        (lambda t: t.index_fill(0, torch.tensor(5), -torch.inf), r"1 with values that are not finite, such as blocks"),
        (lambda t: t[0], r"1 other shape: blocks\.3\.norm1\.weight is \(\) in the file, \(96,\) in the network"),
    ],
)
def test_tensors_that_are_no_weights_are_named(change, told: str, tmp_path: Path):
    raw = timm_file("retfound")
    raw.content["blocks.3.norm1.weight"] = change(raw.content["blocks.3.norm1.weight"])
    path = tmp_path / "x.pth"
    torch.save(raw.content, path)
    with pytest.raises(ValueError, match=told):
        load_backbone_weights(create_backbone("retfound", "tiny")[0], path)


def test_a_compiled_network_is_read(tmp_path: Path):
    raw = timm_file("visionfm")
    torch.save({"model": prefixed("_orig_mod.", raw.content)}, tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth").tensors.keys() == raw.content.keys()


def test_a_tensor_beside_the_trunk_that_is_no_known_head_is_named(tmp_path: Path):
    raw = meddinov3()
    raw.content["teacher"]["segmentation.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 unknown tensor: segmentation\.weight"):
        load_backbone_weights(create_backbone("dinov3", "tiny")[0], raw.save(tmp_path / "x.pth"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_another_architecture_is_refused(family: str, tmp_path: Path):
    model = create_backbone(family, "tiny")[0]
    other = meta_dinov2() if family == "dinov3" else meddinov3()
    with pytest.raises(ValueError, match=r"other\.pth .*does not fit the backbone: these are not the weights of a"):
        load_backbone_weights(model, other.save(tmp_path / "other.pth"))


def test_a_smaller_network_is_refused(tmp_path: Path):
    path = meta_dinov2().save(tmp_path / "tiny.pth")
    with torch.device("meta"):
        large = create_backbone("dinov2", "small")[0]
    with pytest.raises(ValueError, match=r"missing tensors, such as blocks\.4.*other shapes, such as cls_token is"):
        fit_weights(read_weights(path), large)


# --- what cannot be read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"epoch": 3, "network_weights": {"w": torch.zeros(1)}}, "its keys are epoch, network_weights"),
        ({"teacher": {}}, "its keys are teacher"),
        ({}, "its keys are none"),
        ([torch.zeros(1)], "it is a list"),
        (torch.zeros(1), "it is a Tensor"),
        ({1: torch.zeros(1)}, "its keys are 1"),
        ({"conv1.weight": torch.zeros(1), "layer1.0.weight": torch.zeros(1)}, "its first tensors are conv1.weight"),
        (prefixed("a.", {"cls_token": torch.zeros(1)}), "its first tensors are a.cls_token"),
    ],
)
def test_what_is_no_vit_is_told(content, told: str, tmp_path: Path):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"weights\.pth") as error:
        read_weights(path)
    assert told in str(error.value)


class Malicious:
    def __reduce__(self):
        return (open, ("executed", "w"))


@pytest.mark.parametrize("protocol", ["zip", "legacy"])
def test_nothing_in_a_file_is_executed(protocol: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    torch.save({"model": Malicious()}, path, _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(ValueError, match=r"weights\.pth as a file of weights: it holds Python objects \(.*open\)"):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "length", "told"),
    [
        ("dinov3.pth", 0, "it is empty"),
        ("dinov3.pth", 5, "cannot read"),
        ("dinov3.pth", 1000, "it is cut short"),
        ("dinov3.pth", -1000, "it is cut short"),
        ("dinov3.safetensors", 7, "cannot read"),
        ("dinov3.safetensors", 100, "cannot read"),
        ("dinov3.safetensors", -1000, "cannot read"),
    ],
)
def test_damaged_files_are_told(name: str, length: int, told: str, tmp_path: Path):
    path = origin("DINOv3, Meta" if name.endswith("pth") else "DINOv3, Hugging Face").make().save(tmp_path / name)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=name) as error:
        read_weights(path)
    assert told in str(error.value) and "\n" not in str(error.value) and "weights_only" not in str(error.value)


@pytest.mark.parametrize("content", [b"\x80\x02.", b"\x80", b".", b"<html>", b"\x93NUMPY", b"{}", bytes(range(256))])
def test_whatever_a_file_holds_ends_in_one_sentence(content: bytes, tmp_path: Path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"cannot read .*weights\.pth as a file of weights: it is neither a safetensors"
    ):
        read_checkpoint(path)


def test_names_that_cannot_be_files():
    for name in ("x" * 300, "/no/such/file", "/"):
        with pytest.raises(ValueError, match="weight file not found|cannot read"):
            read_checkpoint(name)


def test_pickles_of_any_protocol_are_not_executed(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in range(6):
        path = tmp_path / "weights.pth"
        path.write_bytes(pickle.dumps({"model": Malicious()}, protocol))
        with pytest.raises(ValueError, match="cannot read") as error:
            read_checkpoint(path)
        assert "weights_only" not in str(error.value) and not (tmp_path / "executed").exists()


def test_torchscript_is_told(tmp_path: Path):
    path = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(ValueError, match=r"script\.pt .*it is a TorchScript archive; save its state_dict\(\) instead"):
        read_checkpoint(path)


def test_text_is_no_file_of_weights(tmp_path: Path):
    path = tmp_path / "weights.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"cannot read .*weights\.pth"):
        read_weights(path)


def test_harmless_objects_beside_the_weights_are_read(tmp_path: Path):
    path = tmp_path / "checkpoint.pth"
    rest = {"args": argparse.Namespace(lr=1, folder=Path("x")), "best": np.float64(0.5), "step": np.int64(3)}
    torch.save({"model": {"w": torch.ones(1)}, **copy.deepcopy(rest)}, path)
    content = read_checkpoint(path)
    assert {name: content[name] for name in rest} == rest


def test_files_of_the_old_container_are_read(tmp_path: Path):
    raw = timm_file("retfound")
    path = tmp_path / "old.pth"
    torch.save(raw.content, path, _use_new_zipfile_serialization=False)
    assert read_weights(path).tensors.keys() == raw.content.keys()
