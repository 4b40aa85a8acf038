"""Starting from published decoders: EoMT, PMT and Mask2Former, whole or in part, and files that do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from golden_cases import Case
from published_decoders import (
    BLOCKS,
    CLASSES,
    QUERIES,
    SHAPE,
    SMALL_HEAD,
    hugging_face_eomt,
    in_the_references_names,
    published_pmt,
    segmentor,
    without_vit,
)
from raw_weights import meta_dinov3
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist

from dinov3.hub.backbones import create_model
from dinov3.models.lora import add_lora
from dinov3.weights.differences import are_differences
from dinov3.weights.fitting import mismatches
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.pretrained_weights import PretrainedWeights
from nnunetv2.model.decoder_layouts import DECODER_LAYOUTS, read_decoder_weights
from nnunetv2.model.mask_classification import MaskClassificationModel
from nnunetv2.model.model_eomt import EoMTSegmentationModel
from nnunetv2.model.model_m2f import M2FSegmentationModel
from nnunetv2.model.model_pmt import PMTSegmentationModel
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_vit import nnUNetTrainer_vit

State = dict[str, Tensor]
SMALL = {"num_queries": QUERIES, "num_blocks": BLOCKS}


def eomt(num_classes: int = CLASSES, kind: str = "dinov3", **options) -> EoMTSegmentationModel:
    torch.manual_seed(3)
    return EoMTSegmentationModel(kind, "tiny", num_classes, **{"query_bias": kind == "dinov3", **SMALL, **options})


def pmt(num_classes: int = CLASSES, **options) -> PMTSegmentationModel:
    torch.manual_seed(3)
    return PMTSegmentationModel("dinov3", "tiny", num_classes, **{**SMALL, **options})


def mask2former(num_classes: int = CLASSES, **options) -> M2FSegmentationModel:
    torch.manual_seed(3)
    return M2FSegmentationModel("dinov3", "tiny", num_classes, **{"query_bias": True, **SMALL_HEAD, **options})


def saved(content: dict, folder: Path, name: str = "decoder.pth") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def weights(path: Path, original: Path | None = None) -> PretrainedWeights:
    """As of a configuration that names the file, and beside it that of the backbone, or none."""
    return PretrainedWeights(
        SimpleNamespace(
            backbone="dinov3",
            checkpoint_path="" if original is None else str(original),
            pretrained=False,
            decoder_checkpoint_path=str(path),
        )
    )


def start(network: MaskClassificationModel, path: Path, original: Path | None = None) -> str:
    """Check a file and load it, as a new training does; return what it tells."""
    weights(path, original).check_decoder_fit(network)
    return "\n".join(weights(path, original).load(network))


def refusal(network: MaskClassificationModel, path: Path, original: Path | None = None) -> str:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ExperimentError) as error:
        weights(path, original).check_decoder_fit(network)
    message = str(error.value)
    assert message.startswith("model.decoder_checkpoint_path: ") and str(path) in message and "\n" not in message
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    return message


def copied(state: State) -> State:
    return {name: value.detach().clone() for name, value in state.items()}


def check_same_queries(network: MaskClassificationModel, masks: Tensor, classes: Tensor, images: Tensor) -> None:
    with torch.no_grad():
        queries = network.eval().forward_queries(images)
    for found, expected in ((queries["pred_masks"], masks), (queries["pred_logits"], classes)):
        assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def check_same_as_theirs(network: MaskClassificationModel, theirs: nn.Module, side: int) -> None:
    images = torch.randn(1, 3, side, side)
    theirs.attn_mask_probs.zero_()
    with torch.no_grad():
        expected = theirs.eval()(pixel_values=images)
    check_same_queries(network, expected.masks_queries_logits, expected.class_queries_logits, images)


# --- EoMT -------------------------------------------------------------------------------------------------------------


def test_eomt_on_dinov2_is_hugging_faces(tmp_path: Path):
    torch.manual_seed(0)
    theirs = hugging_face_eomt("dinov2", 4)
    network = eomt(kind="dinov2")
    network.backbone = timm.create_model(
        "vit_small_patch14_reg4_dinov2", num_classes=0, img_size=4 * 14, dynamic_img_size=True, **SHAPE
    )
    report = start(network, saved(theirs.state_dict(), tmp_path, "model.safetensors"))
    check_same_as_theirs(network, theirs, 4 * 14)
    assert "19 of 19 tensors of the decoder" in report and "layout EoMT (Hugging Face)" in report
    assert "tensors of the backbone" in report and "attn_mask_probs" in report and "WARNING" not in report


def test_patches_and_positions_of_another_size_are_resampled(tmp_path: Path):
    torch.manual_seed(0)
    theirs = hugging_face_eomt("dinov2", 5, patch_size=16, num_register_tokens=0)
    network = eomt(kind="dinov2")
    report = start(network, saved(theirs.state_dict(), tmp_path))
    assert "WARNING: patches resampled from 16 × 16 to 14 × 14 pixels" in report and "positions resampled" in report
    # an image of one colour is one to patches of any size
    with torch.no_grad():
        ours, expected = (
            project(torch.ones(1, 3, size, size)).flatten()
            for project, size in (
                (network.backbone.patch_embed.proj, 14),
                (theirs.embeddings.patch_embeddings.projection, 16),
            )
        )
    assert torch.nn.functional.cosine_similarity(ours, expected, dim=0) > 0.95


def originals(tmp_path: Path) -> tuple[Path, State]:
    """A file of backbone weights, and the weights by the names of Hugging Face's EoMT."""
    torch.manual_seed(0)
    theirs = hugging_face_eomt("dinov3")
    start_from = saved(theirs.state_dict(), tmp_path, "whole.pth")
    vit = weights(start_from).decoder_file.vit
    return saved(vit.tensors, tmp_path, "meta.pth"), copied(theirs.state_dict())


