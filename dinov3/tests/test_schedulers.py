"""Learning-rate schedules of segmentation."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from dinov3.eval.segmentation.schedulers import WarmupLR, build_scheduler

CASES = ("fork_m2f_lora", "ade20k_linear", "short_default_kwargs", "short_linear_anneal")
NO_BETA1 = {"use_beta1": False}


def adamw(lr: float = 1e-3, multipliers: tuple[float, ...] = (1,)) -> AdamW:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr * multiplier} for multiplier in multipliers]
    return AdamW(groups, lr=lr, betas=(0.9, 0.999))


def advance(scheduler: WarmupLR, steps: int = 1) -> None:
    for _ in range(steps):
        scheduler.optimizer.step()
        scheduler.step()


def rates(name: str, total: int, **options) -> list[float]:
    scheduler = build_scheduler(name, optimizer=adamw(), lr=1e-3, total_iter=total, constructor_kwargs=options)
    found = []
    for _ in range(total):
        found.append(scheduler.get_last_lr()[0])
        advance(scheduler)
    return found


@pytest.mark.parametrize("name", CASES)
def test_one_cycle_has_the_rates_of_the_reference(golden: Path, name: str):
    case = json.loads((golden / "scheduler.json").read_text())["cases"][name]
    expected = case["values_before_optimizer_step_index_is_number_of_scheduler_steps_taken"]
    options = {key: case[key] for key in ("lr", "total_iter", "constructor_kwargs")}
    optimizer, steps = adamw(case["lr"]), 0
    scheduler = build_scheduler("WarmupOneCycleLR", optimizer=optimizer, **options)
    for count, values in expected.items():
        advance(scheduler, int(count) - steps)
        steps = int(count)
        (group,) = optimizer.param_groups
        assert group["lr"] == pytest.approx(values["lr"], rel=1e-9, abs=1e-17), count
        assert group["betas"][0] == pytest.approx(values["beta1"], rel=1e-12), count


def test_one_cycle_without_warm_up_is_that_of_torch():
    optimizer, total = adamw(), 40
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total, pct_start=0.3, cycle_momentum=False)
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < total:
            reference.step()
    assert rates("WarmupOneCycleLR", total, pct_start=0.3, final_div_factor=1e4, **NO_BETA1) == pytest.approx(expected)


def test_momentum_of_sgd_follows_the_cycle():
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    options = {"use_beta1": False, "update_momentum": True, "warmup_iters": 2, "anneal_strategy": "linear"}
    scheduler = build_scheduler(
        "WarmupOneCycleLR", optimizer=optimizer, lr=0.1, total_iter=12, constructor_kwargs=options
    )
    found = []
    for _ in range(13):
        found.append(optimizer.param_groups[0]["momentum"])
        advance(scheduler)
    assert found == pytest.approx([0, 0, *(0.85 + 0.01 * step for step in range(11))])


def test_multi_step_falls_at_its_milestones_after_a_linear_warm_up():
    found = rates("WarmupMultiStepLR", 10, warmup_iters=2, warmup_ratio=0.5, milestones=[8, 4], gamma=0.1)
    assert found == pytest.approx([5e-4, 7.5e-4, 1e-3, 1e-3, *[1e-4] * 4, *[1e-5] * 2])
    assert rates("WarmupMultiStepLR", 10) == pytest.approx([1e-3] * 8 + [1e-4, 1e-5])


def test_poly_falls_to_zero():
    found = rates("WarmupPolyLR", 5, power=2)
    assert found == pytest.approx([1e-3 * (1 - step / 5) ** 2 for step in range(5)])


def test_groups_keep_their_learning_rate_multipliers():
    optimizer = adamw(multipliers=(1, 0.1))
    scheduler = build_scheduler("WarmupOneCycleLR", optimizer=optimizer, lr=1e-3, total_iter=20)
    for _ in range(20):
        decoder, backbone = scheduler.get_last_lr()
        assert backbone == pytest.approx(0.1 * decoder)
        advance(scheduler)


@pytest.mark.parametrize("name", ["WarmupOneCycleLR", "WarmupMultiStepLR", "WarmupPolyLR"])
def test_a_restored_scheduler_goes_on_where_it_was(name: str):
    def create() -> WarmupLR:
        options = {"warmup_iters": 3}
        return build_scheduler(name, optimizer=adamw(), lr=1e-3, total_iter=20, constructor_kwargs=options)

    first, second = create(), create()
    advance(first, 11)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    for _ in range(9):
        advance(first)
        advance(second)
        assert first.get_last_lr() == second.get_last_lr()
        assert first.optimizer.param_groups[0]["betas"] == second.optimizer.param_groups[0]["betas"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Cosine", {}, "one of WarmupOneCycleLR, WarmupMultiStepLR, WarmupPolyLR, found 'Cosine'"),
        ("WarmupPolyLR", {"gamma": 2}, "no option 'gamma'; allowed: warmup_iters, warmup_ratio, power"),
        ("WarmupPolyLR", {"warmup_iters": 10}, r"below total_iter \(10\), found 10"),
        ("WarmupOneCycleLR", {"anneal_strategy": "cosine"}, "cos or linear, found 'cosine'"),
        ("WarmupOneCycleLR", {"pct_start": 1}, r"in \[0, 1\), found 1"),
        ("WarmupOneCycleLR", {"final_div_factor": 0}, "above 0, found 0"),
        ("WarmupPolyLR", {"warmup_iters": "many"}, "warmup_iters must be an integer, found 'many'"),
        ("WarmupPolyLR", {"warmup_iters": True}, "warmup_iters must be an integer, found True"),
        ("WarmupPolyLR", {"power": None}, "power must be a number, found None"),
        ("WarmupPolyLR", {"power": "nan"}, "power must be a number, found 'nan'"),
        ("WarmupMultiStepLR", {"milestones": 5}, "milestones must be a list of integers, found 5"),
        ("WarmupMultiStepLR", {"milestones": ["a"]}, r"milestones must be a list of integers, found \['a'\]"),
        ("WarmupOneCycleLR", {"use_beta1": "maybe"}, "use_beta1 must be true or false, found 'maybe'"),
        ("WarmupOneCycleLR", {"anneal_strategy": 3}, "anneal_strategy must be a name, found 3"),
        ("WarmupOneCycleLR", {"update_momentum": True}, "an optimizer with momentum, found AdamW"),
    ],
)
def test_what_cannot_be_is_refused(name: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build_scheduler(name, optimizer=adamw(), lr=1e-3, total_iter=10, constructor_kwargs=options)


def test_infinity_may_be_a_string_as_yaml_reads_it():
    assert rates("WarmupOneCycleLR", 9, final_div_factor="inf") == rates(
        "WarmupOneCycleLR", 9, final_div_factor=math.inf
    )
