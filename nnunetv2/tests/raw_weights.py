"""Files of pretrained weights as their authors publish them, from small random networks."""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
)

from nnunetv2.model.backbone import create_backbone, get_vit_features

State = dict[str, Tensor]
HUGGING_FACE_SIZES = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 384}


@dataclass(frozen=True)
class RawFile:
    """A file, and the network that its weights were taken from.

    Attributes:
        family: the backbone that the file is for, in size `tiny`.
        content: what is saved: a bare state dictionary, or a training's checkpoint.
        last_features: maps images to the last block's patch tokens behind the final norm, (B, embed_dim, h, w).
        build: makes the network to load into; by default the family's.
    """

    family: str
    content: dict
    last_features: Callable[[Tensor], Tensor]
    build: Callable[[], nn.Module] | None = None

    def save(self, path: Path) -> Path:
        (save_file if path.suffix == ".safetensors" else torch.save)(self.content, path)
        return path


@dataclass(frozen=True)
class Origin:
    name: str
    file_name: str
    layout: str
    make: Callable[[], RawFile]

    def __str__(self) -> str:
        return self.name


def origin(name: str) -> Origin:
    return next(entry for entry in ORIGINS if entry.name == name)


def randomize(model: nn.Module, seed: int = 1) -> nn.Module:
    """Draw all parameters anew: those that start at zero, too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def timm_source(family: str, **options) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    model = randomize(create_backbone(family, "tiny", **options)[0])
    return model, lambda image: get_vit_features(model, image, [3])[0]


def random_tensors(*names: str) -> State:
    return {name: torch.rand(3, 2) for name in names}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def meta_dinov3(bias: bool = False) -> RawFile:
    """Meta's `.pth`: bare, with storage tokens, the rotary periods and a bias of which the key part is masked."""
    model, last_features = timm_source("dinov3", query_bias=bias)
    model.rope.periods.copy_(model.rope.periods.to(torch.bfloat16))  # as the released files hold them
    return RawFile("dinov3", meta_dinov3_state(model), last_features)


def meta_dinov3_state(model: nn.Module) -> State:
    state = {"mask_token": torch.zeros(1, model.embed_dim), "local_cls_norm.weight": torch.ones(model.embed_dim)}
    renames = (("reg_token", "storage_tokens"), ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"))
    for name, value in model.state_dict().items():
        if not name.endswith(("q_bias", "v_bias")):
            for ours, theirs in (*renames, ("rope.periods", "rope_embed.periods")):
                name = name.replace(ours, theirs)
            state[name] = value
    zeros = torch.zeros(model.embed_dim)
    for i, block in enumerate(model.blocks):
        bias = block.attn.q_bias is not None
        parts = [block.attn.q_bias, torch.full_like(zeros, torch.nan), block.attn.v_bias] if bias else [zeros] * 3
        state[f"blocks.{i}.attn.qkv.bias"] = torch.cat(parts).detach()
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.ones(3 * model.embed_dim)
    return state


def meddinov3() -> RawFile:
    """A checkpoint of DINOv3's training code: `teacher`, `backbone.`, heads; no query bias."""
    model, last_features = timm_source("dinov3")
    state = {name: v for name, v in meta_dinov3_state(model).items() if ".qkv.bias" not in name}
    heads = random_tensors("dino_head.mlp.0.weight", "dino_head.last_layer.weight", "ibot_head.mlp.0.weight")
    return RawFile("dinov3", {"teacher": {**prefixed("backbone.", state), **heads}, "iteration": 7}, last_features)


def hugging_face(model: PreTrainedModel, family: str, patch: int, build: Callable[[], nn.Module] | None) -> RawFile:
    randomize(model)

    def last_features(image: Tensor) -> Tensor:
        h, w = image.shape[-2] // patch, image.shape[-1] // patch
        tokens = model(image).last_hidden_state[:, -h * w :]
        return tokens.transpose(1, 2).unflatten(2, (h, w))

    with tempfile.TemporaryDirectory() as folder:  # what is published has other names than the network in memory
        model.save_pretrained(folder)
        return RawFile(family, load_file(Path(folder) / "model.safetensors"), last_features, build)


def random_hugging_face_dinov3(**options: bool | str) -> PreTrainedModel:
    """A small DINOv3; the test is skipped where transformers does not have it yet."""
    transformers = pytest.importorskip("transformers", minversion="4.56")
    config = transformers.DINOv3ViTConfig(**HUGGING_FACE_SIZES, num_register_tokens=4, **options)
    return transformers.DINOv3ViTModel(config)


def hugging_face_dinov3() -> RawFile:
    return hugging_face(random_hugging_face_dinov3(), "dinov3", 16, None)


def hugging_face_dinov3_plus() -> RawFile:
    model = random_hugging_face_dinov3(use_gated_mlp=True, hidden_act="silu")
    return hugging_face(model, "dinov3", 16, gated_dinov3)


def hugging_face_dinov3_in_memory() -> RawFile:
    """As `torch.save(model.state_dict())` writes it: `model.layer.…`."""
    raw = hugging_face_dinov3()
    content = {("model." if name.startswith("layer.") else "") + name: value for name, value in raw.content.items()}
    return RawFile(raw.family, content, raw.last_features)


def gated_dinov3() -> nn.Module:
    """As the plus sizes, whose feed-forward layers are gated."""
    options = {"embed_dim": 96, "depth": 4, "num_heads": 3, "mlp_ratio": 4.0, "qkv_bias": True, "swiglu_align_to": 8}
    return timm.create_model("vit_small_plus_patch16_dinov3", num_classes=0, dynamic_img_size=True, **options)


def hugging_face_dinov2() -> RawFile:
    model = Dinov2Model(Dinov2Config(**HUGGING_FACE_SIZES, image_size=518, patch_size=14))
    return hugging_face(model, "dinov2", 14, None)


def hugging_face_dinov2_with_registers() -> RawFile:
    config = Dinov2WithRegistersConfig(**HUGGING_FACE_SIZES, image_size=518, patch_size=14)
    return hugging_face(Dinov2WithRegistersModel(config), "dinov2", 14, dinov2_with_registers)


def dinov2_with_registers() -> nn.Module:
    options = {"embed_dim": 96, "depth": 4, "num_heads": 3}
    return timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, dynamic_img_size=True, **options)