def is_vit(name: str) -> bool:
    return name.startswith(("embeddings.", "layers.", "layernorm."))


def fine_tuned(original: State) -> nn.Module:
    """Hugging Face's EoMT, whose ViT is near the original one."""
    torch.manual_seed(7)
    theirs = hugging_face_eomt("dinov3")
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if is_vit(name):
                value.copy_(original[name] + 0.1 * torch.rand_like(value) * original[name].std(correction=0))
    return theirs


@pytest.mark.parametrize(
    "options", [{}, {"use_lora": True, "lora_target_modules": ["qkv", "proj"]}], ids=["full", "lora"]
)
@pytest.mark.parametrize("kind", ["whole", "differences"])
def test_eomt_on_dinov3_is_hugging_faces_whole_or_as_differences(kind: str, options: dict, tmp_path: Path):
    base, original = originals(tmp_path)
    theirs = fine_tuned(original)
    state = copied(theirs.state_dict())
    if kind == "differences":
        state |= {name: value - original[name] for name, value in state.items() if is_vit(name)}
    network = eomt(**options)
    report = start(network, saved(state, tmp_path), base)
    check_same_as_theirs(network, theirs, 4 * 16)
    assert ("added to the backbone's own weights" in report) == (kind == "differences")


def test_dinov3_needs_the_weights_that_it_was_fine_tuned_from(tmp_path: Path):
    _, original = originals(tmp_path)
    path = saved(fine_tuned(original).state_dict(), tmp_path)
    message = refusal(eomt(), path)
    assert "set model.pretrained=true, or model.checkpoint_path to Meta's file" in message
    torch.manual_seed(11)
    other = saved(meta_dinov3(bias=True).content, tmp_path, "other.pth")
    assert "it was fine-tuned from other weights" in refusal(eomt(), path, other)
    without_bias = saved(meta_dinov3().content, tmp_path, "without_bias.pth")
    assert not PretrainedWeights(SimpleNamespace(backbone="dinov3", checkpoint_path=str(without_bias))).has_query_bias
    assert weights(path, without_bias).has_query_bias


def test_whole_weights_and_differences_are_told_apart_or_refused():
    original = {"a": torch.randn(50, 50), "b": torch.randn(9)}
    small = {name: 0.1 * torch.randn_like(value) for name, value in original.items()}
    assert are_differences(small, original)
    assert not are_differences({name: original[name] + small[name] for name in small}, original)
    assert are_differences({**small, "new": torch.ones(2)}, original)  # of a layer that had no bias
    zeros = {name: torch.zeros_like(value) for name, value in original.items()}
    assert are_differences(zeros, original) and not are_differences(original, original)
    for found in ({name: torch.randn_like(value) for name, value in original.items()}, {"a": original["a"] / 2}):
        with pytest.raises(ValueError, match="fine-tuned from other weights"):
            are_differences(found, {"a": original["a"]} if len(found) == 1 else original)
    with pytest.raises(ValueError, match="fine-tuned from other weights"):
        are_differences(zeros, zeros)


# --- PMT --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap", [dict, lambda state: {"state_dict": {**state, "criterion.empty_weight": torch.ones(4)}}]
)
def test_pmt(wrap: Callable[[State], dict], tmp_path: Path):
    state = published_pmt()
    network, expected = pmt(), pmt()
    expected.decoder.load_published_state_dict(state)
    vit = copied(network.backbone.state_dict())
    report = start(network, saved(wrap(state), tmp_path))
    assert all(torch.equal(v, expected.decoder.state_dict()[n]) for n, v in network.decoder.state_dict().items())
    assert all(torch.equal(v, vit[n]) for n, v in network.backbone.state_dict().items())
    assert "the ViT stays as it is, the file has none" in report and "layout PMT" in report


