"""Configurations of segmentation: packaged ones, their checks, and what they tell about wrong ones."""

import inspect
import json
import math
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.config import (
    CONFIG_FILES,
    METRICS,
    ModelConfig,
    ModelDtype,
    SegmentationConfig,
    config_from,
    read_config,
    values_of,
)
from dinov3.eval.segmentation.inference import INFERENCE_MODES
from dinov3.eval.segmentation.metrics import calculate_segmentation_metrics
from dinov3.eval.segmentation.models.segmentor import DECODER_TYPES
from dinov3.eval.segmentation.schedulers import SCHEDULERS
from dinov3.models.feature_layers import BackboneLayersSet

PACKAGED = ["config-ade20k-linear-training", "config-ade20k-m2f-inference", "config-ade20k-m2f-training"]


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """What every configuration needs."""
    tiny = ["model.backbone=dinov3", "model.backbone_size=tiny", "model.pretrained=false"]
    return [*tiny, f"datasets.root={tmp_path}", f"output_dir={tmp_path / 'results'}"]


def told(path: str | None, overrides: list[str]) -> str:
    with pytest.raises(ExperimentError) as error:
        read_config(path, overrides)
    return str(error.value)


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_configurations_are_complete_but_for_the_paths(name: str, given: list[str], tmp_path: Path):
    (tmp_path / "head.pth").touch()
    config = read_config(name, [*given, f"load_from={tmp_path / 'head.pth'}"])
    assert config.decoder_head.num_classes == 150 and config.eval.reduce_zero_label and config.n_gpus == 1
    assert config.decoder_head.type == ("linear" if "linear" in name else "m2f")
    assert config.eval_only == config.eval.use_tta == ("inference" in name)
    assert told(name, [f"load_from={tmp_path / 'head.pth'}"]).count("\n") == 3  # a title, the ViT, root and output_dir


def test_there_are_no_other_packaged_configurations():
    assert CONFIG_FILES.names() == PACKAGED


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_files_are_read_alike_without_omegaconf(name: str):
    path = CONFIG_FILES.find(name)
    assert yaml.safe_load(path.read_text()) == OmegaConf.to_container(OmegaConf.load(path))


def test_the_forks_training_is_the_packaged_one(golden: Path, given: list[str]):
    fork = json.loads((golden / "config_defaults.json").read_text())["user_fork"]["training_config_lora_1"]
    theirs, ours = (config_from({**values, **common_values(given)}) for values in (fork, packaged_values()))
    assert replace(ours.decoder_head, num_classes=4, hidden_dim=2048) == theirs.decoder_head
    assert replace(ours.eval, reduce_zero_label=False, eval_interval=100, use_tta=True) == theirs.eval
    for section in ("bs", "n_gpus", "model_dtype", "lora", "scheduler", "optimizer", "m2f_train", "transforms"):
        assert getattr(ours, section) == getattr(theirs, section), section


def packaged_values() -> dict[str, Any]:
    return CONFIG_FILES.read(CONFIG_FILES.find("config-ade20k-m2f-training"))


def common_values(overrides: list[str]) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.from_dotlist(overrides))


def test_defaults_are_changed_by_the_file_and_both_by_overrides(given: list[str], tmp_path: Path):
    (tmp_path / "own.yaml").write_text("decoder_head:\n  type: linear\nbs: 3\nmodel_dtype: BFLOAT16\n")
    config = read_config(str(tmp_path / "own.yaml"), [*given, "bs=4", "decoder_head.backbone_out_layers=FOUR_LAST"])
    assert (config.bs, config.num_workers, config.decoder_head.type) == (4, 6, "linear")
    assert config.model_dtype is ModelDtype.BFLOAT16
    assert config.decoder_head.backbone_out_layers is BackboneLayersSet.FOUR_LAST
    assert config == read_config(tmp_path / "own.yaml", [*given, "bs=4", "decoder_head.backbone_out_layers=FOUR_LAST"])


def test_values_are_the_inverse(given: list[str]):
    infinite = "scheduler.constructor_kwargs={final_div_factor: .inf}"
    config = read_config("config-ade20k-linear-training", [*given, infinite])
    assert config.scheduler.constructor_kwargs["final_div_factor"] == math.inf
    values = values_of(config)
    assert config_from(values) == config_from(yaml.safe_load(yaml.safe_dump(values))) == config
    assert values["model_dtype"] == "FLOAT32"
    config.model.pretrained_weights = Path("weights.pth")
    assert values_of(config)["model"]["pretrained_weights"] == "weights.pth"


