"""Trained networks of mask classification as their authors publish them, from small random ones."""

import pytest
import torch
import transformers
from torch import Tensor, nn

from dinov3.eval.segmentation.models import FeatureDecoder, build_segmentation_decoder
from dinov3.models.vision_transformer import DinoVisionTransformer
from nnunetv2.model.plain_mask_decoder import PlainMaskDecoder

State = dict[str, Tensor]

SHAPE = {"embed_dim": 96, "depth": 4, "num_heads": 3}  # of the tiny backbones
CLASSES, QUERIES, BLOCKS = 3, 7, 2
POINTS = 50
EOMT = {
    "dinov2": ("EomtForUniversalSegmentation", "EomtConfig", 14, {"mlp_ratio": 4, "layer_norm_eps": 1e-6}),
    "dinov3": (
        "EomtDinov3ForUniversalSegmentation",
        "EomtDinov3Config",
        16,
        {"intermediate_size": 384, "layer_norm_eps": 1e-5, "pos_embed_rescale": None},
    ),
}
SMALL_HEAD = {"hidden_dim": 32, "num_queries": QUERIES, "dim_feedforward": 48, "enc_layers": 1, "dec_layers": 2}


def hugging_face_eomt(kind: str, cells: int = 4, **changes: int) -> nn.Module:
    """Hugging Face's EoMT on `dinov2` or `dinov3`, for images of so many patches each way."""
    name, config, patch, options = EOMT[kind]
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    patch = changes.pop("patch_size", patch)
    settings = {"num_blocks": BLOCKS, "num_queries": QUERIES, "num_labels": CLASSES, **options, **changes}
    model = getattr(transformers, name)(
        getattr(transformers, config)(
            hidden_size=SHAPE["embed_dim"],
            num_hidden_layers=SHAPE["depth"],
            num_attention_heads=SHAPE["num_heads"],
            image_size=cells * patch,
            patch_size=patch,
            train_num_points=POINTS,
            **settings,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if ("norm" in name and name.endswith("weight")) or "lambda1" in name else 0.0
            parameter.normal_(around, 0.2 if around or parameter.ndim == 1 else 0.1)
    return model


def published_pmt(**changes: int) -> State:
    """A decoder of PMT, by the published names."""
    sizes = {"num_classes": CLASSES, "num_queries": QUERIES, "num_blocks": BLOCKS, "mlp_dim": 96, **changes}
    decoder = PlainMaskDecoder(sizes.pop("embed_dim", 96), SHAPE["num_heads"], **sizes)
    randomise(decoder)
    state = {n if n.startswith("bn.") else f"decoder.{n}": value for n, value in decoder.state_dict().items()}
    state["decoder.attn_mask_probs"] = torch.zeros(sizes["num_blocks"])
    return {f"network.{name}": value for name, value in state.items()}


def segmentor(**changes: int) -> FeatureDecoder:
    """Mask2Former on a DINOv3 as `dinov3.eval.segmentation` trains it."""
    vit = DinoVisionTransformer(
        **SHAPE, n_storage_tokens=4, mask_k_bias=True, layerscale_init=1.0, norm_layer="layernormbf16"
    )
    model = build_segmentation_decoder(vit, decoder_type="m2f", **{"num_classes": CLASSES, **SMALL_HEAD, **changes})
    randomise(model)
    return model.eval()


def randomise(module: nn.Module) -> None:
    """Move all weights and statistics away from those of a new module."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point() and "periods" not in name:
                value.add_(0.1 * torch.rand_like(value))


def in_the_references_names(model: FeatureDecoder) -> State:
    """The state of a segmentor as the reference saves it."""
    prefix = "segmentation_model.0.backbone."
    vit = model.segmentation_model[0].backbone.to_reference_state_dict()
    head = {name: value for name, value in model.state_dict().items() if not name.startswith(prefix)}
    return {**head, **{f"{prefix}{name}": value for name, value in vit.items()}}


def without_vit(state: State) -> State:
    """A file of a head: all names without `backbone`."""
    return {name: value for name, value in state.items() if "backbone" not in name}