def test_pmt_has_the_published_names(golden: Path, tmp_path: Path):
    case = Case(golden / "mask_transformers", "plain_mask_decoder")
    file = read_decoder_weights(saved(case.state, tmp_path))
    width, blocks, mlp = case.spec["embed_dim"], case.spec["num_blocks"], case.spec["hidden_dim"]
    options = {"num_queries": case.spec["num_q"], "num_blocks": blocks, "mlp_dim": mlp}
    state = published_pmt(embed_dim=width, **options)
    assert {f"network.{name}" for name in case.state} == state.keys()
    assert file.num_channels == width and file.num_classes == case.spec["num_classes"] and file.vit is None
    assert file.options == {f"model.decoder.{name}": value for name, value in options.items()}


# --- Mask2Former ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        lambda model: {"model": model.state_dict(), "step": 3, "config": {}},
        lambda model: {f"module.{name}": value for name, value in in_the_references_names(model).items()},
        lambda model: {n.removeprefix("segmentation_model."): v for n, v in model.state_dict().items()},
    ],
    ids=["our training", "the reference", "a list of parts"],
)
def test_a_whole_segmentor_says_the_same_in_nnunet(content: Callable[[nn.Module], dict], tmp_path: Path):
    torch.manual_seed(0)
    source = segmentor()
    network = mask2former()
    report = start(network, saved(content(source), tmp_path))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = source(images)
    check_same_queries(network, expected["pred_masks"], expected["pred_logits"], images)
    assert "tensors of the decoder" in report and "of the backbone" in report and "WARNING" not in report


def test_the_references_file_of_a_head_leaves_the_vit(tmp_path: Path):
    torch.manual_seed(0)
    network, source = mask2former(), segmentor()
    vit = copied(network.backbone.state_dict())
    report = start(network, saved(without_vit(in_the_references_names(source)), tmp_path))
    assert all(torch.equal(v, vit[n]) for n, v in network.backbone.state_dict().items())
    assert torch.equal(network.adapter.level_embed, source.segmentation_model[0].level_embed)
    assert torch.equal(
        network.head.predictor.query_feat.weight, source.segmentation_model[1].predictor.query_feat.weight
    )
    assert "the ViT stays as it is, the file has none" in report


@pytest.mark.parametrize(("table", "num_queries"), [("fork_segmentor_m2f_vitl16", 20), ("segmentor_m2f_vitl16", 100)])
def test_names_and_shapes_of_the_published_segmentor(table: str, num_queries: int, golden: Path):
    keys = json.loads((golden / "state_keys" / f"{table}.json").read_text())["state"]
    state = {name: torch.empty(shape, device="meta") for name, (shape, _) in keys.items()}
    layout = next(entry for entry in DECODER_LAYOUTS if entry.signature <= state.keys())
    decoder, vit = layout.split(state)
    with torch.device("meta"):
        network = M2FSegmentationModel("dinov3", "large", 4, num_queries=num_queries)
        reference = create_model("dinov3_vitl16", pretrained=False)
    own = {n: v for n, v in network.state_dict().items() if not n.startswith(("backbone.", "input_"))}
    for name in ("weight", "bias"):  # the other one has 150 classes, more than queries, which our network refuses
        assert decoder[f"{layout.class_layer}{name}"].shape[1:] == own.pop(f"{layout.class_layer}{name}").shape[1:]
        del decoder[f"{layout.class_layer}{name}"]
    assert mismatches(decoder, own) == [] and layout.network is M2FSegmentationModel
    assert vit.keys() == reference.to_reference_state_dict().keys()


# --- all of them ------------------------------------------------------------------------------------------------------


def of_dinov3(tmp_path: Path) -> tuple[dict, Path]:
    base, original = originals(tmp_path)
    return copied(fine_tuned(original).state_dict()), base


MADE: dict[str, tuple[Callable[..., MaskClassificationModel], Callable[[Path], tuple[dict, Path | None]], str]] = {
    "eomt": (eomt, of_dinov3, "decoder.class_head."),
    "pmt": (pmt, lambda _: (published_pmt(), None), "decoder.class_head."),
    "m2f": (mask2former, lambda _: (copied(segmentor().state_dict()), None), "head.predictor.class_embed."),
}
every_network = pytest.mark.parametrize("name", MADE)


