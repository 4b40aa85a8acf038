"""What a user can get wrong on the command line: one sentence, exit code 2, nothing written."""

import contextlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from nnunetv2.model.backbone import create_backbone

ID = "900"
Refused = Callable[..., str]
SCRIPT = Path(__file__).resolve().parents[3] / "nnUNetv2_train_vit.py"
CONFIG = ("--config", "tiny.yaml", "-device", "cpu")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "configuration 'wrong.yaml' not found"),
        ("", "wrong.yaml is empty"),
        ("model: [unclosed", "cannot read wrong.yaml as YAML"),
        ("model: {backbone: ${nothing}}", "cannot read wrong.yaml as YAML"),
        ("- model\n- train", "wrong.yaml must hold a mapping of keys to values, found ListConfig"),
        ("just a sentence", "unknown key just a sentence (value None); allowed: trainer, model, lora, train"),
        ("modle: {backbone: dinov3}", "unknown key modle (value {'backbone': 'dinov3'}) (did you mean 'model'?)"),
        ("model: {bakbone: dinov3}", "unknown key model.bakbone (value 'dinov3') (did you mean 'backbone'?)"),
        ("model: {1: 2}", "unknown key model.1 (value 2)"),
        ("trainer: 5", "trainer must be str, found 5"),
        ("lora: {rank: 4}", "unknown key lora.rank (value 4); allowed: lora.enabled, lora.r"),
        ("train: {epochs: 4}", "unknown key train.epochs (value 4) (did you mean 'num_epochs'?)"),
        ("train: 5", "train: Input should be a mapping, found 5"),
    ],
)
def test_wrong_files(refused: Refused, workplace, text: str | None, told: str):
    path = workplace.root / "wrong.yaml"
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    assert told in refused(workplace, ID, "2d", "0", "--config", "wrong.yaml", "-device", "cpu")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.num_epochs", "override 'train.num_epochs' is not of the form key=value"),
        ("=3", "override '=3' is not of the form key=value"),
        (
            "model.decoder.hidden_sise=8",
            "unknown key model.decoder.hidden_sise (value 8) (did you mean 'hidden_size'?)",
        ),
        ("model.decoder.hidden_size=wide", "model.decoder.hidden_size: Input should be a valid integer, found 'wide'"),
        ("model.decoder.hidden_size=0", "UperNet's hidden_size must be at least 2, found 0"),
        ("model.decoder.decoder_dropout=2", "UperNet's decoder_dropout must be in [0, 1), found 2"),
        ("model.decoder.pool_scales=[0]", "UperNet's pool_scales must be at least 1 each, found [0]"),
        ("model.backbone=dinov4", "unknown backbone 'dinov4' (did you mean 'dinov3'?); allowed: dinov3, dinov2"),
        ("model.backbone_size=huge", "dinov3 has no size 'huge' (did you mean 'huge_plus'?); allowed: tiny, small"),
        ("model.backbone_size=giant", "dinov3 has no size 'giant'; allowed: tiny, small"),
        ("model.backbone=timm:resnet18", "timm cannot build 'resnet18' as a ViT"),
        ("model.backbone=timm:vit_smal_patch16_224", "timm has no model 'vit_smal_patch16_224' (did you mean"),
        ("model.model_path=no.module", "module 'no.module' not found"),
        ("model.model_path=json", "has no function create_segmentation_model"),
        ("model.freeze_backbone=1", "model.freeze_backbone: Input should be a valid boolean, found 1"),
        ("model.out_layers=[3,1]", "model.out_layers: Input should be ascending numbers from 0, found [3, 1]"),
        ("model.out_layers=[0,1,2,9]", "out_layers [0, 1, 2, 9] must be ascending block indices from 0 to 3"),
        (
            "model.input_norm=zscore",
            "model.input_norm: Input should be auto, none, backbone or backbone:NAME, found",
        ),
        ("model.input_norm=auto:oct", "no such statistics of dinov3; allowed: imagenet"),
        ("train.optimizer=adam", "train.optimizer: Input should be 'sgd' or 'adamw', found 'adam'"),
        ("train.schedule=step", "train.schedule: Input should be 'poly', 'cosine' or 'onecycle', found 'step'"),
        ("train.precision=fp16", "train.precision: Input should be 'float32', 'float16' or 'bfloat16', found 'fp16'"),
        ("train.initial_lr=-0.1", "train.initial_lr: Input should be greater than 0, found -0.1"),
        ("train.initial_lr=fast", "train.initial_lr: Input should be a valid number, found 'fast'"),
        ("train.weight_decay=-1", "train.weight_decay: Input should be greater than or equal to 0, found -1"),
        ("train.gradient_clip=0", "train.gradient_clip: Input should be greater than 0, found 0"),
        ("train.num_epochs=0", "train.num_epochs: Input should be greater than 0, found 0"),
        (
            "train.num_iterations_per_epoch=-5",
            "train.num_iterations_per_epoch: Input should be greater than 0, found -5",
        ),
        ("train.batch_size=0", "train.batch_size: Input should be greater than 0, found 0"),
        ("train.save_every=0", "train.save_every: Input should be greater than 0, found 0"),
        ("train.seed=-1", "train.seed: Input should be greater than or equal to 0, found -1"),
        ("train.patch_size=[64,64,64]", "train.patch_size: Input should be [height, width], found [64, 64, 64]"),
        ("train.patch_size=[15,64]", "train.patch_size must be at least one ViT patch (16 × 16), found [15, 64]"),
        ("train.patch_size=64", "train.patch_size: Input should be a list, found 64"),
        ("lora.r=0", "lora.r: Input should be greater than 0, found 0"),
        ("lora.target_modules=[]", "lora.target_modules: Input should be at least one name, found []"),
        ("lora.lora_dropout=1", "lora.lora_dropout: Input should be less than 1, found 1"),
        ("model.checkpoint_path=none.pth", "model.checkpoint_path: no such file: 'none.pth'"),
        ("model.pretrained=true", "there are no pretrained weights of dinov3 tiny to download"),
    ],
)
def test_wrong_values(refused: Refused, workplace, override: str, told: str):
    assert told in refused(workplace, ID, "2d", "0", *CONFIG, override)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.backbone=retfound", "model.backbone_size=large"], "no pretrained weights of retfound large"),
        (["model.backbone=retfound_dinov2", "model.backbone_size=large"], "no pretrained weights of retfound_dinov2"),
        (["model.backbone=visionfm", "model.backbone_size=base"], "no pretrained weights of visionfm base"),
        (["model.backbone_size=small"], "the pretrained weights of timm/vit_small_patch16_dinov3.lvd1689m are not in"),
        (["model.backbone=timm:vit_tiny_patch16_224"], "the pretrained weights of timm/vit_tiny_patch16_224"),
    ],
)
def test_weights_that_are_not_there(refused: Refused, workplace, overrides: list[str], told: str):
    message = refused(workplace, ID, "2d", "0", *CONFIG, "model.pretrained=true", *overrides)
    assert told in message and "model.checkpoint_path" in message and "model.pretrained=false" in message


