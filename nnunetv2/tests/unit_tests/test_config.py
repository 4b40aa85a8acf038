"""Configurations: the packaged ones, what is refused and how it is told."""

import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dinov3.configuration.schema import refuse
from dinov3.eval.segmentation.config import M2FTrainConfig
from nnunetv2.experiment.decoder_options import complete_options, read_options
from nnunetv2.experiment.derive import architecture_keywords
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.plans import EXPERIMENT_KEY, as_stored, restore
from nnunetv2.experiment.schema import find_config, load_config, packaged_configs, read_values
from nnunetv2.run.arguments import TrainingCommand, parse_arguments
from nnunetv2.run.train_experiment import read_experiment
from nnunetv2.run.training_commands import TRAIN_M2F, TRAIN_VIT
from nnunetv2.training.nnUNetTrainer.m2f_config import M2FnnUNetConfig
from nnunetv2.training.nnUNetTrainer.mask_classification_config import MaskClassificationConfig
from nnunetv2.training.nnUNetTrainer.segformer_config import SegFormernnUNetConfig
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig
from nnunetv2.training.vit.schemas import SCHEMAS, schema_of

RGB = ["RGBTo01Normalization"] * 3
BASE = {"model.backbone_size": "tiny", "model.pretrained": "false"}


def load(name_or_path: str = "upernet", **overrides: object) -> ViTnnUNetConfig:
    pairs = {**BASE, **{k.replace("__", "."): v for k, v in overrides.items()}}
    return load_config(ViTnnUNetConfig, name_or_path, [f"{key}={value}" for key, value in pairs.items()])


def refusal(*overrides: str, name_or_path: str = "upernet") -> str:
    with pytest.raises(ExperimentError) as caught:
        config = load_config(ViTnnUNetConfig, name_or_path, [*(f"{k}={v}" for k, v in BASE.items()), *overrides])
        refuse(config.model.weight_problems(), name_or_path)  # what a new training checks as well,
        architecture_keywords(config, RGB, 2)  # and what it checks when it has loaded the decoder
    return str(caught.value)


DECODERS = ("upernet", "segformer", "dpt", "unetr", "primus", "primus_multiscale", "linear", "dinounet")
FLAT = "segformer_default"
UNET = "unet"  # test_unet_experiment.py
M2F = ("m2f", "m2f_default", "m2f_full", "m2f_lora", "m2f_test_dinov2", "m2f_test_dinov3")
QUERIES = tuple(f"{name}{end}" for name in ("eomt", "pmt") for end in ("", "_lora", "_test_dinov2", "_test_dinov3"))


def test_the_packaged_configs_are_there():
    expected = {f"{name}{end}" for name in DECODERS for end in ("", "_full", "_lora", "_test_dinov2", "_test_dinov3")}
    others = {"segformer_test_retfound", "segformer_test_visionfm", FLAT, *M2F, *QUERIES, UNET}
    others |= {"eomt_full", "pmt_full"}
    assert set(packaged_configs()) == expected | others


def is_full(name: str) -> bool:
    return name.endswith("_full")


@pytest.mark.parametrize(
    "name", [name for name in packaged_configs() if name not in (FLAT, *M2F, *QUERIES, UNET) and not is_full(name)]
)
def test_packaged_configs_have_the_documented_values(name: str):
    config = load_config(ViTnnUNetConfig, name)
    train = config.train
    assert (train.optimizer, train.momentum, train.schedule) == ("sgd", 0.99, "poly")
    assert (train.initial_lr, train.weight_decay, train.gradient_clip) == (0.001, 0.00003, 12)
    iterations = (10, 10) if "_test_" in name else (250, 50)
    assert (train.num_iterations_per_epoch, train.num_val_iterations_per_epoch) == iterations
    assert train.num_epochs == 1000
    assert config.mode == ("lora" if name.endswith("_lora") else "frozen")
    # a configuration selects the backbone and the decoder that its name says
    assert config.model.backbone == (name.rpartition("_")[2] if "_test_" in name else "dinov3")
    assert config.model.model_path.endswith(name.partition("_")[0])
    assert bool(config.model.decoder.get("multiscale")) == ("multiscale" in name)


@pytest.mark.parametrize("name", [name for name in packaged_configs() if is_full(name)])
def test_recipes_for_full_fine_tuning_have_the_documented_values(name: str):
    trainer = read_values(find_config(name))["trainer"]
    config = load_config(schema_of(trainer), name)
    base = load_config(schema_of(trainer), name.removesuffix("_full"))
    train = config.train
    assert (config.mode, config.model.model_path) == ("full", base.model.model_path)
    assert (train.optimizer, train.initial_lr, train.weight_decay) == ("adamw", 0.0001, 0.05)
    assert (train.backbone_lr_factor, train.layer_decay) == (0.1, None)
    assert (train.schedule, train.schedule_interval) == ("cosine", "epoch")
    assert (train.warmup_epochs, train.warmup_fraction, train.backbone_warmup_fraction) == (10, None, None)
    assert (train.num_epochs, train.num_iterations_per_epoch) == (200, 250)
    assert train.patch_size == base.train.patch_size
    assert (train.precision, config.gradient_clip) == ("bfloat16", 1)
    # as the page on recipes says for DINOv2
    other = ["model.backbone=dinov2", "train.layer_decay=0.8", "train.backbone_lr_factor=1"]
    assert load_config(schema_of(trainer), name, other).train.layer_decay == 0.8


