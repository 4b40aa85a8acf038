"""A ViT and its adapter in one module, with the reference's constructor and names."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dinov3.eval.segmentation.models.backbone.vit_adapter import COARSEST_STRIDE, ViTAdapter, vit_tokens
from dinov3.eval.segmentation.models.utils.extent import pad_to_multiple
from dinov3.models.freezing import eval_if_frozen, freeze


class DINOv3_Adapter(ViTAdapter):
    """A ViT and its adapter: images to maps of four strides.

    Args:
        backbone: a plain ViT of timm, such as `DinoVisionTransformer`, also under peft.
        interaction_indexes: 0-based indices of the four feature layers.
        pretrain_size: not read; kept for the reference's callers.
        init_values: not read; kept for the reference's callers.
        lora_enabled: keep the adapters' matrices (`lora_`) of the ViT trainable, and nothing else of it.
        freeze_backbone: without adapters: freeze the ViT.
        adapter_options: further keywords of `ViTAdapter` and `Extractor`, such as `conv_inplane` and `n_points`.

    Raises:
        ValueError: not four feature layers, or a width that the attention heads cannot share.
    """

    size_multiple = COARSEST_STRIDE  # images are padded to multiples of this

    def __init__(
        self,
        backbone: nn.Module,
        interaction_indexes: Sequence[int] = (9, 19, 29, 39),
        pretrain_size: int = 512,
        *,
        init_values: float = 0.0,
        lora_enabled: bool = False,
        freeze_backbone: bool = True,
        **adapter_options: Any,
    ) -> None:
        if len(interaction_indexes) != 4:
            raise ValueError(f"the adapter needs four feature layers, found {list(interaction_indexes)}")
        super().__init__(backbone.embed_dim, backbone.patch_embed.proj.weight.shape[1], **adapter_options)
        self.backbone = backbone
        self.interaction_indexes = list(interaction_indexes)
        self.patch_size: int = backbone.patch_embed.patch_size[0]
        freeze(backbone, lora_enabled, freeze_backbone)
        self.train(self.training)

    def train(self, mode: bool = True) -> "DINOv3_Adapter":
        """Set the training mode; a backbone of which nothing trains stays in evaluation mode."""
        super().train(mode)
        eval_if_frozen(self.backbone)
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images.

        Args:
            x: (B, C, H, W). Sides that are no multiples of 32 are padded.

        Returns:
            `1` to `4`: maps (B, embed_dim, h, w) at strides 4, 8, 16 and 32 of the padded image.
        """
        x = pad_to_multiple(x, COARSEST_STRIDE)
        return self.adapt(x, vit_tokens(self.backbone, x, self.interaction_indexes))