def test_a_patch_smaller_than_those_of_any_vit(refused: Refused, workplace):
    options = ("model.backbone=timm:vit_tiny_patch16_224", "train.patch_size=[8,8]")
    message = refused(workplace, ID, "2d", "0", *CONFIG, *options)
    assert "train.patch_size must be at least one ViT patch (16 × 16), found [8, 8]" in message


def test_lora_targets_that_match_nothing(refused: Refused, workplace):
    message = refused(workplace, ID, "2d", "0", *CONFIG, "lora.enabled=true", "lora.target_modules=[query]")
    assert "LoRA targets ['query'] match no layer of the blocks; allowed: ['fc1', 'fc2', 'proj', 'qkv']" in message


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((ID, "2d", "0"), "a new training needs --config"),
        ((ID, "2d", "0", "--name", "x"), "a new training needs --config"),
        ((ID, "2d", "0", "--config", "upernett"), "configuration 'upernett' not found (did you mean 'upernet'?)"),
        ((ID, "2d", "0", "--config", "."), "configuration '.' not found"),
        ((ID, "2d", "0", *CONFIG, "--name", "a__b"), "experiment name 'a__b' is not allowed"),
        ((ID, "2d", "0", *CONFIG, "--name", "a/b"), "experiment name 'a/b' is not allowed"),
        ((ID, "2d", "0", *CONFIG, "--name", ""), "experiment name '' is not allowed"),
        ((ID, "3d_fullres", "0", *CONFIG), "configuration '3d_fullres' does not exist in the plans 'nnUNetPlans'"),
        ((ID, "2e", "0", *CONFIG), "configuration '2e' does not exist in the plans 'nnUNetPlans'"),
        (("901", "2d", "0", *CONFIG), "no data set matches '901'; existing: Dataset900_DemoFundus"),
        (("Dataset9_X", "2d", "0", *CONFIG), "no data set matches 'Dataset9_X'"),
        ((ID, "2d", "7", *CONFIG), "fold '7' is not in the split"),
        ((ID, "2d", "-1", *CONFIG), "fold '-1' is not in the split"),
        ((ID, "2d", "first", *CONFIG), "fold 'first' is not in the split"),
        ((ID, "2d", "0", *CONFIG, "-p", "nnUNetResEncUNetLPlans"), "plans 'nnUNetResEncUNetLPlans' not found"),
        ((ID, "2d", "0", *CONFIG, "-tr", "nnUNetTrainer"), "trainer 'nnUNetTrainer' does not support ViT"),
        ((ID, "2d", "0", *CONFIG, "-tr", "nnUNetTrainer_no"), "trainer 'nnUNetTrainer_no' does not support ViT"),
        ((ID, "2d", "0", "--name", "x", "--c", "train.seed=1"), "override 'train.seed=1' has no effect"),
        ((ID, "2d", "0", *CONFIG, "--c", "--val"), "--c and --val exclude each other"),
        ((ID, "2d", "0", *CONFIG, "--name", "never", "--c"), "plans 'nnUNetPlans_never' not found"),
        ((ID, "2d", "0", "--name", "never", "--val"), "plans 'nnUNetPlans_never' not found"),
        (
            (ID, "2d", "0", "--config", "tiny.yaml", "-device", "tpu"),
            "-device 'tpu' is unknown; allowed: cuda, cpu, mps",
        ),
        (
            (ID, "2d", "0", *CONFIG, "-num_gpus", "2"),
            "-num_gpus 2 requires -device cuda, found -device cpu",
        ),
        ((ID, "2d", "0", *CONFIG, "-num_gpus", "0"), "-num_gpus must be at least 1, found 0"),
        ((ID, "2d", "0", "--c"), "--c needs --name NAME"),
        ((ID, "2d", "0", *CONFIG, "-p", "../x/nnUNetPlans"), "-p takes the name of plans"),
        ((ID, "2d", "9" * 5000, *CONFIG), "is not in the split"),
        ((ID, "2d", "0", "--config", "x" * 300), "not found"),
        ((ID, "2d", "0", *CONFIG, "model.checkpoint_path=~nobody_at_all/x"), "no such file: '~nobody_at_all/x'"),
        ((ID, "2d", "0", *CONFIG, "-num_gpus", "two"), "invalid int value: 'two'"),
        ((ID, "2d", "0", *CONFIG, "-pretrained_weights", "none.pth"), "no such file: 'none.pth'"),
        ((ID, "2d"), "the following arguments are required: fold"),
        ((ID, "2d", "0", *CONFIG, "--epochs", "3"), "unrecognized arguments: --epochs"),
    ],
)
def test_wrong_arguments(refused: Refused, workplace, arguments: tuple, told: str):
    assert told in refused(workplace, *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_where_there_is_none(refused: Refused, workplace):
    assert "PyTorch finds 0 usable GPUs" in refused(workplace, ID, "2d", "0", "--config", "tiny.yaml")


class Malicious:
    def __reduce__(self):
        return (open, ("executed", "w"))


def other_architecture(path: Path) -> None:
    torch.save(create_backbone("dinov2", "tiny")[0].state_dict(), path)


def truncated(path: Path) -> None:
    torch.save(create_backbone("dinov3", "tiny")[0].state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])