def test_packaged_configs_name_the_decoders_defaults():
    """Only Primus' width, which its authors fix, differs from the default of the code."""
    for name in DECODERS:
        model = load_config(ViTnnUNetConfig, name).model
        for option in fields(read_options(model.model_path)):
            if option.name in model.decoder and option.name not in ("embed_dim", "multiscale"):
                default = option.default_factory()
                expected = list(default) if isinstance(default, tuple) else default
                assert model.decoder[option.name] == expected, (name, option.name)


def test_the_flat_segformer_schema_is_mapped():
    config = load_config(SegFormernnUNetConfig, FLAT)
    assert isinstance(config, ViTnnUNetConfig) and config.mode == "lora"
    assert config.trainer == "nnUNetTrainerNoDeepSupervision_segformer"
    assert config.model.model_path == "nnunetv2.model.model_segformer"
    assert config.model.decoder == {"decoder_hidden_size": 256, "upsampling": "bilinear"}
    assert (config.lora.r, config.lora.lora_alpha, config.lora.target_modules) == (8, 16, ["qkv"])
    assert config.lora.lora_dropout == 0.05
    assert (config.train.initial_lr, config.train.weight_decay, config.train.gradient_clip) == (0.001, 0.00003, 12.0)
    assert as_stored(SegFormernnUNetConfig().stored()) == as_stored(
        load_config(SegFormernnUNetConfig, FLAT, [f"train.{key}=null" for key in ITERATIONS])
    )


ITERATIONS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.decoder.hidden_size=3", "unknown key model.decoder (value {'hidden_size': 3})"),
        ("model.decoder_hidden_size=0", "model.decoder_hidden_size: Input should be greater than 0, found 0"),
        (
            "model.upsampling=nearest",
            "model.upsampling: Input should be 'bilinear', 'progressive' or 'full', found 'nearest'",
        ),
        ("model.backbone=dinov4", "unknown backbone 'dinov4'"),
        ("train.patch_size=[8,8]", "train.patch_size must be at least one ViT patch"),
    ],
)
def test_what_is_wrong_in_the_flat_schema_is_told(override: str, told: str):
    with pytest.raises(ExperimentError) as caught:
        load_config(SegFormernnUNetConfig, FLAT, [override])
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "override", "told"),
    [
        (
            "dpt",
            "model.decoder.use_batch_norm_in_fusion_residual=3",
            "model.decoder.use_batch_norm_in_fusion_residual: Input should be a valid boolean, found 3",
        ),
        (
            "unetr",
            "model.decoder.decoder_channels=512",
            "model.decoder.decoder_channels: Input should be a list, found 512",
        ),
        (
            "unetr",
            "model.decoder.negative_slope=steep",
            "model.decoder.negative_slope: Input should be a valid number, found 'steep'",
        ),
        (
            "primus",
            "model.decoder.embed_dim=wide",
            "model.decoder.embed_dim: Input should be a valid integer, found 'wide'",
        ),
        ("primus", "model.decoder.multiscale=1", "model.decoder.multiscale: Input should be a valid boolean, found 1"),
        ("linear", "model.decoder.dropout=true", "model.decoder.dropout: Input should be a valid number, found True"),
    ],
)
def test_types_of_decoder_options(name: str, override: str, told: str):
    assert told in refusal(override, name_or_path=name)


def test_null_and_auto_where_a_decoder_takes_them():
    assert load("primus", model__decoder__embed_dim="null").model.decoder["embed_dim"] is None
    assert load("dpt", model__decoder__use_batch_norm_in_fusion_residual="auto")


def test_defaults_of_the_schema():
    config = ViTnnUNetConfig()
    assert config.trainer == "nnUNetTrainer_vit"
    model, lora, train = config.model, config.lora, config.train
    assert (model.backbone, model.backbone_size, model.checkpoint_path) == ("dinov3", "large", "")
    assert (model.pretrained, model.freeze_backbone, model.input_norm) == (True, True, "auto")
    assert (model.out_layers, model.decoder) == (None, {})
    assert (lora.enabled, lora.r, lora.lora_alpha, lora.target_modules, lora.lora_dropout) == (
        False,
        8,
        16,
        ["qkv"],
        0.05,
    )
    unset = (
        "initial_lr",
        "weight_decay",
        "gradient_clip",
        "num_epochs",
        "batch_size",
        "patch_size",
        "save_every",
        "seed",
    )
    assert all(getattr(train, name) is None for name in unset)


