"""Bad input told by the commands in one sentence, with exit code 2 and nothing written."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch
from example_plans import DATASET_JSON, PLANS

from dinov3.hub.families import repository_without_timm
from nnunetv2.experiment import memory
from nnunetv2.experiment.decoder_options import complete_options
from nnunetv2.experiment.derive import build_on_meta, derive_plans
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.memory import (
    Machine,
    describe_machine,
    least_batch_memory,
    least_weight_memory,
)
from nnunetv2.experiment.schema import build
from nnunetv2.run import training_commands
from nnunetv2.run.draw_command import run_draw_entry
from nnunetv2.run.run_training_m2f import run_training_entry as train_m2f
from nnunetv2.run.run_training_segformer import run_training_entry as train_segformer
from nnunetv2.run.run_training_vit import run_training_entry as train_vit
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig
from nnunetv2.training.vit.optimizer import create_optimizer, parameter_groups

TINY = ("model.backbone_size=tiny", "model.pretrained=false")
PLENTY = Machine(2**60, "this machine has")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """nnU-Net's folders with all that a training looks at before it loads a case; the command may set variables."""
    variables, threads = dict(os.environ), torch.get_num_threads()
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    cases = tmp_path / "preprocessed" / "Dataset001_Test" / "nnUNetPlans_2d"
    cases.mkdir(parents=True)
    (cases / "case.b2nd").touch()
    (cases.parent / "dataset.json").write_text(json.dumps(DATASET_JSON))
    (cases.parent / "nnUNetPlans.json").write_text(json.dumps(PLANS))
    yield tmp_path
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(threads)