WRONG_WEIGHTS = [
    (lambda path: path.write_bytes(b""), "it is empty"),
    (truncated, "it is cut short"),
    (lambda path: path.write_text("not weights"), "it is neither a safetensors nor a PyTorch file"),
    (lambda path: torch.save({"x": Malicious()}, path), "it holds Python objects (io.open)"),
]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        *WRONG_WEIGHTS,
        (lambda path: torch.save({"weight": torch.zeros(1)}, path), "does not hold the weights of a ViT"),
        (other_architecture, "1 other shape: patch_embed.proj.weight is (96, 3, 14, 14) in the file, (96, 3, 16, 16)"),
    ],
)
def test_wrong_weight_files(refused: Refused, workplace, make: Callable[[Path], None], told: str):
    path = workplace.root / "wrong.pth"
    make(path)
    message = refused(workplace, ID, "2d", "0", *CONFIG, f"model.checkpoint_path={path}")
    assert str(path) in message and told in message and not (workplace.root / "executed").exists()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        *WRONG_WEIGHTS,
        (lambda path: torch.save({"weight": torch.zeros(1)}, path), "is not a checkpoint of nnU-Net"),
        (lambda path: torch.save({"network_weights": {"a": 3}}, path), "is not a checkpoint of nnU-Net"),
        (
            lambda path: torch.save({"network_weights": {"a": torch.zeros(1)}, "trainer_name": "t"}, path),
            "does not fit the network of this experiment: 126 missing tensors, such as input_mean; 1 unknown tensor: a",
        ),
    ],
)
def test_wrong_checkpoints_to_start_from(refused: Refused, workplace, make: Callable[[Path], None], told: str):
    path = workplace.root / "wrong.pth"
    make(path)
    message = refused(workplace, ID, "2d", "0", *CONFIG, "-pretrained_weights", path)
    assert str(path) in message and told in message and not (workplace.root / "executed").exists()