@pytest.mark.parametrize("schema", [*SCHEMAS, MaskClassificationConfig])
def test_omegaconf_reads_the_schemas(schema: type):
    config = OmegaConf.structured(schema)
    assert OmegaConf.to_object(config) == schema() == OmegaConf.to_object(OmegaConf.structured(schema()))
    config.train.num_epochs = 3
    with pytest.raises(OmegaConfBaseException):
        config.train.num_epochs = "three"
    with pytest.raises(OmegaConfBaseException):
        config.train.epochs = 3


def test_overrides_and_own_files(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {backbone: dinov2}\ntrain: {initial_lr: 1e-4, patch_size: [64, 80]}\n")
    config = load(str(path), train__num_epochs=7, **{"lora.target_modules": "[qkv,proj]"})
    assert (config.model.backbone, config.train.initial_lr, config.train.num_epochs) == ("dinov2", 0.0001, 7)
    assert config.train.patch_size == [64, 80] and config.lora.target_modules == ["qkv", "proj"]
    assert type(config.train) is type(ViTnnUNetConfig().train)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.backbon=dinov2", "unknown key model.backbon (value 'dinov2') (did you mean 'backbone'?)"),
        ("modle.backbone=dinov2", "unknown key modle"),
        ("train.epochs=3", "allowed: train.optimizer"),
        ("model.decoder.hiden_size=3", "unknown key model.decoder.hiden_size (value 3) (did you mean 'hidden_size'?)"),
        ("model.decoder.hidden_size=wide", "model.decoder.hidden_size: Input should be a valid integer, found 'wide'"),
        ("model.decoder.hidden_size=true", "model.decoder.hidden_size: Input should be a valid integer, found True"),
        ("model.decoder.pool_scales=3", "model.decoder.pool_scales: Input should be a list, found 3"),
        (
            "model.decoder.decoder_dropout=[1]",
            "model.decoder.decoder_dropout: Input should be a valid number, found [1]",
        ),
        (
            "model.decoder.use_progressive_upsample=1",
            "model.decoder.use_progressive_upsample: Input should be a valid boolean, found 1",
        ),
        ("model.decoder=null", "model.decoder: Input should be a mapping, found None"),
        ("lora=null", "lora: Input should be a mapping, found None"),
        ("model.backbone=dinov4", "unknown backbone 'dinov4' (did you mean 'dinov3'?); allowed: dinov3, dinov2"),
        ("model.backbone_size=giant", "dinov3 has no size 'giant'"),
        ("model.model_path=no.such.module", "module 'no.such.module' not found"),
        ("model.model_path=.relative", "model.model_path"),
        ("model.model_path=json", "has no function create_segmentation_model"),
        ("model.checkpoint_path=/no/file.pth", "no such file: '/no/file.pth'"),
        ("model.pretrained=true", "there are no pretrained weights of dinov3 tiny to download"),
        ("model.pretrained=maybe", "model.pretrained: Input should be a valid boolean, found 'maybe'"),
        (
            "model.input_norm=zscore",
            "model.input_norm: Input should be auto, none, backbone or backbone:NAME, found 'z",
        ),
        ("model.input_norm=backbone:oct", "no such statistics of dinov3; allowed: imagenet"),
        ("model.out_layers=3", "model.out_layers: Input should be a list, found 3"),
        ("model=large", "model: Input should be a mapping, found 'large'"),
        ("lora.r=0", "lora.r: Input should be greater than 0, found 0"),
        ("lora.r=two", "lora.r: Input should be a valid integer, found 'two'"),
        ("lora.lora_dropout=1", "lora.lora_dropout: Input should be less than 1, found 1"),
        ("lora.target_modules=[]", "lora.target_modules: Input should be at least one name, found []"),
        ("train.optimizer=adam", "train.optimizer: Input should be 'sgd' or 'adamw', found 'adam'"),
        ("train.schedule=step", "train.schedule: Input should be 'poly', 'cosine' or 'onecycle'"),
        ("train.precision=fp16", "train.precision: Input should be 'float32', 'float16' or 'bfloat16'"),
        ("train.num_epochs=0", "train.num_epochs: Input should be greater than 0, found 0"),
        ("train.num_epochs=2.5", "train.num_epochs: Input should be a valid integer, found 2.5"),
        ("train.initial_lr=-1", "train.initial_lr: Input should be greater than 0"),
        ("train.initial_lr=.nan", "train.initial_lr: Input should be a finite number, found nan"),
        ("train.weight_decay=.inf", "train.weight_decay: Input should be a finite number, found inf"),
        ("train.initial_lr=???", "is not of the form key=value"),
        ("train.num_epochs=", "is not of the form key=value"),
        ("model.out_layers=[3,1]", "model.out_layers: Input should be ascending numbers from 0, found [3, 1]"),
        ("model.out_layers=[]", "model.out_layers: Input should be ascending numbers from 0, found []"),
        ("model.freeze_backbone=2", "model.freeze_backbone: Input should be a valid boolean, found 2"),
        ("model.input_norm=none:imagenet", "model.input_norm=none:imagenet: no such statistics"),
        ("train.seed.x=3", "train.seed: Input should be a valid integer, found {'x': 3}"),
        ("model.backbone_size=${nothing}", "the overrides"),
        ("train.batch_size=0", "train.batch_size: Input should be greater than 0"),
        ("train.patch_size=[64,64,64]", "train.patch_size: Input should be [height, width], found [64, 64, 64]"),
        ("train.patch_size=[]", "train.patch_size: Input should be [height, width], found []"),
        ("train.patch_size=[64,0]", "train.patch_size[1]: Input should be greater than 0, found 0"),
        ("train.patch_size=[8,64]", "train.patch_size must be at least one ViT patch (16 × 16), found [8, 64]"),
        ("train.betas=[0.9]", "train.betas: Input should be two numbers, found [0.9]"),
        ("train.betas=[0.9,1]", "train.betas[1]: Input should be less than 1, found 1"),
        ("train.layer_decay=0.8", "no layer of the backbone trains"),
        ("train.warmup_epochs=1000", "train.warmup_epochs must be below train.num_epochs (1000), found 1000"),
        (
            "train.schedule_interval=step",
            "train.schedule_interval: Input should be 'epoch' or 'iteration', found 'step'",
        ),
        ("train.warmup_epochs=1.5", "train.warmup_epochs=1.5 needs train.schedule_interval=iteration"),
        ("train.warmup_fraction=0.1", "train.warmup_fraction=0.1 needs train.schedule_interval=iteration"),
        ("train.warmup_fraction=1", "train.warmup_fraction: Input should be less than 1, found 1"),
        ("train.warmup_epochs=-1", "train.warmup_epochs: Input should be greater than or equal to 0, found -1"),
        ("train.poly_exponent=0", "train.poly_exponent: Input should be greater than 0, found 0"),
        ("train.num_epochs", "override 'train.num_epochs' is not of the form key=value"),
        ("=3", "override '=3' is not of the form key=value"),
    ],
)
def test_what_is_wrong_is_told_with_the_value_and_what_is_allowed(override: str, told: str):
    message = refusal(override)
    assert told in message and "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.warmup_epochs=200", "train.backbone_warmup_epochs=800"], "below train.num_epochs (1000), found 1000"),
        (["train.backbone_warmup_epochs=0.5"], "train.backbone_warmup_epochs=0.5 needs train.schedule_interval=iter"),
        (
            ["train.backbone_warmup_epochs=3", "train.schedule=onecycle"],
            "train.schedule is onecycle, which has no two-",
        ),
        (
            ["train.warmup_epochs=3", "train.warmup_fraction=0.1", "train.schedule_interval=iteration"],
            "train.warmup_epochs is 3, train.warmup_fraction 0.1: they stand for the same",
        ),
        (
            ["train.warmup_fraction=0.5", "train.backbone_warmup_fraction=0.5", "train.schedule_interval=iteration"],
            "below train.num_epochs (1000), found 1000",
        ),
    ],
)
def test_what_is_wrong_about_a_warmup_is_told(overrides: list[str], told: str):
    overrides = ["model.freeze_backbone=false", *overrides]
    message = refusal(*overrides)
    assert told in message and "\n" not in message


