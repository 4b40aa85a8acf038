"""Measure what Mask2Former's training adds to its network: the loss, and the trainer around both.

usage: python benchmarks/m2f.py [--parts loss operations step] [--batch 2] [--rounds 15] [--device cpu]
           [--classes 3 20] [--queries 100] [--layers 10] [--masks 128] [--targets 512] [--points 12544] [--side 256]

loss: ours against Hugging Face's, forward and backward. Ours computes all layers at once; Hugging Face's
`Mask2FormerLoss` is called once per layer.
operations: how many operations either starts, each a kernel on a GPU; of ours, in the form for CPUs and for GPUs.
step: the trainer's whole training step against network, loss and optimiser alone, for images of `side` × `side` (see
`m2f_step.py`). Exit code 1 if the median overhead of the rounds is more than 5%.

The two of a pair take turns in every round; ratios are within the same run.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter
from unittest import mock

import torch
from m2f_step import step_is_slow
from operations import OperationCounter
from torch import Tensor
from tqdm import tqdm
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from dinov3.eval.segmentation import hungarian_matcher
from dinov3.eval.segmentation.mask_classification_loss import MaskClassificationLoss

PARTS = ["loss", "operations", "step"]
OVERSAMPLE, IMPORTANCE = 3.0, 0.75
MASK, DICE, CLASS, NO_OBJECT = 5.0, 5.0, 2.0, 0.1
Work = Callable[[], Tensor]


def create_targets(batch: int, classes: int, side: int, device: str) -> list[dict[str, Tensor]]:
    """Labels in blocks of 32 × 32 pixels, so that every class is in every image, as a mask per class."""
    blocks = torch.randint(classes, (batch, -(-side // 32), -(-side // 32)))
    blocks.flatten(1)[:, :classes] = torch.arange(classes)
    labels = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :side, :side].to(device)
    numbers = torch.arange(classes, device=device)
    return [{"masks": (image == numbers.view(-1, 1, 1)).float(), "labels": numbers} for image in labels]


def create_outputs(args: argparse.Namespace, classes: int) -> list[dict[str, Tensor]]:
    """Random predictions, one per layer."""
    shape = (args.batch, args.queries)
    return [
        {
            "pred_masks": torch.randn(*shape, args.masks, args.masks, device=args.device, requires_grad=True),
            "pred_logits": torch.randn(*shape, classes + 1, device=args.device, requires_grad=True),
        }
        for _ in range(args.layers)
    ]


def create_ours(args: argparse.Namespace, classes: int, layers: list[dict], targets: list[dict]) -> Work:
    """Our loss, of all layers."""
    loss = MaskClassificationLoss(args.points, OVERSAMPLE, IMPORTANCE, MASK, DICE, CLASS, classes, NO_OBJECT)
    loss.to(args.device)

    def compute() -> Tensor:
        losses = loss.of_all_layers({**layers[-1], "aux_outputs": layers[:-1]}, targets)
        return loss.loss_total(losses)

    return compute


def create_theirs(args: argparse.Namespace, classes: int, layers: list[dict], targets: list[dict]) -> Work:
    """Hugging Face's loss, layer by layer."""
    config = Mask2FormerConfig(
        num_labels=classes,
        train_num_points=args.points,
        oversample_ratio=OVERSAMPLE,
        importance_sample_ratio=IMPORTANCE,
        mask_weight=MASK,
        dice_weight=DICE,
        class_weight=CLASS,
        no_object_weight=NO_OBJECT,
    )
    weights = {"loss_mask": MASK, "loss_dice": DICE, "loss_cross_entropy": CLASS}
    loss = Mask2FormerLoss(config, weights).to(args.device)
    masks, labels = ([target[key] for target in targets] for key in ("masks", "labels"))

    def compute() -> Tensor:
        total = torch.zeros((), device=args.device)
        for layer in layers:
            losses = loss(layer["pred_masks"], layer["pred_logits"], masks, labels)
            total = total + sum(weights[name] * value for name, value in losses.items())
        return total

    return compute


def seconds(work: Work, device: str) -> tuple[float, float]:
    """Wall time of forward and of backward."""

    def synchronise() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return perf_counter()

    start = synchronise()
    value = work()
    middle = synchronise()
    value.backward()
    return middle - start, synchronise() - middle


def measure(args: argparse.Namespace, classes: int) -> dict[str, list[tuple[float, float]]]:
    """Times of both, after one turn to warm up."""
    targets = create_targets(args.batch, classes, args.targets, args.device)
    layers = create_outputs(args, classes)
    works = {
        "ours": create_ours(args, classes, layers, targets),
        "Hugging Face's": create_theirs(args, classes, layers, targets),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for turn in tqdm(range(args.rounds + 1), desc=f"{classes} classes", leave=False):
        for name, work in works.items():
            for layer in layers:
                layer["pred_masks"].grad = layer["pred_logits"].grad = None
            pair = seconds(work, args.device)
            if turn:
                times[name].append(pair)
    return times


def show(classes: int, times: dict[str, list[tuple[float, float]]]) -> None:
    """Print medians, ranges and the ratio."""
    totals = {name: [sum(pair) for pair in pairs] for name, pairs in times.items()}
    for name, pairs in times.items():
        forward, backward = (median(pair[i] for pair in pairs) for i in (0, 1))
        middle, low, high = (1e3 * function(totals[name]) for function in (median, min, max))
        print(
            f"{classes:>3} classes  {name:<15} forward {1e3 * forward:>7,.0f} ms  backward {1e3 * backward:>7,.0f} ms  "
            f"both {middle:>7,.0f} ms ({low:,.0f} to {high:,.0f})"
        )
    ratio = median(totals["Hugging Face's"]) / median(totals["ours"])
    print(f"{classes:>3} classes  ours is {ratio:.1f} times as fast")


def show_operations(args: argparse.Namespace, classes: int) -> None:
    """Print the operations that a GPU would launch, forward and with backward."""
    targets = create_targets(args.batch, classes, args.targets, args.device)
    layers = create_outputs(args, classes)
    form_for_gpu = mock.patch.object(hungarian_matcher, "sum_by_parts", hungarian_matcher.sum_at_once)
    ours, theirs = (create(args, classes, layers, targets) for create in (create_ours, create_theirs))
    forms = {"ours": (form_for_gpu, ours), "ours, on a CPU": (contextlib.nullcontext(), ours)}
    for name, (form, work) in {**forms, "Hugging Face's": (contextlib.nullcontext(), theirs)}.items():
        with form, OperationCounter() as counter:
            value = work()
            forward = counter.count
            value.backward()
        print(f"{classes:>3} classes  {name:<15} operations: forward {forward:>6,}, with backward {counter.count:>6,}")


def main() -> None:
    """Measure, for every number of classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 20])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--masks", type=int, default=128, help="side of the predicted masks")
    parser.add_argument("--targets", type=int, default=512, help="side of the target masks")
    parser.add_argument("--points", type=int, default=12544)
    parser.add_argument("--side", type=int, default=256, help="of the images of a training step, in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    for classes in args.classes:
        if "loss" in args.parts:
            show(classes, measure(args, classes))
        if "operations" in args.parts:
            show_operations(args, classes)
    sys.exit("step" in args.parts and step_is_slow(args))


if __name__ == "__main__":
    main()
