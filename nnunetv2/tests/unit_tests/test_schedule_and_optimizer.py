"""Schedules as functions of the epoch, and parameter groups that keep their factors."""

import pytest
import torch

from nnunetv2.model.model_upernet import create_segmentation_model
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.vit.optimizer import create_optimizer, parameter_groups
from nnunetv2.training.vit.schedule import EpochSchedule, IterationSchedule, create_schedule, schedule_factor

EPOCHS = 20


def test_poly_is_upstreams():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    upstream = PolyLRScheduler(optimizer, 0.01, EPOCHS)
    for epoch in range(EPOCHS):
        upstream.step(epoch)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * schedule_factor("poly", epoch, EPOCHS))


@pytest.mark.parametrize(("name", "middle"), [("poly", 0.5**0.9), ("cosine", 0.5)])
def test_decay_starts_at_one_and_follows_its_formula(name: str, middle: float):
    assert schedule_factor(name, 0, EPOCHS) == 1
    assert schedule_factor(name, EPOCHS // 2, EPOCHS) == pytest.approx(middle)
    assert 0 < schedule_factor(name, EPOCHS - 1, EPOCHS) < 0.1


@pytest.mark.parametrize("name", ["poly", "cosine"])
def test_warmup_rises_linearly_to_one(name: str):
    factors = [schedule_factor(name, epoch, EPOCHS, warmup_steps=4) for epoch in range(EPOCHS)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:] == sorted(factors[4:], reverse=True) and min(factors) > 0


@pytest.mark.parametrize(("warmup", "peak"), [(0, 6), (3, 3)])
def test_one_cycle_rises_and_falls(warmup: int, peak: int):
    factors = [schedule_factor("onecycle", epoch, EPOCHS, warmup) for epoch in range(EPOCHS)]
    assert factors[0] == pytest.approx(1 / 25) and factors.index(max(factors)) == peak and max(factors) == 1
    assert factors[:peak] == sorted(factors[:peak]) and factors[peak:] == sorted(factors[peak:], reverse=True)


@pytest.mark.parametrize("name", ["poly", "cosine", "onecycle"])
def test_one_epoch_is_enough(name: str):
    assert 0 < schedule_factor(name, 0, 1) <= 1


def test_the_power_of_poly_is_a_choice():
    factors = [schedule_factor("poly", step, EPOCHS, 4, poly_exponent=2.0) for step in range(EPOCHS)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and factors[12] == pytest.approx(0.25)


# --- of iterations, and of a backbone that warms up later -----------------------------------------------------------


def rates(interval: str, warmup: float, backbone_warmup: float | None, name: str = "poly") -> list[tuple[float, float]]:
    """Learning rates of decoder and backbone in the 40 iterations of a training of 10 epochs."""
    groups = [{"initial_lr": 1.0}, {"initial_lr": 0.1, "is_backbone": True}]
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], **group} for group in groups])
    schedule = create_schedule(optimizer, name, interval, 10, 4, warmup, backbone_warmup, 0.9)
    found = []
    for epoch in range(10):
        schedule.step(epoch)
        for iteration in range(4):
            if isinstance(schedule, IterationSchedule):
                schedule.step(epoch, iteration)
            found.append(tuple(group["lr"] for group in optimizer.param_groups))
    return found