@pytest.mark.parametrize(
    "train",
    [
        {"warmup_epochs": 0.5, "schedule_interval": "iteration"},
        {"warmup_epochs": 200, "backbone_warmup_epochs": 300, "poly_exponent": 2},
        {"warmup_fraction": 0.1, "backbone_warmup_fraction": 0.15, "schedule_interval": "iteration"},
    ],
)
def test_warmups_are_read(train: dict):
    options = {f"train__{key}": value for key, value in train.items()}
    found = load(model__freeze_backbone="false", **options).train
    assert values_of(found, train) == train
    fractions = "warmup_fraction" in train
    assert found.warmup(50) == (5 if fractions else train["warmup_epochs"])
    assert found.backbone_warmup(50) == (7.5 if fractions else train.get("backbone_warmup_epochs"))


def test_all_problems_are_told_at_once_one_in_a_line():
    wrong = ("model.backbon=x", "lora.r=two", "train.num_epochs=-1", "train.momentum=2", "model.backbone=dinov4")
    lines = refusal(*wrong, "train.patch_size=[]", "train.warmup_epochs=1000").splitlines()
    assert lines[0] == "upernet has 7 problems:"
    told = ["unknown", "lora.r:", "train.momentum:", "train.num_epochs:", "train.patch_size:", "model.backbone,"]
    assert [line.split()[0] for line in lines[1:]] == [*told, "train.warmup_epochs"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "must hold a mapping"),
        ("model: {a: [}", "cannot read"),
        ("text", "unknown key text"),
    ],
)
def test_files_that_are_no_configuration(text: str, told: str, tmp_path: Path):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    message = refusal(name_or_path=str(path))
    assert told in message and str(path) in message and "\n" not in message


def test_unknown_names_list_the_packaged_ones():
    message = refusal(name_or_path="upernett")
    assert "did you mean 'upernet'" in message and "upernet_lora" in message
    assert "not found" in refusal(name_or_path="/no/such.yaml")


