"""The loop of trainings: steps, accumulation, checkpoints, evaluations and going on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_cases import build, criterion_of, evaluation_of, make_loader, make_loop, sum_of_weights, tiny_config

from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.config import SegmentationConfig
from dinov3.eval.segmentation.schedulers import build_scheduler
from dinov3.eval.segmentation.train import train_step
from dinov3.eval.segmentation.train_m2f import train_step_m2f
from dinov3.eval.segmentation.training_loop import TrainingLoop

STEPS = {"linear": train_step, "m2f": train_step_m2f}

pytestmark = pytest.mark.integration


class Killed(Exception):
    """Raised where a process would be killed."""


def train(config: SegmentationConfig, step: Callable = train_step, evaluate: Callable = sum_of_weights) -> TrainingLoop:
    loop = make_loop(config, step)
    loop.run(lambda start: make_loader(config, start), evaluate)
    return loop


def rows(config: SegmentationConfig, name: str = "losses") -> list[dict]:
    return [json.loads(line) for line in (Path(config.output_dir) / f"{name}.jsonl").read_text().splitlines()]


def killed_at(step: int) -> Callable:
    """A training step that fails at a step's beginning."""
    taken = []

    def wrapped(*arguments: Any) -> dict:
        taken.append(1)
        if len(taken) == step:
            raise Killed
        return train_step(*arguments)

    return wrapped


def weights(loop: TrainingLoop) -> dict[str, torch.Tensor]:
    return loop.segmentor.state_dict()


def check_same_weights(first: TrainingLoop, second: TrainingLoop) -> None:
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name]), name


@pytest.mark.parametrize("kind", ["linear", "m2f"])
@pytest.mark.parametrize("adapters", [False, True])
def test_everything_that_trains_gets_a_gradient(tmp_path: Path, kind: str, adapters: bool):
    """DistributedDataParallel waits for each of them."""
    config = tiny_config(tmp_path, kind, lora={"enabled": adapters})
    model = build(config).train()
    STEPS[kind](model, next(iter(make_loader(config, 0))), criterion_of(config))["loss"].backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []
    assert any("lora_" in name for name in trained) == adapters


def test_the_loss_falls(tmp_path: Path):
    config = tiny_config(tmp_path, scheduler={"total_iter": 12}, optimizer={"lr": 0.01})
    train(config)
    losses = [row["loss"] for row in rows(config)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_the_schedule_begins_after_the_second_step(tmp_path: Path):
    config = tiny_config(tmp_path, scheduler={"constructor_kwargs": {"warmup_iters": 0}})
    loop = train(config)
    found = [row["learning_rate"] for row in rows(config)]
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=config.optimizer.lr)
    schedule = build_scheduler("WarmupOneCycleLR", optimizer=optimizer, lr=config.optimizer.lr, total_iter=6)
    expected = []
    for _ in range(5):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == [expected[0], *expected] and loop.scheduler.last_epoch == 5


def test_accumulated_batches_are_one_large_batch(tmp_path: Path):
    # without batch norm, whose statistics are those of a batch, and dropout
    options = {"decoder_head": {"use_batchnorm": False, "dropout": 0.0}, "transforms": {}}
    parts = tiny_config(tmp_path / "parts", bs=2, gradient_accumulation_steps=2, **options)
    whole = tiny_config(tmp_path / "whole", bs=4, **options)
    first, second = train(parts), train(whole)
    for name, value in weights(first).items():
        torch.testing.assert_close(value, weights(second)[name], atol=1e-6, rtol=1e-5)
    assert [row["loss"] for row in rows(parts)] == pytest.approx([row["loss"] for row in rows(whole)], rel=1e-5)


