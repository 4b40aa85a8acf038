"""Whole trainings on images on disk: killed and started again, in two processes, and their results."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from training_cases import build, tiny_values, write_images

from dinov3.errors import ExperimentError
from dinov3.eval.segmentation import train, train_m2f
from dinov3.eval.segmentation.config import config_from

pytestmark = pytest.mark.integration

TRAININGS: dict[str, Callable] = {"linear": train.train_segmentation, "m2f": train_m2f.train_m2f_segmentation}
TRAIN_STEPS = {"linear": (train, "train_step"), "m2f": (train_m2f, "train_step_m2f")}
KINDS = ("linear", "m2f")
Values = dict[str, Any]


def values_of_run(root: Path, run: str, kind: str, **changes: Any) -> Values:
    if not (root / "images").exists():
        write_images(root)
    return tiny_values(root, kind, output_dir=str(root / run), **changes)


def run(values: Values) -> dict[str, Any]:
    return TRAININGS[values["decoder_head"]["type"]](None, config_from(values))


def started(targets: list[tuple[Callable, tuple]]) -> list[int]:
    """Run functions in processes at the same time; return the exit codes."""
    context = multiprocessing.get_context("forkserver")  # loads everything once
    context.set_forkserver_preload(["training_cases", "dinov3.eval.segmentation.train_m2f"])
    processes = [context.Process(target=target, args=arguments) for target, arguments in targets]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    codes = [process.exitcode for process in processes]  # None: it hangs
    for process in processes:
        process.kill()
    return codes


def lines(values: Values, name: str) -> list[dict]:
    found = [json.loads(line) for line in (Path(values["output_dir"]) / f"{name}.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def final_weights(values: Values) -> dict[str, Tensor]:
    return torch.load(Path(values["output_dir"]) / "checkpoint_final.pth", weights_only=True)["model"]


# --- killed -----------------------------------------------------------------------------------------------------------


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_while_writing(values: Values, step: int) -> None:
    save = torch.save

    def half(state: dict, path: Path) -> None:
        save(state, path)
        if state["step"] == step:
            os.truncate(path, path.stat().st_size // 2)
            kill()

    with mock.patch("torch.save", half):
        run(values)


def killed_between_checkpoints(values: Values, number: int) -> None:
    module, name = TRAIN_STEPS[values["decoder_head"]["type"]]
    step, calls = getattr(module, name), []

    def last(*arguments: Any) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == number:
            kill()
        return step(*arguments)

    with mock.patch.object(module, name, last):
        run(values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_that_is_started_again(tmp_path: Path, kind: str):
    whole, parts = (values_of_run(tmp_path, name, kind) for name in ("whole", "parts"))
    folder = Path(parts["output_dir"])
    assert started([(killed_while_writing, (parts, 4))]) == [-signal.SIGKILL]
    assert any(folder.glob("checkpoint_0000004.pth.*.tmp")) and not (folder / "checkpoint_0000004.pth").exists()
    # goes on after step 2, and is killed at the beginning of step 6
    assert started([(killed_between_checkpoints, (parts, 4))]) == [-signal.SIGKILL]
    assert (folder / "checkpoint_0000004.pth").exists()
    expected, found = run(whole), run(parts)
    assert lines(parts, "losses") == lines(whole, "losses") and len(lines(parts, "losses")) == 6
    assert lines(parts, "metrics") == lines(whole, "metrics")
    assert [row["step"] for row in lines(parts, "metrics")] == [3, 6]
    for name, value in final_weights(whole).items():
        assert torch.equal(final_weights(parts)[name], value), name
    assert found["metrics"] == expected["metrics"] == lines(whole, "metrics")[-1]["metrics"]
    assert not any(folder.glob("*.tmp"))
    with mock.patch.object(*TRAIN_STEPS[kind], side_effect=AssertionError):
        assert run(parts) == found  # it is finished


# --- two processes ----------------------------------------------------------------------------------------------------


def without_chance(*arguments: Any) -> nn.Module:
    """The segmentor of a configuration, without stochastic depth, and with batch norms in evaluation mode."""
    model = build(arguments[0])
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module
    return model


@contextlib.contextmanager
def same_points() -> Iterator[None]:
    """Give every image and every mask the same points."""
    rand = torch.rand

    def points(number: int, *shape: int, device: torch.device) -> Tensor:
        return rand(shape, generator=torch.Generator().manual_seed(0)).expand(number, *shape).to(device)

    with mock.patch("torch.rand", points):
        yield


def run_without_chance(values: Values) -> None:
    module, name = TRAIN_STEPS[values["decoder_head"]["type"]]
    step = getattr(module, name)

    def with_fixed_points(*arguments: Any) -> dict[str, Tensor]:
        with same_points():
            return step(*arguments)

    build_segmentor = mock.patch("dinov3.eval.segmentation.training.segmentor_from_config", without_chance)
    with build_segmentor, mock.patch.object(module, name, with_fixed_points):
        run(values)


def run_as_rank(rank: int, port: int, all_values: list[Values]) -> None:
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ.update(ranks, MASTER_ADDR="localhost", MASTER_PORT=str(port))
    for values in all_values:
        run_without_chance(values)
    torch.distributed.destroy_process_group()


def test_two_processes_are_one_with_the_double_batch(tmp_path: Path):
    def values_for(name: str, **sizes: int) -> list[Values]:
        changes = {"decoder_head": {"dropout": 0.0}, "scheduler": {"total_iter": 4}, "eval": {"eval_interval": 2}}
        return [values_of_run(tmp_path / kind, name, kind, **changes, **sizes) for kind in KINDS]

    alone, shared = values_for("alone", bs=4, n_gpus=1), values_for("shared", bs=2, n_gpus=2)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    assert started([(run_as_rank, (rank, port, shared)) for rank in (0, 1)]) == [0, 0]
    for first, second in zip(alone, shared, strict=True):
        run_without_chance(first)
        for expected, found in zip(lines(first, "losses"), lines(second, "losses"), strict=True):
            assert found == pytest.approx(expected, rel=1e-4)
        assert [row["metrics"] for row in lines(second, "metrics")] == [
            pytest.approx(row["metrics"], abs=2e-3) for row in lines(first, "metrics")
        ]
        start = build(config_from(first)).state_dict()
        one, two = final_weights(first), final_weights(second)
        change, difference = (
            torch.cat([(a[name] - b[name]).flatten().double() for name in start if a[name].is_floating_point()])
            for a, b in ((one, start), (two, one))
        )
        assert difference.norm() < 1e-2 * change.norm() > 0


# --- results ----------------------------------------------------------------------------------------------------------


def test_the_files_of_a_training(tmp_path: Path):
    values = values_of_run(tmp_path, "run", "linear", eval={"num_visualizations": 1, "max_val_samples": 1})
    results, folder = run(values), tmp_path / "run"
    assert [row["num_images"] for row in lines(values, "metrics")] == [1, 1] and results["num_images"] == 2
    assert {path.name for path in folder.iterdir()} >= {
        *("config.yaml", "training.log", "losses.jsonl", "metrics.jsonl", "progress.png", "tensorboard"),
        *("checkpoint_best.pth", "checkpoint_final.pth", "results.json", "confusion_matrix.csv"),
    }
    assert sorted(path.name for path in (folder / "predictions").iterdir()) == ["step_3.png", "step_6.png"]
    assert results["best"]["value"] == max(row["metrics"]["mIoU"] for row in lines(values, "metrics"))
    log = (folder / "training.log").read_text()
    assert "4 images of training" in log and "parameters, of which" in log and "torch" in log and "bs: 2" in log
    with pytest.raises(ExperimentError, match=r"bs \(2 there, now 3\)"):
        run({**values, "bs": 3})
    run({**values, "output_dir": str(tmp_path / "next"), "load_from": str(folder / "checkpoint_best.pth")})
    assert lines({"output_dir": tmp_path / "next"}, "losses")[0]["loss"] < lines(values, "losses")[0]["loss"]