@pytest.mark.parametrize("backbone", ["retfound", "retfound_dinov2", "visionfm"])
def test_families_without_hub_copies_need_a_file(backbone: str, tmp_path: Path):
    size = "base" if backbone == "visionfm" else "large"
    own = [f"model.backbone={backbone}", f"model.backbone_size={size}", "model.pretrained=true"]
    assert "set model.checkpoint_path to a local file" in refusal(*own)
    weights = tmp_path / "weights.pth"
    weights.touch()
    assert load(**{"model.backbone": backbone, "model.backbone_size": size, "model.checkpoint_path": weights})


def test_all_problems_of_a_decoder_are_told_at_once_one_in_a_line():
    lines = refusal("model.decoder.hiden_size=3", "model.decoder.hidden_size=two", "model.decoder.pool_scales=[1,x]")
    told = ["unknown", "model.decoder.hidden_size:", "model.decoder.pool_scales[1]:"]
    assert sorted(line.split()[0] for line in lines.splitlines()[1:]) == sorted(told)


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a module with a factory of one's own, and return the options that it makes of those given."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str, **given: object) -> dict:
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        return complete_options(name, given)

    yield write
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


UPERNET = "from nnunetv2.model.model_upernet import UperNetSegmentationModel\n"


def test_the_options_of_a_decoder_of_ones_own_are_those_of_its_signature(own_module):
    plain = "def create_segmentation_model(num_classes, backbone_size='tiny', *, width: int = 8, sides=(1, 2)): ...\n"
    assert own_module("plain_decoder", plain) == {"width": 8, "sides": [1, 2]}
    assert own_module("plain_decoder", plain, width=4) == {"width": 4, "sides": [1, 2]}
    assert own_module("renamed_decoder", "from plain_decoder import create_segmentation_model\n", width=4)["width"] == 4
    with pytest.raises(
        ExperimentError, match=r"unknown key model\.decoder\.hidden_size.*allowed: model\.decoder\.width"
    ):
        own_module("plain_decoder", plain, hidden_size=512)


def test_a_class_hands_the_other_keywords_on_to_its_bases(own_module):
    body = "    def __init__(self, *args, width: int = 8, hidden_size: int = 32, **options): ...\n"
    own = f"{UPERNET}class Own(UperNetSegmentationModel):\n{body}create_segmentation_model = Own\n"
    options = own_module("own_class", own, pool_scales=[1])
    assert options["width"] == 8 and options["hidden_size"] == 32 and options["pool_scales"] == [1]
    with pytest.raises(ExperimentError, match=r"unknown key model\.decoder\.wdth .*did you mean 'width'"):
        own_module("own_class", own, wdth=3)
    function = own.replace("create_segmentation_model = Own", "def create_segmentation_model(**options) -> Own: ...")
    # a function may set what it only hands on: it gets no defaults of that
    assert own_module("own_function", function, pool_scales=[1]) == {"pool_scales": [1]}
    with pytest.raises(ExperimentError, match=r"unknown key model\.decoder\.wdth"):
        own_module("own_function", function, wdth=3)


def test_what_a_function_takes_that_says_not_what_it_makes_is_not_known(own_module):
    text = "def create_segmentation_model(num_classes, width: int = 8, **keywords): ...\n"
    assert own_module("open_decoder", text, anything=4) == {"width": 8, "anything": 4}
    with pytest.raises(ExperimentError, match=r"model\.decoder\.width: Input should be a valid integer, found 'x'"):
        own_module("open_decoder", text, anything=4, width="x")


def test_defaults_that_plans_cannot_hold_are_left_to_the_factory(own_module):
    text = "def create_segmentation_model(norm=object, width: 'Unknown' = 8, *, depth): ...\n"
    assert own_module("odd_decoder", text, depth=3) == {"width": 8, "depth": 3}
    with pytest.raises(ExperimentError, match=r"model\.decoder\.depth: "):
        own_module("odd_decoder", text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def create_segmentation_model(:\n", "'broken_decoder' cannot be imported: SyntaxError"),
        ("raise RuntimeError('no licence')\n", "'broken_decoder' cannot be imported: RuntimeError: no licence"),
        ("create_segmentation_model = 3\n", "has no function create_segmentation_model"),
    ],
)
def test_modules_that_are_no_decoders(own_module, text: str, told: str):
    with pytest.raises(ExperimentError) as caught:
        own_module("broken_decoder", text)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("config", "trainer"), [("upernet", "nnUNetTrainer_mymodel"), ("segformer_default", None)])
def test_the_plans_name_the_trainer_that_trains(config: str, trainer: str | None):
    named = ["-tr", trainer] if trainer else []
    args = parse_arguments(TRAIN_VIT, ["1", "2d", "0", "--config", config, "model.pretrained=false", *named])
    assert read_experiment(args).trainer == (trainer or "nnUNetTrainerNoDeepSupervision_segformer")


# --- Mask2Former ----------------------------------------------------------------------------------------------------