def test_evaluations_and_checkpoints_come_when_they_are_due(tmp_path: Path):
    config = tiny_config(tmp_path, scheduler={"total_iter": 7})
    folder, seen = Path(config.output_dir), []

    def evaluate(model: nn.Module, step: int) -> Any:
        seen.append(step)
        return evaluation_of({3: 0.5, 6: 0.7, 7: 0.6}[step])

    loop = train(config, evaluate=evaluate)
    assert seen == [3, 6, 7] == [row["step"] for row in rows(config, "metrics")]
    assert sorted(path.name for path in folder.glob("*.pth")) == [
        "checkpoint_0000006.pth", "checkpoint_0000007.pth", "checkpoint_best.pth"
    ]  # fmt: skip
    best = torch.load(folder / "checkpoint_best.pth", weights_only=True)
    assert (best["step"], best["best"]) == (6, {"metric": "mIoU", "value": 0.7, "step": 6})
    assert loop.best == best["best"] and (folder / "progress.png").is_file()
    assert set(best["model"]) == set(weights(loop)) and best["config"]["seed"] == 7


@pytest.mark.parametrize("kill", [3, 4, 6])  # after a checkpoint, and after an evaluation, and between
def test_a_training_that_goes_on_is_the_one_that_was_not_stopped(tmp_path: Path, kill: int):
    whole, parts = tiny_config(tmp_path / "whole"), tiny_config(tmp_path / "parts")
    expected = train(whole)
    with pytest.raises(Killed):
        train(parts, killed_at(kill))
    found = train(parts)
    assert rows(parts) == rows(whole) and rows(parts, "metrics") == rows(whole, "metrics")
    check_same_weights(found, expected)
    assert found.best == expected.best


@pytest.mark.parametrize("last", [4, 6])  # 6: nothing is left to train
def test_an_evaluation_that_was_not_finished_is_done_once(tmp_path: Path, last: int):
    config = tiny_config(tmp_path, eval={"eval_interval": 2})  # where there are checkpoints, too
    steps = []

    def fails(model: nn.Module, step: int) -> Any:
        steps.append(step)
        if step == last:
            raise Killed
        return evaluation_of(step / 10)

    with pytest.raises(Killed):
        train(config, evaluate=fails)
    train(config, evaluate=lambda model, step: steps.append(step) or evaluation_of(step / 10))
    assert steps == sorted([2, 4, 6, last]) and [row["step"] for row in rows(config, "metrics")] == [2, 4, 6]
    assert [row["step"] for row in rows(config)] == [*range(1, 7)]


def test_the_best_value_outlives_a_stop(tmp_path: Path):
    config = tiny_config(tmp_path, eval={"eval_interval": 2})
    with pytest.raises(Killed):
        train(config, killed_at(6), lambda model, step: evaluation_of({2: 0.9, 4: 0.3}[step]))
    loop = train(config, evaluate=lambda model, step: evaluation_of(0.8))
    assert loop.best == {"metric": "mIoU", "value": 0.9, "step": 2}
    assert torch.load(loop.folder / "checkpoint_best.pth", weights_only=True)["step"] == 2


def test_a_metric_that_is_not_a_number_is_never_the_best(tmp_path: Path):
    values = {3: float("nan"), 6: 0.1}
    loop = train(tiny_config(tmp_path), evaluate=lambda model, step: evaluation_of(values[step]))
    assert loop.best["step"] == 6


@pytest.mark.parametrize("of_gradient", [False, True])
def test_a_training_that_diverges_stops_with_a_sentence(tmp_path: Path, of_gradient: bool):
    config = tiny_config(tmp_path, optimizer={"lr": 0.01})
    taken = []

    def diverges(model: nn.Module, batch: Any, criterion: nn.Module) -> dict:
        taken.append(1)
        losses = train_step(model, batch, criterion)
        if len(taken) < 4:
            return losses
        if of_gradient:
            losses["loss"].register_hook(lambda gradient: gradient * torch.inf)
            return losses
        return {"loss": losses["loss"] * torch.nan}

    with pytest.raises(ExperimentError, match=r"diverged at step 4, at a learning rate of 0.00\d+: .*nan|inf"):
        train(config, diverges)
    assert [row["step"] for row in rows(config)] == [1, 2, 3]
    assert [path.name for path in Path(config.output_dir).glob("*.pth") if "best" not in path.name] == [
        "checkpoint_0000002.pth"
    ]
