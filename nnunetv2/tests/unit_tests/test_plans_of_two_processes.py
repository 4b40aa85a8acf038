"""Two processes that write plans of one name at the same time: none replaces those of another experiment."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.plans import write_new_plans


def plans(batch_size: int) -> dict:
    return {"plans_name": "nnUNetPlans_mine", "configurations": {"2d": {"batch_size": batch_size}}}


@pytest.fixture
def others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict], None]:
    """Let another process write its plans as soon as this one has begun to write its own."""

    def start(others: dict) -> None:
        write_text = Path.write_text

        def write(path: Path, *args: object, **options: object) -> int:
            monkeypatch.setattr(Path, "write_text", write_text)
            write_new_plans(tmp_path, others)
            return path.write_text(*args, **options)

        monkeypatch.setattr(Path, "write_text", write)

    return start


def test_another_experiment_is_not_replaced(others_write: Callable[[dict], None], tmp_path: Path):
    others_write(plans(2))
    with pytest.raises(ExperimentError, match=r"(?s)batch_size: 2 → 3.*--name"):
        write_new_plans(tmp_path, plans(3))
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text()) == plans(2)


def test_the_same_experiment_may_come_first(others_write: Callable[[dict], None], tmp_path: Path):
    others_write(plans(2))
    path = write_new_plans(tmp_path, plans(2))
    assert list(tmp_path.iterdir()) == [path] and json.loads(path.read_text()) == plans(2)


def test_a_file_system_without_hard_links_has_the_plans_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_paths: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", refuse)
    path = write_new_plans(tmp_path, plans(2))
    assert list(tmp_path.iterdir()) == [path] and json.loads(path.read_text()) == plans(2)
