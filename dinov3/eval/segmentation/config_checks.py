"""Checks of a segmentation configuration: impossible combinations of values, and missing values."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from dinov3.configuration.schema import Problem
from dinov3.configuration.yaml_files import find_file, find_path
from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.config_sections import ModelConfig
from dinov3.hub.architectures import find_architecture
from dinov3.hub.families import NO_WEIGHTS_REMEDY, TIMM_PREFIX, check_backbone, hub_repository
from dinov3.models.feature_layers import BackboneLayersSet

if TYPE_CHECKING:
    from dinov3.eval.segmentation.config import SegmentationConfig

HIDDEN_DIM_MULTIPLE = 32  # groups of the head's group norm; also a multiple of its 16 attention heads
LOSS_WEIGHTS = {
    "m2f_train": ("mask_coefficient", "dice_coefficient", "class_coefficient"),
    "train": ("diceloss_weight", "celoss_weight"),
}


def problems(config: "SegmentationConfig") -> Iterator[Problem]:
    """Yield one sentence for each problem of a configuration whose single values are possible."""
    for check, keys in CHECKS.items():
        for message in check(config):
            yield Problem(message, keys)


def _config_file_problems(config: "SegmentationConfig") -> Iterator[str]:
    if config.model is not None and config.model.config_file is not None:
        yield f"model.config_file {config.model.config_file!r} is not supported: set model.dino_hub or model.backbone"


def _model_problems(config: "SegmentationConfig") -> Iterator[str]:
    model = config.model
    if model is None:
        return
    if (model.dino_hub is None) == (model.backbone is None):
        yield (
            "exactly one of model.dino_hub (such as dinov3_vitl16) and model.backbone (such as dinov3) must name the "
            f"ViT, found {model.dino_hub!r} and {model.backbone!r}"
        )
    elif model.backbone is None:
        yield from _refusal("model.dino_hub", find_architecture, model.dino_hub)
    else:
        yield from _refusal("model.backbone", _check_registry, model)


def _weight_problems(config: "SegmentationConfig") -> Iterator[str]:
    model = config.model
    if model is None:
        return
    if model.pretrained_weights and model.checkpoint_path:
        yield "model.pretrained_weights and model.checkpoint_path mean the same: set only one of them"
    for key in ("pretrained_weights", "checkpoint_path"):
        path = str(getattr(model, key) or "")
        if path and not path.startswith(("http:", "https:")) and find_path(path) is None:
            yield f"model.{key}: {path!r} does not exist"


def _refusal(key: str, check: Callable[[Any], Any], value: Any) -> Iterator[str]:
    """Yield the reason why a check rejects a value."""
    try:
        check(value)
    except ValueError as error:
        yield f"{key}: {error}"


def _check_registry(model: ModelConfig) -> None:
    """Check that the registry has this ViT, and the weights if they are to be downloaded."""
    check_backbone(model.backbone, model.backbone_size)
    has_file = model.pretrained_weights or model.checkpoint_path
    if model.pretrained and not has_file and not model.backbone.startswith(TIMM_PREFIX):
        try:
            hub_repository(model.backbone, model.backbone_size)
        except ValueError as error:
            raise ValueError(f"{error}: {NO_WEIGHTS_REMEDY}") from error


def _decoder_problems(config: "SegmentationConfig") -> Iterator[str]:
    head = config.decoder_head
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
        yield "decoder_head.use_cls_token: only decoder_head.type=linear reads the class token; set it to false"
    if not head.use_backbone_norm:
        yield "decoder_head.use_backbone_norm: Mask2Former reads normalised features only; set true, or another decoder"


def _loss_problems(config: "SegmentationConfig") -> Iterator[str]:
    section = "m2f_train" if config.decoder_head.type == "m2f" else "train"
    names = LOSS_WEIGHTS[section]
    if not any(getattr(getattr(config, section), name) for name in names):
        yield f"{section}: one of {', '.join(names)} must be above 0, or nothing is learned"


def _scheduler_problems(config: "SegmentationConfig") -> Iterator[str]:
    """Build the schedule for an AdamW, the optimizer of the training, with a single weight."""
    import torch  # here, so that importing the schema does not load it

    from dinov3.eval.segmentation.schedulers import build_scheduler

    scheduler, lr = config.scheduler, config.optimizer.lr
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
        yield f"scheduler.constructor_kwargs: {error}"


def _tile_problems(config: "SegmentationConfig") -> Iterator[str]:
    crop_size, stride = config.eval.crop_size, config.eval.stride
    if config.eval.mode != "slide":
        return
    if crop_size is None:
        yield "eval.crop_size: eval.mode=slide needs the side of its tiles in pixels, found None"
    elif stride is not None and stride > crop_size:
        yield f"eval.stride must be at most eval.crop_size ({crop_size}), or tiles leave gaps, found {stride}"


def _batch_problems(config: "SegmentationConfig") -> Iterator[str]:
    train = config.transforms.train
    if config.bs > 1 and train.random_img_size_ratio_range and not train.crop_size:
        yield (
            "transforms.train.crop_size is needed to make batches of images of random sizes "
            f"(random_img_size_ratio_range): set it, or bs=1, found bs={config.bs}"
        )


def _class_number_problems(config: "SegmentationConfig") -> Iterator[str]:
    names, num_classes = config.datasets.class_names, config.decoder_head.num_classes
    if names is not None and len(names) != num_classes:
        yield (
            "datasets.class_names must have as many names as there are classes "
            f"(decoder_head.num_classes={num_classes}), found {len(names)}"
        )


def _class_name_problems(config: "SegmentationConfig") -> Iterator[str]:
    counts = Counter(config.datasets.class_names or ())
    if repeated := [name for name, count in counts.items() if count > 1]:
        yield f"datasets.class_names must differ from each other, found {repeated[0]!r} more than once"


def _train_part_problems(config: "SegmentationConfig") -> Iterator[str]:
    yield from _part_problems("datasets.train", config.datasets.train)


def _val_part_problems(config: "SegmentationConfig") -> Iterator[str]:
    yield from _part_problems("datasets.val", config.datasets.val)


def _part_problems(key: str, text: str) -> Iterator[str]:
    from dinov3.data.layouts.registry import parse  # here, since it loads torch

    if text:
        try:
            parse(text, key)
        except ExperimentError as error:
            yield str(error)


def _root_problems(config: "SegmentationConfig") -> Iterator[str]:
    root = config.datasets.root
    if root in (MISSING, ""):
        yield "datasets.root must be given: the folder of the data set"
    elif (folder := find_path(root)) is None or not folder.is_dir():
        yield f"datasets.root: there is no folder {root!r}"


def _output_problems(config: "SegmentationConfig") -> Iterator[str]:
    output_dir = config.output_dir
    if not output_dir:
        yield "output_dir must be given: the folder for all results"
    elif find_file(output_dir):
        yield f"output_dir must be a folder, found the file {output_dir!r}"


def _checkpoint_problems(config: "SegmentationConfig") -> Iterator[str]:
    load_from = config.load_from
    if load_from and not find_file(load_from):
        yield f"load_from: there is no file {load_from!r}"
    if config.eval_only and not load_from:
        yield "eval_only needs load_from: the checkpoint to evaluate"


CHECKS: dict[Callable[["SegmentationConfig"], Iterator[str]], tuple[str, ...]] = {  # and the keys that they compare
    _config_file_problems: ("model.config_file",),
    _model_problems: (
        "model.dino_hub",
        "model.backbone",
        "model.backbone_size",
        "model.pretrained",
        "model.pretrained_weights",
        "model.checkpoint_path",
    ),
    _weight_problems: ("model.pretrained_weights", "model.checkpoint_path"),
    _decoder_problems: (
        "decoder_head.type",
        "decoder_head.backbone_out_layers",
        "decoder_head.hidden_dim",
        "decoder_head.use_cls_token",
        "decoder_head.use_backbone_norm",
    ),
    _loss_problems: (
        "decoder_head.type",
        *(f"{section}.{name}" for section, names in LOSS_WEIGHTS.items() for name in names),
    ),
    _scheduler_problems: ("scheduler.type", "scheduler.total_iter", "scheduler.constructor_kwargs"),
    _tile_problems: ("eval.mode", "eval.crop_size", "eval.stride"),
    _root_problems: ("datasets.root",),
    _output_problems: ("output_dir",),
    _checkpoint_problems: ("load_from", "eval_only"),
    _batch_problems: ("bs", "transforms.train.random_img_size_ratio_range", "transforms.train.crop_size"),
    _class_number_problems: ("datasets.class_names", "decoder_head.num_classes"),
    _class_name_problems: ("datasets.class_names",),
    _train_part_problems: ("datasets.train",),
    _val_part_problems: ("datasets.val",),
}