@every_network
def test_the_class_layer_alone_is_left_out_where_the_classes_differ(name: str, tmp_path: Path):
    build, make, layer = MADE[name]
    state, base = make(tmp_path)
    path = saved(state, tmp_path)
    same, other = build(), build(CLASSES + 2)
    before = copied(other.state_dict())
    assert "untrained" not in start(same, path, base)
    report = start(other, path, base)
    assert f"the class layer starts untrained: the file's has {CLASSES} classes, this {CLASSES + 2}" in report
    for key, value in other.state_dict().items():
        expected = before[key] if key.startswith(layer) else same.state_dict()[key]
        assert torch.equal(value, expected), key


@every_network
def test_every_tensor_is_asked_for(name: str, tmp_path: Path):
    build, make, _ = MADE[name]
    state, base = make(tmp_path)
    network = build()
    missing = next(key for key in reversed(state) if "mask_head" in key or "mask_embed" in key)
    prefix = missing.split(".")[0] if "." in missing else ""
    for change, told in (
        ({missing: None}, "1 missing tensor: "),
        ({f"{prefix}.another": torch.zeros(1)}, "1 unknown tensor: "),
        ({missing: torch.zeros(5)}, "1 other shape: "),
        ({missing: torch.full_like(state[missing], torch.nan)}, "1 with values that are not finite"),
    ):
        changed = {key: value for key, value in {**state, **change}.items() if value is not None}
        message = refusal(network, saved(changed, tmp_path), base)
        assert told in message and "does not fit the decoder" in message


@pytest.mark.parametrize(
    ("build", "content", "told"),
    [
        (lambda: pmt(num_queries=9), published_pmt, "set model.decoder.num_queries=7, found 9"),
        (lambda: pmt(num_blocks=3), published_pmt, "set model.decoder.num_blocks=2, found 3"),
        (lambda: pmt(mlp_dim=40), published_pmt, "set model.decoder.mlp_dim=96, found 40"),
        (pmt, lambda: published_pmt(embed_dim=48), "a ViT of 48 channels, this one has 96 (model.backbone_size)"),
        (lambda: eomt(num_blocks=1), lambda: hugging_face_eomt("dinov3").state_dict(), "num_blocks=2, found 1"),
        (
            lambda: mask2former(num_queries=9, hidden_dim=64),
            lambda: segmentor().state_dict(),
            "set model.num_queries=7, found 9; set model.hidden_dim=32, found 64",
        ),
    ],
    ids=["queries", "blocks", "mlp", "width", "blocks of EoMT", "Mask2Former"],
)
def test_the_option_to_set_is_named(build: Callable, content: Callable[[], State], told: str, tmp_path: Path):
    assert told in refusal(build(), saved(content(), tmp_path))


def adapted_segmentor() -> State:
    model = segmentor()
    part = model.segmentation_model[0]
    part.backbone = add_lora(part.backbone, r=2, lora_alpha=4, lora_dropout=0.0, target_modules=["qkv"])
    return model.state_dict()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda: meta_dinov3().content, "does not hold a decoder in a known layout"),
        (lambda: {"network_weights": {"w": torch.zeros(1)}}, "checkpoints of nnU-Net under -pretrained_weights"),
        (adapted_segmentor, "its ViT has LoRA adapters, which must be merged into its weights first"),
        (lambda: {"a": print}, "Python objects"),
        (published_pmt, "a decoder of the layout PMT, which is not this network's (EoMT (Hugging Face)): --config pmt"),
    ],
    ids=["a ViT", "nnU-Net", "LoRA", "code", "another network"],
)
def test_what_is_no_file_for_this_network(content: Callable[[], dict], told: str, tmp_path: Path):
    message = refusal(eomt(), saved(content(), tmp_path))
    assert told in message and "advise" not in message


def test_images_of_one_channel(tmp_path: Path):
    source = segmentor()
    network = mask2former(input_channels=1)
    report = start(network, saved(source.state_dict(), tmp_path))
    stem = source.segmentation_model[0].spm.stem[0].weight
    assert torch.allclose(network.adapter.spm.stem[0].weight, stem.sum(1, keepdim=True))
    assert "stem adapted from 3 to 1" in report and "patch embedding adapted from 3 to 1" in report


def test_every_process_gets_all_of_the_weights(monkeypatch: pytest.MonkeyPatch):
    sent: list[Tensor] = []
    monkeypatch.setattr(dist, "broadcast", lambda tensor, src: sent.append(tensor))
    network = pmt()
    nnUNetTrainer_vit._load_pretrained_weights(SimpleNamespace(plain_network=network, local_rank=1, is_ddp=True))
    own = {value.data_ptr() for value in network.state_dict().values()}
    assert {value.data_ptr() for value in sent} == own
