"""What is impossible about combinations of values of a configuration of segmentation, and what is missing."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from dinov3.configuration.yaml_files import find_file, find_path
from dinov3.eval.segmentation.config_sections import DecoderConfig, EvalConfig, ModelConfig, SchedulerConfig
from dinov3.hub.architectures import find_architecture
from dinov3.hub.families import NO_WEIGHTS_REMEDY, TIMM_PREFIX, check_backbone, hub_repository
from dinov3.models.feature_layers import BackboneLayersSet

if TYPE_CHECKING:
    from dinov3.eval.segmentation.config import SegmentationConfig

HIDDEN_DIM_MULTIPLE = 32  # groups of the head's group norm; its 16 attention heads divide it too


def problems(config: "SegmentationConfig") -> Iterator[str]:
    """Yield one sentence for each problem of a configuration whose single values are possible."""
    if config.model is not None:
        yield from _model_problems(config.model)
    yield from _decoder_problems(config.decoder_head)
    yield from _loss_problems(config)
    yield from _scheduler_problems(config.scheduler, config.optimizer.lr)
    yield from _tile_problems(config.eval)
    yield from _path_problems(config)
    if config.bs > 1 and config.transforms.train.random_img_size_ratio_range and not config.transforms.train.crop_size:
        yield (
            "transforms.train.crop_size: images of random sizes (random_img_size_ratio_range) make no batch of "
            f"{config.bs} without it; set it, or bs=1"
        )
    names, num_classes = config.datasets.class_names, config.decoder_head.num_classes
    if names is not None and len(names) != num_classes:
        yield f"datasets.class_names must be {num_classes} names (decoder_head.num_classes), found {len(names)}"


def _model_problems(model: ModelConfig) -> Iterator[str]:
    if model.config_file is not None:
        yield f"model.config_file {model.config_file!r} is not supported: set model.dino_hub or model.backbone"
    if (model.dino_hub is None) == (model.backbone is None):
        yield (
            "exactly one of model.dino_hub (such as dinov3_vitl16) and model.backbone (such as dinov3) must name the "
            f"ViT, found {model.dino_hub!r} and {model.backbone!r}"
        )
    elif model.backbone is None:
        yield from _refusal("model.dino_hub", find_architecture, model.dino_hub)
    else:
        yield from _refusal("model.backbone", _check_registry, model)
    if model.pretrained_weights and model.checkpoint_path:
        yield "model.pretrained_weights and model.checkpoint_path stand for the same: set one of them"
    for key in ("pretrained_weights", "checkpoint_path"):
        path = str(getattr(model, key) or "")
        if path and not path.startswith(("http:", "https:")) and find_path(path) is None:
            yield f"model.{key}: {path!r} does not exist"


def _refusal(key: str, check: Callable[[Any], Any], value: Any) -> Iterator[str]:
    """Yield the reason for which a check refuses a value."""
    try:
        check(value)
    except ValueError as error:
        yield f"{key}: {error}"


def _check_registry(model: ModelConfig) -> None:
    """Check that the registry has such a ViT, and the weights that are asked for."""
    check_backbone(model.backbone, model.backbone_size)
    has_file = model.pretrained_weights or model.checkpoint_path
    if model.pretrained and not has_file and not model.backbone.startswith(TIMM_PREFIX):
        try:
            hub_repository(model.backbone, model.backbone_size)
        except ValueError as error:
            raise ValueError(f"{error}: {NO_WEIGHTS_REMEDY}") from error


def _decoder_problems(head: DecoderConfig) -> Iterator[str]:
    if head.type != "m2f":
        return
    if head.backbone_out_layers is BackboneLayersSet.LAST:
        yield (
            "decoder_head.backbone_out_layers: Mask2Former (decoder_head.type=m2f) reads four feature layers, found "
            "LAST, which is one; allowed: FOUR_LAST, FOUR_EVEN_INTERVALS"
        )
    if head.hidden_dim % HIDDEN_DIM_MULTIPLE:
        yield f"decoder_head.hidden_dim must be a multiple of {HIDDEN_DIM_MULTIPLE}, found {head.hidden_dim}"
    if head.use_cls_token:
        yield "decoder_head.use_cls_token: only the linear head reads the class token; set false, or type=linear"
    if not head.use_backbone_norm:
        yield "decoder_head.use_backbone_norm: Mask2Former reads normalised features only; set true, or type=linear"


def _loss_problems(config: "SegmentationConfig") -> Iterator[str]:
    key = "m2f_train" if config.decoder_head.type == "m2f" else "train"
    names = {
        "m2f_train": ("mask_coefficient", "dice_coefficient", "class_coefficient"),
        "train": ("diceloss_weight", "celoss_weight"),
    }[key]
    if not any(getattr(getattr(config, key), name) for name in names):
        yield f"{key}: one of {', '.join(names)} must be above 0, or nothing is learned"


def _scheduler_problems(scheduler: SchedulerConfig, lr: float) -> Iterator[str]:
    """Build the schedule, for an optimizer of the kind that trains, on one weight."""
    import torch  # here, so that reading the schema alone does not load it

    from dinov3.eval.segmentation.schedulers import build_scheduler

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    try:
        build_scheduler(
            scheduler.type,
            optimizer=optimizer,
            lr=lr,
            total_iter=scheduler.total_iter,
            constructor_kwargs=scheduler.constructor_kwargs,
        )
    except ValueError as error:
        yield f"scheduler: {error}"


def _tile_problems(evaluation: EvalConfig) -> Iterator[str]:
    crop_size, stride = evaluation.crop_size, evaluation.stride
    if evaluation.mode != "slide":
        return
    if crop_size is None:
        yield "eval.crop_size: eval.mode=slide needs the side of its tiles in pixels, found None"
    elif stride is not None and stride > crop_size:
        yield f"eval.stride must be at most eval.crop_size ({crop_size}), or tiles leave gaps, found {stride}"


def _path_problems(config: "SegmentationConfig") -> Iterator[str]:
    root, output_dir, load_from = config.datasets.root, config.output_dir, config.load_from
    if root in (MISSING, ""):
        yield "datasets.root must be given: the folder of the data set"
    elif (folder := find_path(root)) is None or not folder.is_dir():
        yield f"datasets.root: there is no folder {root!r}"
    if not output_dir:
        yield "output_dir must be given: the folder for all results"
    elif find_file(output_dir):
        yield f"output_dir must be a folder, found the file {output_dir!r}"
    if load_from and not find_file(load_from):
        yield f"load_from: there is no file {load_from!r}"
    if config.eval_only and not load_from:
        yield "eval_only needs load_from: the checkpoint to evaluate"