# The documented values, by key; those of `m2f_train` are the library's too, which has no switch for the layers.
LOSS = {
    "num_points": 12544,
    "oversample_ratio": 3.0,
    "importance_sample_ratio": 0.75,
    "mask_coefficient": 5.0,
    "dice_coefficient": 5.0,
    "class_coefficient": 2.0,
    "no_object_coefficient": 0.1,
}
MODEL = {
    "backbone": "dinov3",
    "backbone_size": "large",
    "hidden_dim": 2048,
    "num_queries": 100,
    "backbone_out_layers": "FOUR_EVEN_INTERVALS",
    "autocast_dtype": "float32",
}
LORA = {
    "enabled": True,
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["qkv", "proj"],
    "lora_dropout": 0.1,
    "use_rslora": False,
}
OPTIMISATION = {
    "optimizer": "adamw",
    "initial_lr": 0.0001,
    "weight_decay": 0.05,
    "backbone_lr_factor": 0.1,
    "schedule": "onecycle",
}


def load_m2f(*overrides: str, name_or_path: str = "m2f") -> M2FnnUNetConfig:
    return load_config(M2FnnUNetConfig, name_or_path, [*(f"{k}={v}" for k, v in BASE.items()), *overrides])


def values_of(config: object, keys: dict) -> dict:
    return {key: getattr(config, key) for key in keys}


def check_m2f_values(config: M2FnnUNetConfig, model: dict) -> None:
    assert (config.trainer, config.gradient_clip) == ("nnUNetTrainer_m2f", 10.0)
    assert values_of(config.model, model) == model
    assert asdict(config.m2f_train) == {**LOSS, "auxiliary_losses": True}
    assert values_of(config.train, OPTIMISATION) == OPTIMISATION


def test_defaults_of_the_m2f_schema():
    config = M2FnnUNetConfig()
    check_m2f_values(config, MODEL)
    assert asdict(config.lora) == LORA and config.mode == "lora"
    assert (config.model.freeze_backbone, config.train.compile, config.train.precision) == (True, False, None)
    assert config.stored().train.precision == "float32"
    assert asdict(M2FTrainConfig()) == LOSS


def test_m2f_default_names_the_defaults():
    config = load_config(M2FnnUNetConfig, "m2f_default")
    check_m2f_values(config, MODEL)
    assert asdict(config.lora) == LORA
    counts = [f"train.{key}=null" for key in ITERATIONS]
    assert as_stored(load_config(M2FnnUNetConfig, "m2f_default", counts)) == as_stored(M2FnnUNetConfig().stored())


@pytest.mark.parametrize("name", [name for name in M2F if not is_full(name)])
def test_packaged_m2f_configs_have_the_documented_values(name: str):
    config = load_config(M2FnnUNetConfig, name)
    is_test = "_test_" in name
    own = {"backbone": name.rpartition("_")[2] if is_test else "dinov3"}
    own["hidden_dim"] = 2048 if name == "m2f_default" else 256
    check_m2f_values(config, MODEL | own)
    assert config.mode == ("lora" if name in ("m2f_default", "m2f_lora") else "frozen")
    assert config.mode == "frozen" or asdict(config.lora) == LORA
    iterations = (10, 10) if is_test else (250, 50)
    assert (config.train.num_iterations_per_epoch, config.train.num_val_iterations_per_epoch) == iterations
    assert config.train.num_epochs == 1000


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.precision=bfloat16", "train.precision is bfloat16, model.autocast_dtype float32: they stand for the"),
        (
            "model.autocast_dtype=half",
            "model.autocast_dtype: Input should be 'float32', 'float16' or 'bfloat16', found 'half'",
        ),
        ("model.hidden_dim=100", "model.hidden_dim: Input should be a multiple of 32, found 100"),
        ("model.hidden_dim=0", "model.hidden_dim: Input should be greater than 0, found 0"),
        ("model.num_queries=0", "model.num_queries: Input should be greater than 0, found 0"),
        ("model.backbone_out_layers=LAST", "FOUR_LAST or four ascending numbers from 0, found 'LAST'"),
        ("model.backbone_out_layers=[1,2]", "FOUR_LAST or four ascending numbers from 0, found [1, 2]"),
        ("model.backbone_out_layers=[1,2,3,3]", "FOUR_LAST or four ascending numbers from 0, found [1, 2, 3, 3]"),
        ("model.backbone_out_layers=[0,1,2,true]", "FOUR_LAST or four ascending numbers from 0, found [0, 1, 2, True]"),
        ("model.backbone_out_layers=3", "FOUR_LAST or four ascending numbers from 0, found 3"),
        ("model.decoder={hidden_dim: 3}", "unknown key model.decoder (value {'hidden_dim': 3})"),
        ("train.mask_annealing={start: [0], end: [1]}", "unknown key train.mask_annealing"),
        ("lora.bias=all", "unknown key lora.bias (value 'all')"),
        ("train.gradient_clip=1", "unknown key train.gradient_clip (value 1)"),
        ("gradient_clip=0", "gradient_clip: Input should be greater than 0, found 0"),
        ("m2f_train.num_points=0", "m2f_train.num_points: Input should be greater than 0, found 0"),
        (
            "m2f_train.oversample_ratio=0.5",
            "m2f_train.oversample_ratio: Input should be greater than or equal to 1, found 0.5",
        ),
        ("m2f_train.oversample_ratio=1e30", "m2f_train.oversample_ratio: Input should be less than 1000, found 1e+30"),
        (
            "m2f_train.importance_sample_ratio=2",
            "m2f_train.importance_sample_ratio: Input should be less than or equal to 1, found 2",
        ),
        (
            "m2f_train.mask_coefficient=-1",
            "m2f_train.mask_coefficient: Input should be greater than or equal to 0, found -1",
        ),
        (
            "m2f_train.no_object_coefficient=0",
            "m2f_train.no_object_coefficient: Input should be greater than 0, found 0",
        ),
        ("m2f_train.points=3", "unknown key m2f_train.points (value 3)"),
        (
            "model.backbone_out_layers=null",
            "model.backbone_out_layers: Input should be FOUR_EVEN_INTERVALS, FOUR_LAST or four",
        ),
        ("train.backbone_lr_factor=0", "train.backbone_lr_factor: Input should be greater than 0, found 0"),
    ],
)
def test_what_is_wrong_in_the_m2f_schema_is_told(override: str, told: str):
    with pytest.raises(ExperimentError) as caught:
        load_m2f(override)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_two_configurations_are_not_one():
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(TRAIN_M2F, ["900", "2d", "0", "--config", "m2f", "--m2f_config", "m2f_lora"])
    for flag in ("--config", "--m2f_config"):
        assert parse_arguments(TRAIN_M2F, ["900", "2d", "0", flag, "m2f"]).config == "m2f"


