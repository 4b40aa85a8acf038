"""What `m2f.py` measures of the trainer: its whole training step against network, loss and optimiser alone.

The network is that of the packaged configuration `m2f` with a tiny backbone from random weights, all of it trained, and
hidden_dim 64. The bare step is forward, loss, backward and the optimiser's step with targets that were converted
beforehand; everything else is overhead: moving the batch, converting it, summing up the loss by terms, clipping the
gradient, checking that it is finite. The two take turns on the same network, each being first in every other round. On
a CPU one thread computes, and its time on the processor counts, which other programs disturb less than wall time.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING

from tiny_training import DATASET, new_folder, prepare
from tqdm import tqdm

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_m2f import nnUNetTrainer_m2f

ALLOWED_OVERHEAD, BLOCK, WARM_UP = 0.05, 32, 2
SETTINGS = (
    *("model.backbone_size=tiny", "model.pretrained=false", "model.freeze_backbone=false"),
    *("model.hidden_dim=64", "train.num_epochs=1"),
)
Work = Callable[[], object]


def create_trainer(args: argparse.Namespace, output: Path) -> "nnUNetTrainer_m2f":
    """Plan a small data set and set a trainer up for it."""
    # nnU-Net reads its variables when it is imported
    os.environ.update(prepare(output))
    import torch

    from nnunetv2.experiment.dataset import preprocessed_folder, read_base_plans, read_dataset_json
    from nnunetv2.experiment.derive import derive_plans
    from nnunetv2.experiment.schema import load_config
    from nnunetv2.training.nnUNetTrainer.m2f_config import M2FnnUNetConfig
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_m2f import nnUNetTrainer_m2f

    folder = preprocessed_folder(DATASET)
    sizes = (f"train.patch_size=[{args.side},{args.side}]", f"train.batch_size={args.batch}")
    config, dataset_json = load_config(M2FnnUNetConfig, "m2f", [*SETTINGS, *sizes]), read_dataset_json(folder)
    plans = derive_plans(read_base_plans(folder, "nnUNetPlans", "2d"), "2d", dataset_json, config, "m2f_step")
    trainer = nnUNetTrainer_m2f(plans, "2d", 0, dataset_json, torch.device(args.device))
    torch.set_num_threads(1)
    trainer.initialize()
    trainer.network.train()
    return trainer


def create_batch(trainer: "nnUNetTrainer_m2f", args: argparse.Namespace) -> dict:
    """Random images `data` (B, C, H, W), and labels `target` (B, 1, H, W) in blocks, in which every class occurs."""
    import torch

    classes = trainer.label_manager.num_segmentation_heads
    blocks = torch.randint(classes, (args.batch, 1, -(-args.side // BLOCK), -(-args.side // BLOCK)))
    blocks.flatten(1)[:, :classes] = torch.arange(classes)
    target = blocks.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[..., : args.side, : args.side]
    # as nnU-Net's loaders give them
    data = torch.rand(args.batch, trainer.num_input_channels, args.side, args.side)
    return {"data": data, "target": target.to(torch.int16)}


def create_bare_step(trainer: "nnUNetTrainer_m2f", batch: dict) -> Work:
    """Network, loss, backward and the optimiser's step, of a batch that is on the device."""
    network, loss, optimizer = trainer.network, trainer.loss, trainer.optimizer
    data = batch["data"].to(trainer.device)
    targets = trainer.target_converter(batch["target"].to(trainer.device))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.loss_total(loss.of_all_layers(network(data), targets)).backward()
        optimizer.step()

    return step


def seconds(work: Work, device: str) -> float:
    """Time of a step: that of the processor, or wall time on a GPU."""
    import torch

    clock = perf_counter if device == "cuda" else process_time
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(trainer: "nnUNetTrainer_m2f", args: argparse.Namespace) -> dict[str, list[float]]:
    """Times of both, after some rounds to warm up."""
    batch = create_batch(trainer, args)
    works = {"trainer": lambda: trainer.train_step(batch), "bare": create_bare_step(trainer, batch)}
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in tqdm(range(WARM_UP + args.rounds), desc="rounds"):
        for name in sorted(works, reverse=bool(turn % 2)):
            duration = seconds(works[name], args.device)
            if turn >= WARM_UP:
                times[name].append(duration)
    return times


def report(times: dict[str, list[float]]) -> float:
    """Print medians and ranges; return the overhead of the trainer as a fraction."""
    for name, values in times.items():
        middle, low, high = (1e3 * function(values) for function in (median, min, max))
        print(f"{name:<8} {middle:>8,.0f} ms ({low:,.0f} to {high:,.0f})")
    ratios = [ours / bare for ours, bare in zip(times["trainer"], times["bare"], strict=True)]
    overhead = median(ratios) - 1
    rounds = f"{min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%}"
    print(f"overhead {overhead:+.2%} (rounds: {rounds}; allowed: {ALLOWED_OVERHEAD:+.0%})")
    return overhead


def step_is_slow(args: argparse.Namespace) -> bool:
    """Measure on a small data set that is drawn and planned for it, and print; whether the overhead is not allowed."""
    with new_folder(None) as output:
        times = measure(create_trainer(args, output), args)
    return report(times) > ALLOWED_OVERHEAD
