"""Two processes train as one does on all their images: our network in DistributedDataParallel, nnU-Net's own loss."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2.model.model_upernet import create_segmentation_model
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

PROCESSES, BATCH, CLASSES, SIZE = 2, 2, 3, 48
MODES = {"frozen": {}, "lora": {"use_lora": True, "lora_dropout": 0.0}, "full": {"freeze_backbone": False}}


def create_network(mode: str) -> nn.Module:
    torch.manual_seed(1)
    # the last block feeds nothing: its parameters must not wait for a gradient
    options = {"backbone_size": "tiny", "out_layers": [0, 1, 2], "hidden_size": 32, "decoder_dropout": 0.0}
    # group norm over maps of few pixels makes a lot of the last bit of a float32
    return create_segmentation_model(CLASSES, **options, **MODES[mode]).double()


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


def make_steps(network: nn.Module, loss: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # a parameter without a gradient is noticed at the second
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()


def train_one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    own = slice(rank * BATCH, (rank + 1) * BATCH)
    images, labels = (tensor[own] for tensor in draw_images())
    for mode in MODES:
        network = create_network(mode)
        make_steps(DistributedDataParallel(network), create_loss(is_ddp=True), images, labels)
        torch.save(network.state_dict(), f"{folder}/{mode}_{rank}.pth")
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
