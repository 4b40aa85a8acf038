"""The data set and the loader of a training: what is drawn is a function of the seed and the step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from PIL import Image
from torch import Tensor

from dinov3.data.loaders import find_pairs, make_eval_dataset, make_train_dataset, train_loader
from dinov3.data.sampling import DrawBatches
from dinov3.errors import ExperimentError

NUM_IMAGES, SIDE = 5, 24
Batch = tuple[Tensor, Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of noise, each with labels of its own."""
    noise = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
        (tmp_path / kind / "val").mkdir()
    for split, number in [*(("train", number) for number in range(NUM_IMAGES)), ("val", 7)]:
        image = noise.integers(0, 256, (SIDE + number, 40, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"images/{split}/{number}.png")
        labels = noise.integers(0, 4, image.shape[:2], dtype=np.uint8)
        Image.fromarray(labels).save(tmp_path / f"labels/{split}/{number}.png")
    return tmp_path


def settings(root: Path, **values: Any) -> Any:
    augmentation = SimpleNamespace(
        img_size=None, random_img_size_ratio_range=[0.5, 2.0], crop_size=[16, 16], flip_prob=0.5
    )
    statistics = {"mean": [120.0] * 3, "std": [60.0] * 3}
    entries = {
        "datasets": SimpleNamespace(root=str(root), train="", val="", val_share=0.2, max_value=None),
        "transforms": SimpleNamespace(
            train=augmentation, eval=SimpleNamespace(img_size=None, tta_ratios=[1.0, 1.5]), **statistics
        ),
        "eval": SimpleNamespace(reduce_zero_label=False, use_tta=False),
        "scheduler": SimpleNamespace(total_iter=6),
        "decoder_head": SimpleNamespace(type="linear"),
        **{"bs": 3, "num_workers": 0, "seed": 4, "gradient_accumulation_steps": 1},
    }
    return SimpleNamespace(**{**entries, **values})


def loader_of(config: Any, **options: Any) -> torch.utils.data.DataLoader:
    training, _ = find_pairs(config.datasets, config.seed)
    return train_loader(make_train_dataset(training, config), config, **options)


def same(first: Batch, second: Batch) -> bool:
    return torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def all_same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.integration)])
def test_a_later_start_gives_what_is_left(root: Path, workers: int):
    whole = list(loader_of(settings(root)))
    assert len(whole) == 6 and not same(whole[0], whole[1])
    left = list(loader_of(settings(root, num_workers=workers), start_step=2))
    assert all_same(left, whole[2:])
    assert not all_same(list(loader_of(settings(root, seed=5), start_step=2)), left)


def test_processes_share_what_one_with_a_larger_batch_sees(root: Path):
    config = settings(root)
    loader = loader_of(config, start_step=1, num_processes=2)
    shares = [
        list(prepare_data_loader(loader, torch.device("cpu"), num_processes=2, process_index=process))
        for process in range(2)
    ]
    together = [tuple(torch.cat(parts) for parts in zip(*pair, strict=True)) for pair in zip(*shares, strict=True)]
    assert all_same(together, list(loader_of(settings(root, bs=6), start_step=1)))


def test_accumulation_and_processes_make_more_batches_per_step(root: Path):
    config = settings(root, gradient_accumulation_steps=3)
    assert len(loader_of(config)) == 6 * 3 and len(loader_of(config, start_step=4, num_processes=2)) == 2 * 3 * 2
    assert all_same(list(loader_of(config, start_step=1)), list(loader_of(config))[3:])
    assert len(loader_of(config, start_step=6)) == 0


