"""Two processes train as one does on all their images: our network in DistributedDataParallel, nnU-Net's own loss.

Mask2Former draws points at random in each process; its processes only have to agree.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from dinov3.eval.segmentation.mask_classification_loss import MaskClassificationLoss
from nnunetv2.model.model_m2f import create_segmentation_model as create_mask2former
from nnunetv2.model.model_upernet import create_segmentation_model
from nnunetv2.training.nnUNetTrainer.m2f_utils import DenseToM2FTargetConverter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

pytestmark = pytest.mark.integration  # starts processes

PROCESSES, BATCH, CLASSES, IGNORED, SIZE = 2, 2, 3, 9, 48
MODES = {"frozen": {}, "lora": {"use_lora": True, "lora_dropout": 0.0}, "full": {"freeze_backbone": False}}


def create_network(mode: str) -> nn.Module:
    torch.manual_seed(1)
    # the last block feeds nothing: its parameters must not wait for a gradient
    options = {"backbone_size": "tiny", "out_layers": [0, 1, 2], "hidden_size": 32, "decoder_dropout": 0.0}
    # group norm over maps of few pixels makes a lot of the last bit of a float32
    return create_segmentation_model(num_classes=CLASSES, **options, **MODES[mode]).double()


def create_loss(is_ddp: bool) -> nn.Module:
    """The trainer's own loss, built by its own method."""
    trainer = SimpleNamespace(
        label_manager=SimpleNamespace(has_regions=False, ignore_label=None),
        configuration_manager=SimpleNamespace(batch_dice=True),
        is_ddp=is_ddp,
        enable_deep_supervision=False,
        _do_i_compile=lambda: False,
    )
    return nnUNetTrainer._build_loss(trainer)


def draw_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of all processes; the first process has classes that the second one has not."""
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(PROCESSES * BATCH, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (PROCESSES * BATCH, 1, SIZE, SIZE), generator=generator)
    labels[BATCH:] = labels[BATCH:].clamp(max=1)
    return images, labels.float()


def make_steps(network: nn.Module, loss: Callable, images: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # a parameter without a gradient is noticed at the second
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()


def make_mask2former(mode: str) -> nn.Module:
    torch.manual_seed(1)
    small = {"hidden_dim": 32, "num_queries": 5, "dim_feedforward": 32, "enc_layers": 1, "dec_layers": 2}
    return create_mask2former(num_classes=CLASSES, backbone_size="tiny", **small, **MODES[mode])


def train_mask2former(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    loss = MaskClassificationLoss(64, 3.0, 0.75, 5.0, 5.0, 2.0, CLASSES, 0.1)
    convert = DenseToM2FTargetConverter(IGNORED)
    parallel = DistributedDataParallel(network)

    def loss_of(queries: dict, targets: torch.Tensor) -> torch.Tensor:
        return loss.loss_total(loss.of_all_layers(queries, convert(targets)))

    make_steps(parallel, loss_of, images, labels)


def train_one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    own = slice(rank * BATCH, (rank + 1) * BATCH)
    images, labels = (tensor[own] for tensor in draw_images())
    for mode in MODES:
        network = create_network(mode)
        make_steps(DistributedDataParallel(network), create_loss(is_ddp=True), images, labels)
        torch.save(network.state_dict(), f"{folder}/{mode}_{rank}.pth")
    if rank:
        labels = torch.full_like(labels, IGNORED)  # who has nothing to learn must not keep the other one waiting
    for mode in MODES:
        network = make_mask2former(mode)
        train_mask2former(network, images.float(), labels)
        torch.save(dict(network.named_parameters()), f"{folder}/mask2former_{mode}_{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    spawn(train_one_of_two, args=(str(folder),), nprocs=PROCESSES)
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_train_as_one_with_all_images(trained_by_two: Path, mode: str):
    first, second = (torch.load(trained_by_two / f"{mode}_{rank}.pth") for rank in range(PROCESSES))
    alone, start = create_network(mode), create_network(mode).state_dict()
    make_steps(alone.train(), create_loss(is_ddp=False), *draw_images())
    trainable = {name for name, parameter in alone.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("backbone.") for name in trainable) == (mode != "frozen")
    for name, value in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-8, msg=name)
        assert torch.equal(first[name], start[name]) == (name not in trainable), name


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_of_mask2former_agree(trained_by_two: Path, mode: str):
    first, second = (torch.load(trained_by_two / f"mask2former_{mode}_{rank}.pth") for rank in range(PROCESSES))
    start = dict(make_mask2former(mode).named_parameters())
    for name, value in start.items():
        assert torch.equal(first[name], second[name]) and first[name].isfinite().all(), name
        assert value.requires_grad or torch.equal(first[name], value), name
    moved = {name.split(".")[0] for name, value in start.items() if not torch.equal(first[name], value)}
    assert moved == ({"adapter", "head"} if mode == "frozen" else {"adapter", "head", "backbone"})