def test_a_loss_of_no_terms_is_told():
    terms = ("mask", "dice", "class")
    with pytest.raises(ExperimentError, match="m2f_train.class_coefficient must be above 0, or nothing is learned"):
        load_m2f(*(f"m2f_train.{term}_coefficient=0" for term in terms))
    load_m2f(*(f"m2f_train.{term}_coefficient=0" for term in terms[:2]))


def test_mask2former_may_be_named_as_the_other_networks_are():
    assert load_m2f("model.model_path=nnunetv2.model.model_m2f") == load_m2f()


@pytest.mark.parametrize("layers", ["FOUR_LAST", [0, 2, 3, 5]])
def test_the_precision_and_the_blocks_of_m2f_are_handed_on(layers: object):
    config = load_m2f("model.autocast_dtype=bfloat16", f"model.backbone_out_layers={layers}")
    keywords = architecture_keywords(config, RGB, 2)
    assert (keywords["precision"], keywords["out_layers"]) == ("bfloat16", layers)
    assert (keywords["hidden_dim"], keywords["num_queries"]) == (256, 100)
    configuration = {EXPERIMENT_KEY: as_stored(config), "architecture": {"arch_kwargs": keywords}}
    assert restore(M2FnnUNetConfig, configuration) == config
    assert load_m2f("train.precision=float32").train.precision == "float32"  # the same, said twice


def test_the_switch_for_rank_stabilised_adapters_is_handed_on():
    keywords = architecture_keywords(load_m2f("lora.use_rslora=true", name_or_path="m2f_lora"), RGB, 2)
    assert (keywords["lora_rank"], keywords["lora_alpha"], keywords["use_rslora"]) == (8, 16, True)
    assert keywords["lora_target_modules"] == ["qkv", "proj"] and keywords["lora_dropout"] == 0.1
    assert not architecture_keywords(load_m2f(name_or_path="m2f_lora"), RGB, 2)["use_rslora"]


def test_files_that_say_that_no_bias_trains_are_read(tmp_path: Path):
    """The reference has a key for it, of which one value is allowed here."""
    path = tmp_path / "reference.yaml"
    path.write_text("trainer: nnUNetTrainer_m2f\nlora: {bias: none, r: 4}\n")
    assert asdict(load_m2f(name_or_path=str(path)).lora) == {**LORA, "r": 4}


# --- EoMT and PMT ---------------------------------------------------------------------------------------------------

# The recipes of their authors; warm-ups are fractions of a training, so that they fit one of any length.
RECIPES = {
    "eomt": {
        **{"initial_lr": 0.0002, "backbone_lr_factor": 0.1, "layer_decay": None, "schedule": "poly"},
        **{"poly_exponent": 0.9, "warmup_fraction": 0.1, "backbone_warmup_fraction": 0.15},
    },
    "pmt": {
        **{"initial_lr": 0.0002, "layer_decay": None, "schedule": "cosine"},
        **{"warmup_fraction": 0.3, "backbone_warmup_fraction": None},
    },
    "eomt_test_dinov2": {  # 2000 and 3000 of 40,000 steps
        **{"initial_lr": 0.0001, "backbone_lr_factor": 1.0, "layer_decay": 0.8, "schedule": "poly"},
        **{"poly_exponent": 0.9, "warmup_fraction": 0.05, "backbone_warmup_fraction": 0.075},
    },
}
SHARED_RECIPE = {"optimizer": "adamw", "weight_decay": 0.05, "schedule_interval": "iteration", "num_epochs": 1000}