def hugging_face_giant_dinov2() -> RawFile:
    config = Dinov2Config(**HUGGING_FACE_SIZES, image_size=518, patch_size=14, use_swiglu_ffn=True)
    return hugging_face(Dinov2Model(config), "dinov2", 14, giant_dinov2)


def giant_dinov2() -> nn.Module:
    """As the giant size, whose feed-forward layers are gated: 256 = 2/3 of 4 × 96."""
    options = {"embed_dim": 96, "depth": 4, "num_heads": 3, "mlp_ratio": 512 / 96}
    return timm.create_model("vit_giant_patch14_dinov2", num_classes=0, dynamic_img_size=True, **options)


def meta_dinov2(family: str = "dinov2") -> RawFile:
    model, last_features = timm_source(family)
    return RawFile(family, {**model.state_dict(), "mask_token": torch.zeros(1, model.embed_dim)}, last_features)


def meta_dinov2_with_registers() -> RawFile:
    """The position of the class token stands in the table of positions, timm adds it to the token."""
    model = randomize(dinov2_with_registers())
    state = {k: v for k, v in model.state_dict().items() if k != "reg_token"}
    position = torch.rand(1, 1, 96)
    state["register_tokens"] = model.reg_token.detach()
    state["mask_token"] = torch.zeros(1, 96)
    state["cls_token"] = state["cls_token"] - position
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    return RawFile("dinov2", state, lambda x: get_vit_features(model, x, [3])[0], dinov2_with_registers)


def meta_giant_dinov2() -> RawFile:
    model = randomize(giant_dinov2())
    renamed = {k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for k, v in model.state_dict().items()}
    state = {**renamed, "mask_token": torch.zeros(1, 96)}
    return RawFile("dinov2", state, lambda x: get_vit_features(model, x, [3])[0], giant_dinov2)