def test_every_epoch_has_each_image_once_in_another_order():
    draws = [draw for batch in DrawBatches(5, 2, 20, seed=0) for draw in batch]
    assert [number for number, _ in draws] == list(range(40))
    epochs = [[index for _, index in draws[start : start + 5]] for start in range(0, 40, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 4
    assert len({tuple(index for batch in DrawBatches(5, 5, 1, seed) for _, index in batch) for seed in range(20)}) > 8


def test_a_batch_may_be_larger_than_the_data_set():
    batches = list(DrawBatches(2, 5, 3, seed=0))
    assert [len(batch) for batch in batches] == [5, 5, 5]
    assert sorted(index for batch in batches for _, index in batch)[7:9] == [0, 1]


def test_accelerate_deals_out_whole_batches():
    batches = list(DrawBatches(5, 2, 8, seed=0, first_batch=2))
    shards = [list(BatchSamplerShard(DrawBatches(5, 2, 8, 0, first_batch=2), 2, process)) for process in range(2)]
    assert shards == [batches[0::2], batches[1::2]]


def test_augmentation_is_that_of_the_draw_and_leaves_the_global_state(root: Path):
    config = settings(root)
    dataset = make_train_dataset(find_pairs(config.datasets, 0)[0], config)
    before = torch.get_rng_state()
    first, again, later = dataset[3, 1], dataset[3, 1], dataset[4, 1]
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, again) and not torch.equal(first[0], later[0])


def test_neighbouring_draws_are_independent(root: Path):
    config = settings(root)
    pairs, _ = find_pairs(config.datasets, 0)

    def uniform(seed: int, draw: int) -> float:
        dataset = make_train_dataset(pairs, settings(root, seed=seed))
        dataset.transform = lambda image, labels: torch.rand(())
        return float(dataset[draw, 0])

    drawn = torch.tensor([[uniform(seed, draw) for draw in range(40)] for seed in range(6)])
    assert drawn.unique().numel() == drawn.numel() and 0.4 < drawn.mean() < 0.6
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.6
    assert torch.corrcoef(torch.stack([drawn[:, :-1].flatten(), drawn[:, 1:].flatten()]))[0, 1].abs() < 0.25


def test_evaluation_has_one_view_or_those_of_test_time_augmentation(root: Path):
    config = settings(root)
    _, validation = find_pairs(config.datasets, 0)
    dataset = make_eval_dataset(validation, config)
    (view,), labels = dataset[0]
    assert len(dataset) == 1 and dataset.pairs == validation and view.shape == (3, SIDE + 7, 40)
    stored = np.array(Image.open(validation[0].image)).astype(np.float32)
    assert torch.allclose(view * 60 + 120, torch.from_numpy(stored).permute(2, 0, 1), atol=1e-3)
    assert torch.equal(labels, torch.from_numpy(np.array(Image.open(validation[0].labels))).long())
    config.eval.use_tta = True
    assert [view.shape[1] for view in make_eval_dataset(validation, config)[0][0]] == [31, round(31 * 1.5)]


def test_masks_and_the_reduced_zero_are_as_configured(root: Path):
    config = settings(root, decoder_head=SimpleNamespace(type="m2f"))
    config.eval.reduce_zero_label = True
    images, targets = next(iter(loader_of(config)))
    assert images.shape == (3, 3, 16, 16) and len(targets) == 3
    assert {int(label) for target in targets for label in target["labels"]} == {0, 1, 2}
    assert all("valid" in target for target in targets)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.integration)])
def test_a_file_that_broke_after_the_check_is_named_in_one_line(root: Path, workers: int):
    loader = loader_of(settings(root, num_workers=workers))
    broken = root / "images/train/3.png"
    broken.write_bytes(broken.read_bytes()[:900])
    with pytest.raises(ExperimentError, match=r"^the image [^\n]*3\.png cannot be read: OSError: [^\n]*$"):
        list(loader)


def test_labels_of_another_size_are_named(root: Path):
    loader = loader_of(settings(root))
    Image.fromarray(np.zeros((9, 40), np.uint8)).save(root / "labels/train/2.png")
    with pytest.raises(ExperimentError, match=r"26 x 40 in .*images/train/2.png and 9 x 40 in .*labels/train/2.png$"):
        list(loader)