def test_a_caller_may_bring_the_vit(given: list[str]):
    values = {key: value for key, value in common_values(given).items() if key != "model"}
    config = config_from({**values, "decoder_head": {"type": "linear"}})
    assert config.model is None and not list(config.problems())
    for overrides in (given[3:], [*given[3:], "model=null"]):
        assert "exactly one of model.dino_hub" in told("config-ade20k-linear-training", overrides)


WRONG = [
    ("bs=0", "bs: Input should be greater than 0, found 0"),
    ("bs=two", "bs: Input should be a valid integer, found 'two'"),
    ("seed=-1", "seed: Input should be greater than or equal to 0, found -1"),
    (f"seed={2**64}", f"seed: Input should be less than {2**63}, found {2**64}"),
    ("modell.dino_hub=x", "unknown key modell"),
    ("optimizer.learning_rate=1", "unknown key optimizer.learning_rate"),
    ("model.dinohub=x", "unknown key model.dinohub (value 'x') (did you mean 'dino_hub'?); allowed: model.config_file"),
    ("eval.crop=512", "unknown key eval.crop (value 512) (did you mean 'crop_size'?)"),
    ("model=dinov3", "model: Input should be a mapping, found 'dinov3'"),
    ("decoder_head.type=m3f", "decoder_head.type: Input should be 'm2f' or 'linear', found 'm3f'"),
    ("decoder_head.num_classes=256", "decoder_head.num_classes: Input should be less than or equal to 255"),
    ("decoder_head.backbone_out_layers=ALL", "Input should be 'LAST', 'FOUR_LAST' or 'FOUR_EVEN_INTERVALS'"),
    ("model_dtype=FLOAT16", "model_dtype: Input should be 'FLOAT32' or 'BFLOAT16', found 'FLOAT16'"),
    ("metric_to_save=miou", "metric_to_save: Input should be 'aAcc', 'mIoU', 'mAcc', 'mDice', 'mFscore'"),
    ("metric_to_save=miou", "found 'miou' (did you mean 'mIoU'?)"),
    ("model_dtype=float32", "Input should be 'FLOAT32' or 'BFLOAT16', found 'float32' (did you mean 'FLOAT32'?)"),
    ("decoder_head.backbone_out_layers=four_lst", "found 'four_lst' (did you mean 'FOUR_LAST'?)"),
    ("eval.mode=tiles", "eval.mode: Input should be 'whole' or 'slide', found 'tiles'"),
    ("datasets.on_error=warn", "datasets.on_error: Input should be 'stop' or 'skip', found 'warn'"),
    ("datasets.val_share=1", "datasets.val_share: Input should be less than 1, found 1"),
    ("optimizer.lr=.nan", "optimizer.lr: Input should be a finite number, found nan"),
    ("optimizer.lr=nan", "optimizer.lr: Input should be a finite number, found 'nan'"),
    ("optimizer.lr=-inf", "optimizer.lr: Input should be a finite number, found '-inf'"),
    ("optimizer.lr=high", "optimizer.lr: Input should be a valid number, found 'high'"),
    ("scheduler.type=Cosine", "scheduler.type: Input should be 'WarmupOneCycleLR', 'WarmupMultiStepLR' or 'WarmupPoly"),
    ("transforms.train.flip_prob=1.5", "transforms.train.flip_prob: Input should be less than or equal to 1"),
    ("transforms.train.crop_size=512", "transforms.train.crop_size: Input should be a list, found 512"),
    ("transforms.train.random_img_size_ratio_range=[2,1]", "should be two numbers, [smallest, largest], found [2, 1]"),
    ("transforms.train.random_img_size_ratio_range=[2]", "should be two numbers, [smallest, largest], found [2]"),
    ("transforms.train.crop_size=[64]", "transforms.train.crop_size: Input should be [height, width], found [64]"),
    ("transforms.mean=[1,2]", "transforms.mean: Input should be three numbers, [red, green, blue], found [1, 2]"),
    ("transforms.std=[1]", "transforms.std: Input should be three numbers, [red, green, blue], found [1]"),
    ("lora.target_modules=[]", "lora.target_modules: Input should be at least one name, found []"),
    ("transforms.std=[1,2,0]", "transforms.std[2]: Input should be greater than 0, found 0"),
    ("transforms.eval.tta_ratios=[]", "transforms.eval.tta_ratios: Input should be at least one number, found []"),
    ("lora.bias=some", "lora.bias: Input should be 'none', 'all' or 'lora_only', found 'some'"),
    ("checkpoint.keep_last=0", "checkpoint.keep_last: Input should be greater than 0, found 0"),
    ("model.dino_hub=dinov3_vitl16", "exactly one of model.dino_hub (such as dinov3_vitl16) and model.backbone"),
    ("model.backbone=dinov4", "model.backbone: unknown backbone 'dinov4' (did you mean 'dinov3'?); allowed: dinov3"),
    ("model.backbone_size=giant", "model.backbone: dinov3 has no size 'giant'"),
    ("model.pretrained=true", "model.backbone: there are no pretrained weights of dinov3 tiny to download: set model."),
    ("model.config_file=x.yaml", "model.config_file 'x.yaml' is not supported"),
    ("model.checkpoint_path=gone.pth", "model.checkpoint_path: 'gone.pth' does not exist"),
    ("model.pretrained_weights=gone.pth", "model.pretrained_weights: 'gone.pth' does not exist"),
    ("datasets.root=gone", "datasets.root: there is no folder 'gone'"),
    ("load_from=gone.pth", "load_from: there is no file 'gone.pth'"),
    ("eval_only=true", "eval_only needs load_from: the checkpoint to evaluate"),
    ("datasets.class_names=[a,b]", "as many names as there are classes (decoder_head.num_classes=150), found 2"),
    ("datasets.class_names=[a,b,a]", "datasets.class_names must differ from each other, found 'a' more than once"),
    ("datasets.train=ADE20K", "datasets.train must be one of ADE20K:split=TRAIN, ADE20K:split=VAL, CITYSCAPES:split="),
    ("datasets.val=FOLDER:split=TEST", "datasets.val must be one of ADE20K:split=TRAIN"),
    ("datasets.root=", "override 'datasets.root=' is not of the form key=value (the value is missing), such as"),
    ("output_dir=", "override 'output_dir=' is not of the form key=value (the value is missing), such as"),
    ("eval.stride=513", "eval.stride must be at most eval.crop_size (512), or tiles leave gaps, found 513"),
    ("eval.crop_size=null", "eval.crop_size: eval.mode=slide needs the side of its tiles in pixels, found None"),
    (
        "transforms.train.crop_size=null",
        "transforms.train.crop_size is needed to make batches of images of random sizes",
    ),
    ("train.celoss_weight=0", "train: one of diceloss_weight, celoss_weight must be above 0, or nothing is learned"),
    ("scheduler.total_iter=1500", "warmup_iters must be at least 0 and below total_iter (1500), found 1500"),
    (
        "scheduler.constructor_kwargs.warmup=3",
        "scheduler.constructor_kwargs: WarmupOneCycleLR has no option 'warmup'; all",
    ),
    ("scheduler.constructor_kwargs.warmup_iters=many", "kwargs: warmup_iters must be an integer, found 'many'"),
    ("scheduler.constructor_kwargs.update_momentum=true", "update_momentum needs an optimizer with momentum"),
]


