"""The names that Hugging Face's `transformers` gives to the weights of EoMT (`EomtForUniversalSegmentation` on DINOv2,
`EomtDinov3ForUniversalSegmentation`), brought to ours.
"""

import re

import torch
from torch import Tensor

State = dict[str, Tensor]

VIT = ("embeddings.", "layers.", "layernorm.")
POSITIONS = "embeddings.position_embeddings"
REGISTERS = "embeddings.register_tokens"
DECODER_RENAMES = (
    (r"^query\.", "decoder.q."),
    (r"^class_predictor\.", "decoder.class_head."),
    (r"^mask_head\.fc1\.", "decoder.mask_head.0."),
    (r"^mask_head\.fc2\.", "decoder.mask_head.2."),
    (r"^mask_head\.fc3\.", "decoder.mask_head.4."),
    (r"^upscale_block\.block\.(\d+)\.layernorm2d\.", r"decoder.upscale.\1.norm."),
    (r"^upscale_block\.block\.", "decoder.upscale."),
)
# To the names of `Dinov2WithRegistersModel` and `DINOv3ViTModel`, which `dinov3.weights.layouts` reads.
VIT_RENAMES = ((r"^layers\.", "layer."), (r"\.attention\.out_proj\.", ".attention.o_proj."))


def split_eomt(state: State) -> tuple[State, State]:
    """Split the weights of Hugging Face's EoMT.

    Args:
        state: its names to tensors.

    Returns:
        The decoder's weights by the names of `EoMTSegmentationModel`, and the ViT's by those that Hugging Face gives to
        the ViT alone.
    """
    decoder = {_renamed(name, DECODER_RENAMES): value for name, value in state.items() if not name.startswith(VIT)}
    vit = {_renamed(name, VIT_RENAMES): value for name, value in state.items() if name.startswith(VIT)}
    if (positions := vit.pop(f"{POSITIONS}.weight", None)) is not None:
        # an embedding of the patches alone: the class token, which had a position in DINOv2, has it added already
        vit[POSITIONS] = torch.cat([torch.zeros_like(positions[:1]), positions]).unsqueeze(0)
    if REGISTERS in vit and not vit[REGISTERS].numel():
        del vit[REGISTERS]
    return decoder, vit


def _renamed(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name