def test_learning_rates_change_with_every_iteration_where_that_is_asked_for():
    found = [decoder for decoder, _ in rates("iteration", 1.5, None)]
    assert found[:7] == pytest.approx([1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7, 6 / 7, 1])
    assert found[6:] == pytest.approx([(1 - step / 34) ** 0.9 for step in range(34)])
    by_epoch = [decoder for decoder, _ in rates("epoch", 1, None)]
    assert by_epoch == [schedule_factor("poly", step // 4, 10, 1) for step in range(40)]  # to the last bit


@pytest.mark.parametrize("name", ["poly", "cosine"])
@pytest.mark.parametrize("interval", ["epoch", "iteration"])
def test_the_backbone_stands_still_and_then_warms_up_and_decays_with_the_others(name: str, interval: str):
    found = rates(interval, 2, 3, name)
    decoder, backbone = zip(*found, strict=True)
    assert decoder == tuple(rate for rate, _ in rates(interval, 2, None, name))  # as if there were no backbone
    assert set(backbone[:8]) == {0.0} and min(backbone[8:]) > 0
    assert backbone[8:21] == tuple(sorted(backbone[8:21])) and backbone[20] == pytest.approx(0.1)
    assert backbone[20:] == tuple(sorted(backbone[20:], reverse=True))
    per_epoch = 4 if interval == "iteration" else 1
    own = [0.1 * schedule_factor(name, (s - 8) * per_epoch // 4, 8 * per_epoch, 3 * per_epoch) for s in range(8, 40)]
    assert backbone[8:] == pytest.approx(own)


def test_a_backbone_that_warms_up_later_has_a_group_of_its_own():
    model = network()
    decoder, backbone = parameter_groups(model, 0.01, 0.05, own_warmup=True)
    assert (decoder["lr"], backbone["lr"]) == (0.01, 0.01)
    assert {id(p) for p in backbone["params"]} == {id(p) for p in model.backbone.parameters() if p.requires_grad}
    decayed = parameter_groups(model, 0.01, 0.05, layer_decay=0.5, own_warmup=True)
    assert [bool(group.get("is_backbone")) for group in decayed] == [False] + [True] * (len(decayed) - 1)


def network() -> torch.nn.Module:
    return create_segmentation_model(num_classes=2, backbone_size="tiny", hidden_size=32, freeze_backbone=False)


def test_layer_decay_falls_with_the_depth_and_survives_the_schedule():
    model = network()
    groups = parameter_groups(model, 0.01, 0.05, layer_decay=0.5)
    rates = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(rates) == len(trainable) == sum(len(group["params"]) for group in groups)
    blocks = [rates[id(block.attn.qkv.weight)] for block in model.backbone.blocks]
    assert blocks == pytest.approx([0.01 * 0.5**k for k in (4, 3, 2, 1)])
    assert rates[id(model.backbone.patch_embed.proj.weight)] == pytest.approx(0.01 * 0.5**5)
    assert groups[0]["initial_lr"] == 0.01 and rates[id(model.decode_head.fuse[0].weight)] == 0.01

    optimizer = create_optimizer("adamw", groups, 0.9, [0.9, 0.999])
    EpochSchedule(optimizer, lambda epoch: 1 / (1 + epoch)).step(3)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([g["initial_lr"] / 4 for g in groups])


def test_without_layer_decay_there_is_one_group_of_what_trains():
    model = create_segmentation_model(num_classes=2, backbone_size="tiny", hidden_size=32, freeze_backbone=True)
    (group,) = parameter_groups(model, 0.01, 0.05, layer_decay=None)
    assert len(group["params"]) == sum(p.requires_grad for p in model.parameters())
    assert group["weight_decay"] == 0.05


def test_optimisers_are_what_they_are_called():
    sgd = create_optimizer("sgd", parameter_groups(network(), 0.01, 0.1, None), 0.95, [0.9, 0.98])
    assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["nesterov"] and sgd.param_groups[0]["momentum"] == 0.95
    adamw = create_optimizer("adamw", parameter_groups(network(), 0.01, 0.1, None), 0.95, [0.9, 0.98])
    assert isinstance(adamw, torch.optim.AdamW) and adamw.param_groups[0]["betas"] == (0.9, 0.98)
    assert adamw.param_groups[0]["weight_decay"] == 0.1


def backbone_rates(name: str, **options) -> dict[str, tuple[float, float]]:
    """Names of the backbone's parameters to learning rate and weight decay, of a decay by one half per layer."""
    model = create_segmentation_model(name, "tiny", num_classes=2, hidden_size=32, freeze_backbone=False, **options)
    groups = parameter_groups(model, 1.0, 0.05, layer_decay=0.5)
    rates = {id(p): (group["initial_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {key: rates[id(p)] for key, p in model.backbone.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["dinov3", "dinov2", "retfound", "timm:vit_tiny_patch16_224"])
def test_layer_decay_is_the_same_for_every_backbone(name: str):
    rates = backbone_rates(name)
    depth = 12 if name.startswith("timm") else 4
    for key, (rate, weight_decay) in rates.items():
        is_weight_of_block = key.startswith("blocks.") and key.endswith(("qkv.weight", "proj.weight", "fc1.weight"))
        assert weight_decay == (0.05 if is_weight_of_block or key.endswith(("fc2.weight", "embed.proj.weight")) else 0)
        block = int(key.split(".")[1]) if key.startswith("blocks.") else depth - 1 if key.startswith("norm") else -1
        assert rate == 0.5 ** (depth - block), key
    assert rates["cls_token"] == (0.5 ** (depth + 1), 0)
    assert ("reg_token" in rates) == (name == "dinov3")


@pytest.mark.parametrize(("out_layers", "last"), [([0, 1, 2], 2), ([0, 1], 1), ([0, 1, 2, 3], 3)])
def test_layer_decay_starts_at_the_last_block_that_trains(out_layers: list[int], last: int):
    rates = {key: rate for key, (rate, _) in backbone_rates("dinov3", out_layers=out_layers).items()}
    blocks = {int(key.split(".")[1]): rate for key, rate in rates.items() if key.startswith("blocks.")}
    assert blocks == {block: 0.5 ** (last + 1 - block) for block in range(last + 1)}
    assert rates["norm.weight"] == 0.5 and rates["patch_embed.proj.weight"] == 0.5 ** (last + 2)