@pytest.fixture
def refusal(folders: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run a command, and return the one sentence that it ends with."""

    def run(*arguments: str, train: Callable = train_vit) -> str:
        before = sorted(folders.rglob("*"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            train(["1", "2d", "0", "-device", "cpu", *arguments])
        message = capsys.readouterr().err
        assert caught.value.code == 2 and sorted(folders.rglob("*")) == before
        assert message.count("\n") == 1 and ": error: " in message, message
        return message

    return run


# --- processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "least", "values"),
    [("nnUNet_n_proc_DA", 0, ["two", "-1", "", "1.5"]), ("nnUNet_def_n_proc", 1, ["eight", "-1", "", "0"])],
)
def test_numbers_of_processes(refusal, monkeypatch, variable: str, least: int, values: list[str]):
    for value in values:
        monkeypatch.setenv(variable, value)
        told = f"the environment variable {variable} must be a whole number of at least {least}, found {value!r}"
        assert told in refusal("--config", "upernet")


def test_the_drawing_command_checks_them_too(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setenv("nnUNet_def_n_proc", "eight")
    with pytest.raises(SystemExit) as caught:
        run_draw_entry(["-m", str(tmp_path), "-f", "0", "-i", "image.png", "-o", str(tmp_path / "picture.png")])
    assert caught.value.code == 2 and "nnUNet_def_n_proc must be a whole number" in capsys.readouterr().err


# --- two configurations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "arguments", "told"),
    [
        (train_vit, ["--config", "dpt", "--config", "upernet"], "--config upernet: a training has one configuration"),
        (train_vit, ["--config=dpt", "--config=dpt"], "and 'dpt' is given already"),
        (train_segformer, ["--config", "a", "--segformer_config", "b"], "--segformer_config b: a training has one"),
        (train_segformer, ["--segformer_config=b", "--config=a"], "--config a: a training has one configuration"),
        (train_segformer, ["--segformer_config", "a", "--segformer_config", "b"], "and 'a' is given already"),
        (train_m2f, ["--config", "a", "--m2f_config", "b"], "--m2f_config b: a training has one configuration"),
        (train_m2f, ["--m2f_config", "b", "train.seed=1", "--config", "a"], "--config a: a training has one"),
    ],
)
def test_a_training_has_one_configuration(refusal, train: Callable, arguments: list[str], told: str):
    assert told in refusal(*arguments, train=train)


# --- lists in decoder options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "model.decoder.pool_scales=[1,two]",
            "model.decoder.pool_scales[1]: Input should be a valid integer, found 'two'",
        ),
        (
            "model.decoder.pool_scales=[[1],2]",
            "model.decoder.pool_scales[0]: Input should be a valid integer, found [1]",
        ),
        (
            "model.decoder.pool_scales=[1,true]",
            "model.decoder.pool_scales[1]: Input should be a valid integer, found True",
        ),
        (
            "model.decoder.pool_scales=[1,null]",
            "model.decoder.pool_scales[1]: Input should be a valid integer, found None",
        ),
        ("model.decoder.pool_scales=3", "model.decoder.pool_scales: Input should be a list, found 3"),
    ],
)
def test_elements_of_lists(refusal, override: str, told: str):
    assert told in refusal("--config", "upernet", *TINY, override)


@pytest.mark.parametrize(
    ("annotation", "value", "problems"),
    [
        ("Sequence[int | float] | None", [1, 2.5], []),
        ("Sequence[int | float] | None", None, []),
        ("Sequence[int | float] | None", [1, "x"], ["[1]", "'x'"]),
        ("list[str]", ["a", 1, None], ["[1]", "found 1", "[2]", "found None"]),
        ("tuple[float, ...]", [1, 2], []),
        ("tuple[float, ...]", ["a"], ["[0]: Input should be a valid number, found 'a'"]),
        ("Sequence[Sequence[int]]", [[1], ["a"]], ["[1][0]: Input should be a valid integer, found 'a'"]),
        ("tuple[int, str]", [1, "a"], []),
        ("tuple[int, list[int]]", [1, [2]], []),
        ("Literal['a', 'b']", "c", [": Input should be 'a' or 'b', found 'c'"]),
        ("list | list[int]", ["a"], []),
        ("Sequence[Sequence[int]]", [1], ["[0]: Input should be a list, found 1"]),
        ("Sequence[Width]", ["anything"], []),
        ("Sequence", ["anything", 1], []),
    ],
)
def test_element_types_are_those_of_the_annotation(
    monkeypatch: pytest.MonkeyPatch, annotation: str, value: object, problems: list[str]
):
    module = ModuleType("annotated_decoder")
    text = f"class Width: ...\ndef create_segmentation_model(num_classes: int, o: {annotation} = None): ...\n"
    exec(f"from collections.abc import Sequence\nfrom typing import Literal\n{text}", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    if not problems:
        assert complete_options(module.__name__, {"o": value}) == {"o": value}
        return
    with pytest.raises(ExperimentError) as caught:
        complete_options(module.__name__, {"o": value})
    assert all(told in str(caught.value) for told in ("model.decoder.o", *problems))


# --- the hub, before torch is loaded ------------------------------------------------------------------------------


def test_weights_of_a_timm_name_with_a_tag_are_asked_for_at_once(refusal, monkeypatch):
    monkeypatch.setattr("nnunetv2.run.train_experiment.find_dataset", pytest.fail)  # the next check
    message = refusal("--config", "upernet", "model.backbone=timm:vit_tiny_patch16_224.augreg_in21k")
    assert "the pretrained weights of timm/vit_tiny_patch16_224.augreg_in21k are not in the local cache" in message


def test_what_the_hub_does_not_know_is_left_to_timm(monkeypatch):
    from urllib.error import HTTPError

    def unknown(repository: str) -> None:
        raise ValueError("told by the hub") from HTTPError(repository, 401, "Unauthorized", None, None)

    monkeypatch.setattr("dinov3.weights.hub.require_hub_weights", unknown)
    config = build(ViTnnUNetConfig, {"model": {"backbone": "timm:vit_tiny_patch16_224.no_such_tag"}}, "test")
    assert list(config.model.weight_problems()) == []
    config.model.backbone = "dinov3"
    assert "told by the hub" in next(config.model.weight_problems())


def test_repositories_that_only_timm_knows():
    assert repository_without_timm("dinov3", "small") == "timm/vit_small_patch16_dinov3.lvd1689m"
    assert repository_without_timm("timm:vit_base_patch16_224.mae", "large") == "timm/vit_base_patch16_224.mae"
    assert repository_without_timm("timm:vit_base_patch16_224", "large") is None
    assert repository_without_timm("timm:vit_base_patch16_clip_quickgelu_224.openai", "large") is None


# --- batch norm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["linear", "segformer", "dpt"])
def test_batch_norm_of_a_single_value(refusal, decoder: str):
    message = refusal(
        "--config", decoder, *TINY, "train.batch_size=1", "train.patch_size=[16,16]", *BATCH_NORM[decoder]
    )
    assert "a batch norm of the decoder gets a single value per channel in training" in message
    assert "train.batch_size=1 and train.patch_size=[16, 16]: raise one of them" in message


BATCH_NORM = {"linear": [], "segformer": [], "dpt": ["model.decoder.use_batch_norm_in_fusion_residual=true"]}


@pytest.mark.parametrize("changes", [{"batch_size": 2}, {"patch_size": [16, 32]}])
def test_two_values_are_enough_for_batch_norm(changes: dict):
    derive({"batch_size": 1, "patch_size": [16, 16], **changes}, decoder="linear")


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.fixture
def all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no notice of a limit that these tests may run under."""
    monkeypatch.setattr(memory, "memory_limit", lambda: None)


def derive(train: dict, machine: Machine = PLENTY, decoder: str = "linear", **changes: object) -> dict:
    model = {"backbone_size": "tiny", "pretrained": False, "model_path": f"nnunetv2.model.model_{decoder}", **changes}
    config = build(ViTnnUNetConfig, {"model": model, "train": train}, "test")
    return derive_plans(PLANS, "2d", DATASET_JSON, config, "mine", machine=machine)["configurations"]["2d"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.batch_size=100000000"],
        ["train.patch_size=[1000000,1000000]"],
        ["train.patch_size=[10000000000,10000000000]", "train.batch_size=10000000000"],
        ["model.decoder.hidden_size=1000000"],
    ],
)
def test_what_can_never_fit_is_told_before_it_is_built(refusal, all_memory: None, overrides: list[str]):
    message = refusal("--config", "upernet", *TINY, *overrides)
    there = psutil.virtual_memory().total / 2**30
    assert "this training needs at least " in message and f"this machine has {there:,.1f} GiB" in message
    assert "lower train.batch_size or train.patch_size" in message