def retfound_mae() -> RawFile:
    """A checkpoint of MAE's training code: `model` with the decoder, beside optimiser, epoch and arguments."""
    model, last_features = timm_source("retfound")
    decoder = random_tensors("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight")
    rest = {"optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "epoch": 800, "scaler": {"scale": 1.0}}
    arguments = argparse.Namespace(output_dir=Path("out"), lr=0.1, distributed=False)
    return RawFile("retfound", {"model": {**model.state_dict(), **decoder}, **rest, "args": arguments}, last_features)


def retfound_finetuned() -> RawFile:
    """A classifier fine-tuned from RETFound: `fc_norm` instead of `norm`, and a head."""
    model, last_features = timm_source("retfound")
    state = {k.replace("norm.", "fc_norm.") if k.startswith("norm.") else k: v for k, v in model.state_dict().items()}
    return RawFile("retfound", {"model": {**state, **random_tensors("head.weight", "head.bias")}}, last_features)


def retfound_dinov2() -> RawFile:
    """A checkpoint of DINOv2's training code."""
    raw = meta_dinov2("retfound_dinov2")
    heads = random_tensors("dino_head.mlp.0.weight", "dino_head.last_layer.weight_g")
    return RawFile(raw.family, {"teacher": {**prefixed("backbone.", raw.content), **heads}}, raw.last_features)


def visionfm() -> RawFile:
    """A checkpoint of iBOT's training code, under both of its wrappers' prefixes."""
    model, last_features = timm_source("visionfm")
    trunk = prefixed("backbone.", {**model.state_dict(), "masked_embed": torch.rand(1, model.embed_dim)})
    teacher = prefixed("module.", {**trunk, **random_tensors("head.mlp.0.weight", "head.last_layer2.weight")})
    student = {name: torch.zeros_like(value) for name, value in teacher.items()}
    content = {"student": student, "teacher": teacher, "epoch": 3, "args": argparse.Namespace(patch_size=16)}
    return RawFile("visionfm", content, last_features)


def visionfm_finetuned() -> RawFile:
    model, last_features = timm_source("visionfm")
    content = {"visionfm_state_dict": prefixed("module.", dict(model.state_dict())), "state_dict_head": {}}
    return RawFile("visionfm", content, last_features)


def timm_file(family: str) -> RawFile:
    model, last_features = timm_source(family)
    return RawFile(family, dict(model.state_dict()), last_features)


def timm_vit() -> RawFile:
    """timm's own files have a classifier."""
    model = randomize(create_backbone("timm:vit_tiny_patch16_224", "")[0])
    content = {**model.state_dict(), **random_tensors("head.weight", "head.bias")}
    return RawFile("timm:vit_tiny_patch16_224", content, lambda image: get_vit_features(model, image, [3])[0])


# What is published: name for people, the file's name, the layout it is recognised as, its maker.
ORIGINS = [
    Origin("DINOv3, Meta", "dinov3.pth", "DINOv3 (Meta)", meta_dinov3),
    Origin("DINOv3, Meta, with query bias", "dinov3_biased.pth", "DINOv3 (Meta)", lambda: meta_dinov3(bias=True)),
    Origin("MedDINOv3", "meddinov3.pth", "DINOv3 (Meta)", meddinov3),
    Origin("DINOv3, Hugging Face", "dinov3.safetensors", "DINOv3 (Hugging Face)", hugging_face_dinov3),
    Origin(
        "DINOv3 in memory, Hugging Face", "dinov3_memory.pth", "DINOv3 (Hugging Face)", hugging_face_dinov3_in_memory
    ),
    Origin("DINOv3 plus, Hugging Face", "dinov3_plus.safetensors", "DINOv3 (Hugging Face)", hugging_face_dinov3_plus),
    Origin("DINOv3, timm", "dinov3_timm.safetensors", "timm", lambda: timm_file("dinov3")),
    Origin("DINOv2, Meta", "dinov2.pth", "DINOv2 (Meta)", meta_dinov2),
    Origin("DINOv2 with registers, Meta", "dinov2_reg.pth", "DINOv2 (Meta)", meta_dinov2_with_registers),
    Origin("DINOv2 giant, Meta", "dinov2_giant.pth", "DINOv2 (Meta)", meta_giant_dinov2),
    Origin("DINOv2, Hugging Face", "dinov2.safetensors", "DINOv2 (Hugging Face)", hugging_face_dinov2),
    Origin(
        "DINOv2 with registers, Hugging Face",
        "dinov2_reg.safetensors",
        "DINOv2 (Hugging Face)",
        hugging_face_dinov2_with_registers,
    ),
    Origin(
        "DINOv2 giant, Hugging Face", "dinov2_giant.safetensors", "DINOv2 (Hugging Face)", hugging_face_giant_dinov2
    ),
    Origin("DINOv2, timm", "dinov2_timm.safetensors", "timm", lambda: timm_file("dinov2")),
    Origin("ViT, timm", "vit.safetensors", "timm", timm_vit),
    Origin("RETFound (MAE)", "retfound.pth", "MAE (RETFound)", retfound_mae),
    Origin("RETFound (MAE), fine-tuned", "retfound_finetuned.pth", "timm", retfound_finetuned),
    Origin("RETFound (DINOv2)", "retfound_dinov2.pth", "DINOv2 (Meta)", retfound_dinov2),
    Origin("VisionFM", "visionfm.pth", "iBOT (VisionFM)", visionfm),
    Origin("VisionFM, fine-tuned", "visionfm_finetuned.pth", "timm", visionfm_finetuned),
]
