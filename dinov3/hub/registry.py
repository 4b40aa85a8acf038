"""The registry of pretrained ViTs: create one, load its weights. `dinov3.models.features` runs it."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import timm
from timm.layers import PatchEmbed
from torch import nn

from dinov3.errors import did_you_mean
from dinov3.hub.families import (
    NO_WEIGHTS_REMEDY,
    TIMM_PREFIX,
    TINY,
    BackboneFamily,
    Statistics,
    check_backbone,
    get_family,
    hub_repository,
)
from dinov3.models.timm_dinov3 import is_dinov3, match_reference
from dinov3.weights.fitting import fit_weights
from dinov3.weights.hub import download_hub_weights
from dinov3.weights.layouts import WeightFile, read_weights

logger = logging.getLogger(__name__)


def create_backbone(
    model_name: str,
    model_size: str,
    checkpoint_path: str | Path | None = None,
    pretrained: bool = False,
    in_chans: int = 3,
    query_bias: bool | None = None,
) -> tuple[nn.Module, int, str]:
    """Create a backbone: always a timm ViT, for any image size, without a classifier.

    Args:
        model_name: a family of the registry (`dinov3`, `dinov2`, `retfound`, `visionfm`) or `timm:<name>`.
        model_size: a size of the family, or `tiny`; not used with `timm:<name>`.
        checkpoint_path: a file of weights to load.
        pretrained: without a file, load timm's hub copy; if false too, the weights are random.
        in_chans: number of input channels; for other than 3 the pretrained patch embedding is adapted as timm does it.
        query_bias: whether DINOv3's attention has a query and a value bias; by default, if the file holds one.

    Returns:
        The model, the side of its patches in pixels, and `model_name`.

    Raises:
        ValueError: unknown name or size, or weights that cannot be read or do not fit.
    """
    check_backbone(model_name, model_size)
    weights = read_weights(checkpoint_path) if checkpoint_path else None
    if query_bias is None:
        query_bias = weights is not None and weights.has_query_bias
    if model_name.startswith(TIMM_PREFIX):
        model = _create_timm_vit(model_name.removeprefix(TIMM_PREFIX), in_chans)
    else:
        model = _create_member(get_family(model_name), model_size, in_chans, query_bias and model_name == "dinov3")
    if is_dinov3(model):
        match_reference(model)
    if weights is not None:
        load_weights(model, weights)
    elif pretrained:
        load_pretrained_weights(model, model_name, model_size)
    else:
        logger.warning("backbone %s %s has random weights", model_name, model_size)
    return model, model.patch_embed.patch_size[0], model_name


@contextlib.contextmanager
def weights_follow() -> Iterator[None]:
    """Build networks without the warning about random weights: the caller loads weights, or needs shapes only."""
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


def _create_member(family: BackboneFamily, size: str, in_chans: int, query_bias: bool) -> nn.Module:
    changes = dict(family.tiny) if size == TINY else {}
    if query_bias:
        changes["qkv_bias"] = True
    timm_name = next(iter(family.timm_names.values())) if size == TINY else family.timm_names[size]
    return timm.create_model(timm_name, num_classes=0, dynamic_img_size=True, in_chans=in_chans, **changes)


def _create_timm_vit(name: str, in_chans: int) -> nn.Module:
    timm_statistics(name)
    try:
        model = timm.create_model(name, num_classes=0, dynamic_img_size=True, in_chans=in_chans)
    except TypeError as error:
        raise ValueError(f"timm cannot build {name!r} as a ViT for any image size: {error}") from error
    has_parts = all(hasattr(model, part) for part in ("blocks", "norm", "forward_intermediates"))
    if not has_parts or not isinstance(getattr(model, "patch_embed", None), PatchEmbed):
        raise ValueError(f"timm's {name!r} is not a plain vision transformer ({type(model).__name__})")
    return model


def timm_statistics(name: str) -> Statistics:
    """Return the mean and std that a timm model was pretrained with.

    Raises:
        ValueError: timm has no model of this name, or none with these weights.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models("*vit*"))
        raise ValueError(f"timm has no model {name!r}{hint}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(timm.list_models(f"{architecture}.*", pretrained=True))
        raise ValueError(f"timm has no weights {name!r}; allowed: {tags}") from error
    return Statistics(tuple(config.mean), tuple(config.std))


def load_backbone_weights(model: nn.Module, path: str | Path) -> str:
    """Load a file of weights into a backbone, also into one that already carries LoRA.

    Args:
        model: a backbone made by `create_backbone`.
        path: a file in any layout of `dinov3.weights.layouts`.

    Returns:
        How many tensors were loaded, from which layout, and what was done to them.

    Raises:
        ValueError: the file cannot be read, or does not fill the model tensor by tensor.
    """
    return load_weights(model, read_weights(path))


def load_weights(model: nn.Module, weights: WeightFile) -> str:
    """Load weights that were read from a file into a backbone (see `load_backbone_weights`)."""
    fit = fit_weights(weights, model)
    model.load_state_dict(fit.tensors, strict=False)  # `fit_weights` has been stricter
    logger.info("%s", fit.report)
    return fit.report


def load_pretrained_weights(model: nn.Module, model_name: str, model_size: str) -> str:
    """Load timm's hub copy of the pretrained weights into a backbone.

    Args:
        model: a backbone made by `create_backbone(model_name, model_size)`.
        model_name: its family, or `timm:<name>`.
        model_size: its size.

    Returns:
        What `load_backbone_weights` returns.

    Raises:
        ValueError: there is no hub copy, or the hub does not answer within seconds.
    """
    return load_backbone_weights(model, find_pretrained_weights(model_name, model_size))


def find_pretrained_weights(model_name: str, model_size: str) -> Path:
    """Return the local path of timm's hub copy of a backbone's weights, downloading it where needed.

    Raises:
        ValueError: there is no hub copy, or the hub does not answer within seconds.
    """
    try:
        return download_hub_weights(_hub_repository(model_name, model_size))
    except ValueError as error:
        raise ValueError(f"{error}: {NO_WEIGHTS_REMEDY}") from error


def _hub_repository(model_name: str, model_size: str) -> str:
    if not model_name.startswith(TIMM_PREFIX):
        return hub_repository(model_name, model_size)
    timm_name = model_name.removeprefix(TIMM_PREFIX)
    config = timm.get_pretrained_cfg(timm_name)
    if config is None or not config.hf_hub_id:
        raise ValueError(f"timm has no pretrained weights of {timm_name}")
    # timm writes `timm/` for `timm/<name of the model with its tag>`
    full_name = ".".join(filter(None, (config.architecture, config.tag)))
    return config.hf_hub_id + full_name if config.hf_hub_id.endswith("/") else config.hf_hub_id