@pytest.mark.parametrize("flag", ["--c", "--val"])
def test_a_damaged_checkpoint_is_not_gone_on_with(refused: Refused, trained, flag: str):
    folder = trained.results / "Dataset900_DemoFundus/nnUNetTrainer_vit__nnUNetPlans_one__2d"
    damaged = folder / "fold_3" / "checkpoint_final.pth"
    damaged.parent.mkdir(exist_ok=True)
    whole = (folder / "fold_0" / "checkpoint_final.pth").read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    message = refused(trained, ID, "2d", "3", "--name", "one", "-device", "cpu", flag)
    shutil.rmtree(damaged.parent)
    assert f"{flag}: cannot read {damaged} as a file of weights: it is cut short" in message


def test_the_best_checkpoint_is_read_safely_before_it_is_validated(refused: Refused, trained):
    folder = trained.results / "Dataset900_DemoFundus/nnUNetTrainer_vit__nnUNetPlans_one__2d/fold_0"
    best, whole = folder / "checkpoint_best.pth", (folder / "checkpoint_best.pth").read_bytes()
    best.unlink()
    torch.save({"network_weights": Malicious()}, best)
    validate = (ID, "2d", "0", "--name", "one", "-device", "cpu", "--val", "--val_best")
    message = refused(trained, *validate)
    best.unlink()
    missing = refused(trained, *validate)
    best.write_bytes(whole)
    assert "--val_best: cannot read" in message and "it holds Python objects" in message
    assert "weight file not found" in missing and not (trained.root / "executed").exists()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("dataset.json", "{", "dataset.json is not a valid JSON file"),
        ("dataset.json", "{}", "labels must be a mapping of names to numbers"),
        ("dataset.json", '{"labels": {"background": "0", "a": "1"}}', "labels must be a mapping of names to numbers"),
        ("dataset.json", '{"labels": {"background": 0, "a": [1, 2]}}', "need regions_class_order"),
        ("splits_final.json", "[", "splits_final.json is not a valid JSON file"),
        ("splits_final.json", "[]", "is not a list of folds, each with cases under train and val"),
        ("splits_final.json", '[{"train": [], "val": []}]', "is not a list of folds"),
        ("nnUNetPlans.json", '{"plans_name": "../x", "configurations": {}}', "plans_name must be a name without '/'"),
        (
            "nnUNetPlans.json",
            '{"plans_name": "x", "configurations": {"2d": 3}}',
            "must be a mapping of names to mappings",
        ),
        (
            "nnUNetPlans.json",
            '{"plans_name": "x", "configurations": {"2d": {"inherits_from": "2d"}}}',
            "configuration '2d' inherits from '2d', which inherits from it",
        ),
        (
            "nnUNetPlans.json",
            '{"plans_name": "x", "configurations": {"2d": {"patch_size": [9, 9], "batch_size": 2}}}',
            "lack data_identifier, normalization_schemes in configuration '2d'",
        ),
    ],
)
def test_damaged_files_of_the_data_set(
    refused: Refused, workplace, dataset_folder: Path, name: str, text: str, told: str
):
    path = dataset_folder / name
    whole = path.read_bytes() if path.exists() else None  # nnU-Net writes the split in the first training
    path.write_text(text)
    try:
        message = refused(workplace, ID, "2d", "0", *CONFIG)
    finally:
        path.unlink() if whole is None else path.write_bytes(whole)
    assert told in message