@pytest.mark.parametrize(("override", "sentence"), WRONG, ids=[override for override, _ in WRONG])
def test_a_wrong_value_is_told_in_a_sentence(override: str, sentence: str, given: list[str]):
    message = told("config-ade20k-linear-training", [*given, override])
    assert message.count(sentence) == 1 and message.startswith(("config-ade20k-linear-training", "override"))


def test_a_single_problem_takes_a_line(given: list[str]):
    expected = "config-ade20k-linear-training: bs: Input should be greater than 0, found 0"
    assert told("config-ade20k-linear-training", [*given, "bs=0"]) == expected


@pytest.mark.parametrize(
    "override",
    [
        "decoder_head.num_classes=0",
        "decoder_head.type=m3f",
        "decoder_head={type: lin, use_backbone_norm: false}",
        "transforms.train.crop_size=[64]",
        "transforms.train.crop_size=[64,0]",
        "scheduler.total_iter=-1",
        "eval.mode=tiles",
        "model.backbone=3",
    ],
)
def test_a_wrong_value_is_not_judged_again_by_its_default(override: str, given: list[str]):
    names = "datasets.class_names=[a]" if "num_classes" in override else "bs=2"
    message = told("config-ade20k-linear-training", [*given, names, override])
    assert "\n" not in message and "Input should be" in message


def test_another_wrong_value_leaves_the_other_checks_in_force(given: list[str]):
    message = told("config-ade20k-linear-training", [*given, "decoder_head.dropout=2", "datasets.class_names=[a]"])
    assert "decoder_head.dropout: " in message and "decoder_head.num_classes=150" in message


def test_one_class_may_have_a_name(given: list[str]):
    one = [*given, "decoder_head.num_classes=1"]
    assert read_config(PACKAGED[0], [*one, "datasets.class_names=[a]"]).datasets.class_names == ["a"]
    expected = "as many names as there are classes (decoder_head.num_classes=1), found 2"
    assert expected in told(PACKAGED[0], [*one, "datasets.class_names=[a,b]"])