@pytest.mark.parametrize("override", ["m2f_train.num_points=1000000000000", "m2f_train.oversample_ratio=1e30"])
def test_points_of_masks_that_can_never_fit(refusal, override: str):
    message = refusal("--config", "m2f", *TINY, "model.hidden_dim=32", override, train=train_m2f)
    assert (
        "this training needs at least " in message
        or "m2f_train.oversample_ratio: Input should be less than 1000" in message
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] can't allocate memory: you tried to allocate 8 bytes\nframe #0"
        ),
    ],
)
def test_memory_that_runs_out_is_told(refusal, monkeypatch, error: Exception):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(training_commands, "train", fail)
    message = refusal("--config", "upernet", *TINY)
    assert "out of memory" in message and "lower train.batch_size or train.patch_size" in message


def test_other_errors_are_not_taken_for_a_lack_of_memory(folders: Path, monkeypatch):
    monkeypatch.setattr(training_commands, "train", lambda *_: [].index("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        train_vit(["1", "2d", "0", "-device", "cpu", "--config", "upernet"])


def test_the_largest_backbone_on_a_small_machine():
    """With AdamW each of its 6.7 billion parameters takes 16 bytes."""
    model = {"backbone_size": "7b", "freeze_backbone": False, "model_path": "nnunetv2.model.model_linear"}
    config = build(ViTnnUNetConfig, {"model": model, "train": {"optimizer": "adamw"}}, "test")
    with pytest.raises(ExperimentError, match=r"at least 10\d\.?\d* GiB .* for weights, gradients and optimizer\)"):
        derive_plans(PLANS, "2d", DATASET_JSON, config, "mine", machine=Machine(80 * 2**30, "the GPU has"))


def test_a_training_that_may_fit_is_not_refused():
    configuration = derive({})
    network = build_on_meta(configuration, 2)
    need = least_batch_memory(configuration, network, 2) + least_weight_memory(configuration, network)
    derive({}, Machine(need, "x has"))
    with pytest.raises(ExperimentError, match="x has"):
        derive({}, Machine(need - 1, "x has"))


def test_a_batch_is_shared_by_the_devices():
    configuration = derive({"batch_size": 8})
    network = build_on_meta(configuration, 2)
    assert (
        least_batch_memory(configuration, network, 2, devices=4) == least_batch_memory(configuration, network, 2) // 4
    )


@pytest.mark.integration
@pytest.mark.parametrize("decoder", ["linear", "segformer", "upernet", "dpt", "unetr", "dinounet"])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_estimate_is_below_what_a_step_keeps(decoder: str, frozen: bool):
    train = {"precision": "float32", "batch_size": 2, "patch_size": [64, 64]}
    configuration = derive(train, decoder=decoder, freeze_backbone=frozen)
    estimate = least_batch_memory(configuration, build_on_meta(configuration, 2), 2)
    network = build_network(configuration)
    images = torch.rand(2, 3, 64, 64)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(images)
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    activations = sum(size for place, size in kept.items() if place not in weights)
    assert 0 < estimate <= activations + 4 * (images.numel() + 2 * logits.numel())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_memory_of_the_weights_is_that_of_a_step(optimizer: str, frozen: bool):
    configuration = derive({"optimizer": optimizer, "precision": "float32"}, freeze_backbone=frozen)
    network = build_network(configuration)
    groups = parameter_groups(network, 0.01, 0.0, None, 1.0)
    steps = create_optimizer(optimizer, groups, 0.99, (0.9, 0.999))
    network(torch.rand(2, 3, 64, 64)).sum().backward()
    steps.step()
    states = [s for state in steps.state.values() for s in state.values() if torch.is_tensor(s) and s.ndim]
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    measured = 4 * sum(tensor.numel() for tensor in (*network.parameters(), *gradients, *states))
    assert least_weight_memory(configuration, network) == pytest.approx(measured, rel=0.01)
    assert least_weight_memory(configuration, network) == least_weight_memory(
        configuration, build_on_meta(configuration, 2)
    )


def build_network(configuration: dict) -> torch.nn.Module:
    from importlib import import_module

    module, _, factory = configuration["architecture"]["network_class_name"].rpartition(".")
    options = {
        "num_classes": 2,
        "input_channels": 3,
        "deep_supervision": False,
        **configuration["architecture"]["arch_kwargs"],
    }
    return getattr(import_module(module), factory)(**options).train()


class Queries(torch.nn.Linear):
    """A network that gives queries in training, as Mask2Former."""

    patch_size, embed_dim, feature_indices, forward_queries = 16, 96, [0, 1, 2, 3], None


@pytest.mark.parametrize(("network", "tokens"), [(Queries(1, 1), 4 * 16 * 96), (torch.nn.Linear(1, 1), 0)])
def test_what_is_unknown_of_a_network_is_not_in_the_estimate(network: torch.nn.Module, tokens: int):
    logits = 0 if isinstance(network, Queries) else 2 * 2 * 64 * 64
    configuration = derive({"precision": "float32"})
    assert least_batch_memory(configuration, network, 2) == 2 * 4 * (3 * 64 * 64 + logits + tokens)


def test_the_memory_of_this_machine(all_memory: None):
    machine = describe_machine(torch.device("cpu"), 1)
    assert machine.memory == pytest.approx(psutil.virtual_memory().total, rel=0.01) and machine.devices == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_memory_of_a_gpu():
    machine = describe_machine(torch.device("cuda"), 1)
    assert machine.memory == pytest.approx(torch.cuda.mem_get_info()[1], rel=0.05)