@pytest.mark.parametrize("flag", ["--c", "--val"])
def test_going_on_with_a_changed_config(trained, flag: str):
    before = trained.files()
    result = trained.attempt("nnUNetv2_train_vit", ID, "2d", 0, *CONFIG, "--name", "one", "train.seed=9", flag)
    assert result.returncode == 2 and "train.seed: 3 → 9" in result.stderr and trained.files() == before
    assert "--name one without --config" in result.stderr.strip().splitlines()[-1]


# --- a full disk, played by a limit on the size of files ------------------------------------------------------------


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """While this lasts, no file can grow beyond a size in bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_the_plans(refused: Refused, workplace):
    with files_limited_to(1000):
        message = refused(workplace, ID, "2d", "0", *CONFIG, "--name", "plans_full")
    assert "cannot write the plans" in message and "nnUNetPlans_plans_full.json: File too large" in message


def test_no_room_for_a_checkpoint(trained):
    folder = trained.results / "Dataset900_DemoFundus/nnUNetTrainer_vit__nnUNetPlans_one__2d"
    full = folder / "fold_4"
    full.mkdir()
    shutil.copyfile(folder / "fold_0" / "checkpoint_final.pth", full / "checkpoint_latest.pth")
    before = {path.name: path.read_bytes() for path in full.glob("*.pth*")}
    with files_limited_to(1_000_000):
        result = trained.attempt("nnUNetv2_train_vit", ID, "2d", 4, "--name", "one", "-device", "cpu", "--c")
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert "cannot write" in result.stderr.strip().splitlines()[-1]
    assert {path.name: path.read_bytes() for path in full.glob("*.pth*")} == before
    shutil.rmtree(full)


def test_going_on_needs_no_pretrained_weights(refused: Refused, workplace):
    weights = workplace.root / "start.pth"
    torch.save(create_backbone("dinov3", "tiny")[0].state_dict(), weights)
    train = ("nnUNetv2_train_vit", ID, "2d", 0, *CONFIG, "--name", "weights", "train.num_epochs=1")
    option = f"model.checkpoint_path={weights}"
    workplace.run(*train, option)
    weights.unlink()
    workplace.run(*train, option, "--val")
    message = refused(workplace, *train[1:], option, "--val", "train.seed=9")
    assert "--name weights without --config" in message
    assert f"no such file: '{weights}'" in refused(workplace, *train[1:], option, "train.seed=9")


def test_not_preprocessed(refused: Refused, workplace):
    folder = workplace.raw / "Dataset905_Raw"
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")
    try:
        message = refused(workplace, "905", "2d", "0", *CONFIG)
    finally:
        (folder / "dataset.json").unlink()
        folder.rmdir()
    assert "Dataset905_Raw is not preprocessed" in message and "nnUNetv2_plan_and_preprocess -d 905 -c 2d" in message


def test_a_name_taken_by_another_experiment(trained):
    before = trained.files()
    result = trained.attempt("nnUNetv2_train_vit", ID, "2d", 0, *CONFIG, "--name", "one", "train.num_epochs=9")
    assert result.returncode == 2 and "vit.train.num_epochs: 2 → 9" in result.stderr and trained.files() == before
    assert "--name" in result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("flag", ["--c", "--val"])
def test_nothing_to_go_on_with(refused: Refused, trained, flag: str):
    message = refused(trained, ID, "2d", "1", "--name", "one", "-device", "cpu", flag)
    assert f"{flag}: no checkpoint_final.pth" in message


def test_plans_of_an_experiment_are_not_derived_from(refused: Refused, trained):
    message = refused(trained, ID, "2d", "0", *CONFIG, "-p", "nnUNetPlans_one")
    assert "-p nnUNetPlans_one: these plans belong to an experiment" in message


def test_queries_are_drawn_only_where_there_are_any(trained, tmp_path: Path):
    folder = next((trained.results / "Dataset900_DemoFundus").glob("nnUNetTrainer_vit__*one__2d"))
    image = sorted((trained.raw / "Dataset900_DemoFundus" / "imagesTr").iterdir())[0]
    draw = ("nnUNetv2_vit_draw", "-m", folder, "-f", 0, "-i", image, "-o", tmp_path / "picture.png")
    result = trained.attempt(*draw, "--queries", 8)
    assert result.returncode == 2 and "Traceback" not in result.stderr and not list(tmp_path.iterdir())
    assert (
        result.stderr.strip()
        .splitlines()[-1]
        .endswith("holds a UperNetSegmentationModel, which has none: leave it out")
    )


# --- as a process of its own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        (
            "nnUNetv2_train_vit",
            (ID, "2d", "0", *CONFIG, "train.num_epochs=0"),
            "train.num_epochs: Input should be greater than 0",
        ),
        ("nnUNetv2_train_vit", (ID, "2d", "0", *CONFIG, "model.backbone=timm:resnet18"), "cannot build 'resnet18'"),
        ("nnUNetv2_train_m2f", (ID, "2d", "9", "-device", "cpu", "model.pretrained=false"), "fold '9'"),
        ("nnUNetv2_vit_info", ("none.pth",), "'none.pth'"),
        ("nnUNetv2_vit_draw", ("-m", ".", "-f", "0", "-i", "none_0000.png", "-o", "none.png"), "plans.json"),
    ],
)
def test_a_process_ends_in_one_sentence(workplace, command: str, arguments: tuple, told: str):
    process_is_refused(workplace, command, arguments, told)


@pytest.mark.parametrize("variable", ["nnUNet_preprocessed", "nnUNet_results"])
def test_folders_that_are_not_set(workplace, variable: str, monkeypatch: pytest.MonkeyPatch):
    others = {name: value for name, value in workplace.variables().items() if name != variable}
    monkeypatch.setattr(workplace, "variables", lambda: others)
    told = f"the environment variable {variable} is not set"
    process_is_refused(workplace, "nnUNetv2_train_vit", (ID, "2d", "0", *CONFIG), told)


def process_is_refused(workplace, command: str, arguments: tuple, told: str) -> None:
    before = workplace.files()
    result = workplace.attempt_process(command, *arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{command}: error: ") and told in last and workplace.files() == before


def test_the_script_without_an_install():
    result = subprocess.run([sys.executable, "-S", SCRIPT, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "run `pip install .`" in result.stderr and "Traceback" not in result.stderr


def test_the_script_is_the_command(workplace):
    result = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stdout == workplace.run_process("nnUNetv2_train_vit", "--help")
