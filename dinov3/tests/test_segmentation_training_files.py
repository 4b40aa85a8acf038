"""The files of a training: checkpoints, logs, and the folder that belongs to a configuration."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from training_cases import tiny_config

from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.checkpoints import Checkpoints
from dinov3.eval.segmentation.config import read_config, values_of
from dinov3.eval.segmentation.json_lines import JsonLines
from dinov3.eval.segmentation.output_folder import claim, claimed
from dinov3.eval.segmentation.processes import make_accelerator, seed_by


def state(step: int) -> dict[str, Any]:
    return {
        "model": {"weight": torch.full((100,), float(step))},
        **{"optimizer": {}, "scheduler": {}, "step": step, "best": None, "config": {}},
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_the_last_checkpoints_are_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    assert checkpoints.load_last() is None
    checkpoints.save_best(state(1))
    for step in (1, 2, 10, 20):
        checkpoints.save(state(step))
    assert names(tmp_path) == ["checkpoint_0000010.pth", "checkpoint_0000020.pth", "checkpoint_best.pth"]
    assert checkpoints.load_last()["step"] == 20 and not checkpoints.is_finished()
    checkpoints.finish()
    assert names(tmp_path) == ["checkpoint_best.pth", "checkpoint_final.pth"] and checkpoints.is_finished()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def other(path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, path)


@pytest.mark.parametrize("damage", [cut, other, lambda path: path.write_bytes(b"")])
def test_a_checkpoint_that_cannot_be_read(tmp_path: Path, damage: Callable, caplog: pytest.LogCaptureFixture):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    for step in (1, 2):
        checkpoints.save(state(step))
    damage(tmp_path / "checkpoint_0000002.pth")
    assert checkpoints.load_last()["step"] == 1
    assert "checkpoint_0000002.pth cannot be read" in caplog.text
    damage(tmp_path / "checkpoint_0000001.pth")
    with pytest.raises(ExperimentError, match="no checkpoint in .* can be read"):
        checkpoints.load_last()


def test_a_damaged_checkpoint_of_a_later_step_is_not_kept_instead_of_a_good_one(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    (tmp_path / "checkpoint_0000009.pth").write_bytes(b"damaged")
    checkpoints.save(state(5))
    assert names(tmp_path) == ["checkpoint_0000005.pth"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
def test_a_full_disk(tmp_path: Path, error: Exception):
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(state(1))

    def fails(value: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    with mock.patch("torch.save", fails), pytest.raises(ExperimentError, match="_0000002.pth cannot be written"):
        checkpoints.save(state(2))
    assert names(tmp_path) == ["checkpoint_0000001.pth"] and checkpoints.load_last()["step"] == 1


# --- JSON lines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", ["", '{"step": 4, "lo', '{"step": 4}', "\x00\x00"])
def test_lines_that_are_not_complete_are_dropped(tmp_path: Path, rest: str):
    lines = JsonLines(tmp_path / "log.jsonl")
    assert list(lines.rows()) == []
    lines.drop_after(3)
    lines.append({"step": step, "loss": 1 / step} for step in range(1, 4))
    with lines.path.open("a") as file:
        file.write(rest)
    assert list(lines.rows()) == [{"step": step, "loss": 1 / step} for step in range(1, 4)]
    lines.drop_after(2)
    lines.append([{"step": 3, "loss": 0.0}])
    assert [json.loads(line)["step"] for line in lines.path.read_text().splitlines()] == [1, 2, 3]
    assert names(tmp_path) == ["log.jsonl"]


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_the_configuration_of_the_folder_can_be_read_again(tmp_path: Path, accelerator: Accelerator):
    config = tiny_config(tmp_path, "m2f", optimizer={"lr": 1e-6})
    folder = claim(config.output_dir, config, accelerator)
    assert values_of(read_config(folder / "config.yaml")) == values_of(config)


def test_a_folder_of_another_run(tmp_path: Path, accelerator: Accelerator):
    first = tiny_config(tmp_path)
    folder = claim(first.output_dir, first, accelerator)
    claim(first.output_dir, tiny_config(tmp_path, bs=3), accelerator)  # there is nothing to lose yet
    Checkpoints(folder, 1).save(state(1))
    second = tiny_config(tmp_path, seed=8, bs=3, optimizer={"lr": 0.5}, checkpoint={"interval": 3})
    before = (folder / "config.yaml").read_text()
    with pytest.raises(ExperimentError) as error:
        claim(second.output_dir, second, accelerator)
    assert "seed (7 there, now 8), optimizer.lr (0.001 there, now 0.5)" in str(error.value)
    assert "\n" not in str(error.value) and "bs" not in str(error.value) and "interval" not in str(error.value)
    assert (folder / "config.yaml").read_text() == before
    third = tiny_config(tmp_path, bs=3, num_workers=1, checkpoint={"interval": 3})
    assert claim(third.output_dir, third, accelerator) == folder
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(ExperimentError, match="no config.yaml that can be read"):
        claim(third.output_dir, third, accelerator)


def test_what_a_killed_run_left_half_written_is_deleted(tmp_path: Path, accelerator: Accelerator):
    config = tiny_config(tmp_path)
    folder = claim(config.output_dir, config, accelerator)
    (folder / "checkpoint_0000002.pth.0123abcd.tmp").write_bytes(b"half")
    claim(config.output_dir, config, accelerator)
    assert names(folder) == [".lock", "config.yaml"]


def test_a_folder_in_use(tmp_path: Path, accelerator: Accelerator):
    config = tiny_config(tmp_path)
    lock = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print(1); input()"
    folder = claim(config.output_dir, config, accelerator)
    with subprocess.Popen(
        [sys.executable, "-c", lock, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline()
        with pytest.raises(ExperimentError, match="is in use by another run"), claimed(config, accelerator):
            pass
        other.kill()
    with claimed(config, accelerator) as found:
        assert found == folder


def test_the_results_of_another_evaluation_are_kept(tmp_path: Path, accelerator: Accelerator):
    first = tiny_config(tmp_path)
    (claim(first.output_dir, first, accelerator) / "results.json").write_text("{}")
    with pytest.raises(ExperimentError, match=r"results of another configuration, which differs in bs \(2 there"):
        claim(first.output_dir, tiny_config(tmp_path, bs=3), accelerator)


def test_a_folder_that_cannot_be(tmp_path: Path, accelerator: Accelerator):
    (tmp_path / "file").write_text("")
    config = tiny_config(tmp_path)
    with pytest.raises(ExperimentError, match="cannot be written to"):
        claim(tmp_path / "file" / "folder", config, accelerator)
    with pytest.raises(ExperimentError, match="output_dir is not set"):
        claim(None, config, accelerator)


# --- processes --------------------------------------------------------------------------------------------------------


def test_another_number_of_processes_than_configured(tmp_path: Path):
    with pytest.raises(ExperimentError, match=r"n_gpus is 3, .* 1: set n_gpus=1, or .*torchrun --nproc_per_node=3"):
        make_accelerator(tiny_config(tmp_path, n_gpus=3))


def test_random_numbers_depend_on_the_place_alone():
    def draw(*place: int) -> float:
        seed_by(*place)
        return float(torch.rand(()))

    values = {place: draw(*place) for place in [(1, 2, 0, 0), (1, 2, 0, 1), (1, 3, 0, 0), (2, 2, 0, 0)]}
    assert len(set(values.values())) == len(values)
    assert all(draw(*place) == value for place, value in values.items())