@pytest.mark.parametrize("name", QUERIES)
def test_packaged_configs_of_eomt_and_pmt_have_the_documented_values(name: str):
    config, network = load_m2f(name_or_path=name), name.partition("_")[0]
    assert type(config) is MaskClassificationConfig and config.model.model_path.endswith(f"model_{network}")
    assert (config.trainer, config.gradient_clip) == ("nnUNetTrainer_m2f", 0.01)
    assert asdict(config.m2f_train) == {**LOSS, "auxiliary_losses": True}
    recipe = SHARED_RECIPE | RECIPES.get(name, RECIPES[network])
    assert values_of(config.train, recipe) == recipe and config.train.mask_annealing is None
    iterations = (10, 10) if "_test_" in name else (250, 50)
    assert (config.train.num_iterations_per_epoch, config.train.num_val_iterations_per_epoch) == iterations
    assert config.mode == ("lora" if name.endswith("_lora") else {"eomt": "full", "pmt": "frozen"}[network])
    assert config.model.backbone == (name.rpartition("_")[2] if "_test_" in name else "dinov3")
    for option, default in complete_options(config.model.model_path, {}).items():
        assert config.model.decoder.get(option, default) == default


@pytest.mark.parametrize(
    ("config", "override", "told"),
    [
        ("eomt", "model.freeze_backbone=true", "take PMT, which is made for a frozen backbone (--config pmt)"),
        ("m2f", "model.model_path=nnunetv2.model.model_upernet", "model_upernet gives dense logits and trains with"),
        ("eomt", "model.hidden_dim=256", "unknown key model.hidden_dim (value 256)"),
        ("eomt", "train.gradient_clip=1", "unknown key train.gradient_clip (value 1)"),
        ("pmt", "model.decoder.queries=3", "unknown key model.decoder.queries (value 3)"),
        ("pmt", "model.decoder.num_queries=many", "model.decoder.num_queries: Input should be a valid integer"),
        ("pmt", "model.model_path=nnunetv2.model.model_dpt", "model_dpt gives dense logits and trains with nnUNetTr"),
        ("pmt", "model.model_path=no.such.module", "module 'no.such.module' not found"),
        (
            "pmt",
            "train.mask_annealing={start: [0, 0.5], end: [1]}",
            "must be as many numbers, at least one, found 2 and 1",
        ),
        ("pmt", "train.mask_annealing={start: [0.5], end: [0.4]}", "not be after its end, found 0.5 and 0.4"),
        ("pmt", "train.mask_annealing={start: [0], end: [1.5]}", "train.mask_annealing.end[0]: Input should be less"),
        ("pmt", "train.mask_annealing={start: [-1], end: [1]}", "train.mask_annealing.start[0]: Input should be gre"),
        ("pmt", "train.mask_annealing={start: [], end: [1]}", "train.mask_annealing.start: Input should be at least"),
        ("pmt", "train.mask_annealing={start: [0]}", "must be as many numbers, at least one, found 1 and 0"),
        (
            "pmt",
            "train.mask_annealing={start: [0], end: [1], begin: [0]}",
            "unknown key train.mask_annealing.begin (value [0])",
        ),
        ("eomt", "train.layer_decay=2", "train.layer_decay: Input should be less than or equal to 1, found 2"),
        ("eomt", "train.warmup_epochs=5", "train.warmup_epochs is 5, train.warmup_fraction 0.1: they stand for the"),
    ],
)
def test_what_is_wrong_in_the_schema_of_queries_is_told(config: str, override: str, told: str):
    with pytest.raises(ExperimentError) as caught:
        architecture_keywords(load_m2f(override, name_or_path=config), RGB, 2)
    assert told in str(caught.value) and (config == "m2f" or "\n" not in str(caught.value))


@pytest.mark.parametrize("config", ["m2f", "eomt", "pmt"])
def test_the_vit_schema_points_to_the_configuration_of_a_network_with_queries(config: str):
    message = refusal(f"model.model_path=nnunetv2.model.model_{config}")
    assert message.endswith(f"that of nnUNetTrainer_m2f: use --config {config}") and "\n" not in message


def test_without_a_choice_the_backbone_trains_where_it_decodes(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    for network, mode in (("eomt", "full"), ("pmt", "frozen")):
        path.write_text(f"model: {{model_path: nnunetv2.model.model_{network}}}")
        config = load_m2f(name_or_path=str(path))
        assert (config.mode, config.model.freeze_backbone) == (mode, mode == "frozen")


@pytest.mark.parametrize("command", [TRAIN_VIT, TRAIN_M2F])
@pytest.mark.parametrize("name", ["eomt", "pmt", "m2f"])
def test_both_commands_take_every_network_of_mask_classification(command: TrainingCommand, name: str):
    config = read_experiment(parse_arguments(command, ["1", "2d", "0", "--config", name, "model.pretrained=false"]))
    assert config.trainer == "nnUNetTrainer_m2f" and config.model.model_path == f"nnunetv2.model.model_{name}"
