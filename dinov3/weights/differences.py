"""Tell weights that are published whole from those that are published as differences to the weights of another file.

A licence may forbid to hand on fine-tuned weights, but not what has to be added to the original ones.
"""

from torch import Tensor

# How much nearer one of the two readings must be to the original than the other one: twice, in Euclidean norm.
CLEAR = 2.0**2


def are_differences(found: dict[str, Tensor], original: dict[str, Tensor]) -> bool:
    """Tell whether fine-tuned weights are whole, or the differences to the ones that they were fine-tuned from.

    Fine-tuning moves weights by a small part of their size: whole ones are near the original ones, differences are
    near zero.

    Args:
        found: names to tensors.
        original: the original weights by the same names; what is missing was zero.

    Returns:
        True: the fine-tuned weights are the sum of the two; false: they are `found`.

    Raises:
        ValueError: it is neither, or all is zero: these weights were not fine-tuned from the original ones.
    """
    to_original = sum(_distance(value, original.get(name)) for name, value in found.items())
    to_zero = sum(_distance(value, None) for value in found.values())
    if to_zero * CLEAR < to_original:
        return True
    if to_original * CLEAR < to_zero:
        return False
    raise ValueError(
        "its weights of the ViT are neither like those of the backbone nor small differences to them: it was "
        "fine-tuned from other weights (model.backbone, model.backbone_size, model.checkpoint_path)"
    )


def _distance(found: Tensor, original: Tensor | None) -> float:
    """Squared, in Euclidean norm."""
    found = found.double()
    return float((found if original is None else found - original.to(found)).square().sum())