def test_parts_of_known_layouts_are_accepted(given: list[str]):
    parts = ["datasets.train=CITYSCAPES:split=TRAIN", "datasets.val=CITYSCAPES:split=VAL", f"seed={2**63 - 1}"]
    assert read_config(PACKAGED[0], [*given, *parts]).datasets.val == "CITYSCAPES:split=VAL"


OF_MASK2FORMER = [
    (
        "decoder_head.backbone_out_layers=LAST",
        "reads four feature layers, found LAST, which is one; allowed: FOUR",
    ),
    ("decoder_head.hidden_dim=48", "decoder_head.hidden_dim must be a multiple of 32, found 48"),
    ("decoder_head.use_cls_token=true", "only decoder_head.type=linear reads the class token"),
    ("decoder_head.use_backbone_norm=false", "Mask2Former reads normalised features only"),
]


@pytest.mark.parametrize(("override", "sentence"), OF_MASK2FORMER)
def test_what_only_the_linear_head_can_do_is_told(override: str, sentence: str, given: list[str]):
    assert sentence in told("config-ade20k-m2f-training", [*given, override])
    assert read_config("config-ade20k-linear-training", [*given, override])


def test_all_problems_are_told_together(given: list[str]):
    wrong = ["bs=0", "eval.crop=3", "decoder_head.hidden_dim=48", "eval_only=true", "model.backbone_size=x"]
    lines = told("config-ade20k-m2f-training", [*given, *wrong]).splitlines()
    assert lines[0] == "config-ade20k-m2f-training has 5 problems:" and len(lines) == 6


def test_losses_without_a_weight_are_told(given: list[str]):
    zero = [f"m2f_train.{name}_coefficient=0" for name in ("mask", "dice", "class")]
    assert "m2f_train: one of mask_coefficient, " in told("config-ade20k-m2f-training", [*given, *zero])
    assert read_config("config-ade20k-linear-training", [*given, *zero])


def test_a_dataset_and_a_folder_for_results_must_be_given(given: list[str], tmp_path: Path):
    message = told("config-ade20k-linear-training", given[:3])
    assert "datasets.root must be given" in message and "output_dir must be given" in message
    (tmp_path / "file").touch()
    assert "must be a folder, found the file" in told(PACKAGED[0], [*given, f"output_dir={tmp_path / 'file'}"])


def test_weights_may_have_an_address_but_one_key(given: list[str]):
    address = "model.pretrained_weights=https://localhost/vit.pth"
    assert read_config(PACKAGED[0], [*given, address]).model.pretrained_weights == "https://localhost/vit.pth"
    both = [*given, address, "model.checkpoint_path=https://localhost/vit.pth"]
    assert "mean the same" in told(PACKAGED[0], both)


@pytest.mark.parametrize("name", ["dinov3_vitl16", "dinov3_vitl14"])
def test_models_of_the_reference_are_known(name: str, given: list[str]):
    assert read_config(PACKAGED[0], [f"model.dino_hub={name}", *given[3:]]).model == ModelConfig(dino_hub=name)


def test_unknown_models_of_the_reference_are_told(given: list[str]):
    message = told(PACKAGED[0], ["model.dino_hub=dinov3_vitl6", *given[3:]])
    assert "unknown dino_hub 'dinov3_vitl6' (did you mean 'dinov3_vitl16'?); allowed: dinov3_vits16, " in message


def test_the_allowed_names_are_those_of_the_parts():
    means = {name for name, value in calculate_segmentation_metrics(torch.eye(2)).items() if value.ndim == 0}
    assert means == set(METRICS)
    hints = inspect.get_annotations(SegmentationConfig)
    assert allowed(hints["metric_to_save"]) == METRICS
    sections = SegmentationConfig()
    for section, key, names in (
        (sections.decoder_head, "type", DECODER_TYPES),
        (sections.eval, "mode", INFERENCE_MODES),
        (sections.scheduler, "type", SCHEDULERS),
    ):
        assert set(allowed(inspect.get_annotations(type(section))[key])) == set(names)


def allowed(hint: Any) -> tuple[str, ...]:
    return hint.__metadata__[0].names


def test_omegaconf_still_merges_the_dataclass():
    merged = OmegaConf.merge(OmegaConf.structured(SegmentationConfig), {"datasets": {"root": "x"}, "bs": 5})
    config = OmegaConf.to_object(merged)
    assert config.bs == 5 and isinstance(config.model_dtype, Enum) and isinstance(config, SegmentationConfig)
