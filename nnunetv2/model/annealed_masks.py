"""Networks of mask classification whose queries run with the ViT's tokens through plain blocks: EoMT and PMT."""

from collections.abc import Sequence

from torch import Tensor

from nnunetv2.model.mask_classification import MaskClassificationModel, Queries
from nnunetv2.model.query_prediction import Prediction, QueryDecoder


class AnnealedMaskModel(MaskClassificationModel):
    """A ViT with queries whose masked attention is annealed away in training, and is not there in evaluation mode.

    Subclasses set `decoder` in their constructor and define `predict_layers`; their arguments are those of
    `MaskClassificationModel`.

    Attributes:
        decoder: the queries, and what is predicted from them.
    """

    decoder: QueryDecoder

    @property
    def num_masked_blocks(self) -> int:
        """Number of blocks with masked attention."""
        return len(self.decoder.mask_probabilities)

    def set_mask_probabilities(self, probabilities: Sequence[float]) -> None:
        """Set how likely the masks of queries apply in training (see `MaskClassificationModel`)."""
        self.check_mask_probabilities(probabilities)
        self.decoder.mask_probabilities = [float(p) for p in probabilities]

    def predict_queries(self, x: Tensor) -> Queries:
        """Map normalised images (B, C, H, W), sides multiples of the patch size, to the queries of all layers."""
        *auxiliary, last = map(_as_dictionary, self.predict_layers(x, 0))
        return {**last, "aux_outputs": auxiliary}

    def predict_last(self, x: Tensor) -> Queries:
        """Map images as `predict_queries` does, without auxiliary outputs."""
        return {**_as_dictionary(self.predict_layers(x, self.num_masked_blocks)[-1]), "aux_outputs": []}

    def predict_layers(self, x: Tensor, first_layer: int) -> list[Prediction]:
        """Predict from normalised images (B, C, H, W), of the layers from `first_layer` on (see `QueryDecoder`)."""
        raise TypeError(f"{type(self).__name__} has no layers: subclasses define `predict_layers`")

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        """(height, width) of the patches of images (B, C, H, W)."""
        return x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size


def _as_dictionary(prediction: Prediction) -> dict[str, Tensor]:
    return {"pred_masks": prediction.masks, "pred_logits": prediction.classes}
