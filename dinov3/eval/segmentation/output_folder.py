"""The folder of a training or an evaluation: it belongs to one configuration, and to one run at a time."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from dinov3.errors import ExperimentError, in_one_line
from dinov3.eval.segmentation.config import SegmentationConfig, values_of
from dinov3.files import replace_when_complete

CONFIG_NAME, LOCK_NAME = "config.yaml", ".lock"
RESULTS = ("checkpoint_*.pth", "results.json")
# what may change when a training goes on, as the trained weights do not depend on it
FREE = ("num_workers", "output_dir", "checkpoint.interval", "checkpoint.keep_last", "eval.num_visualizations")


@contextlib.contextmanager
def claimed(config: SegmentationConfig, accelerator: Accelerator) -> Iterator[Path]:
    """Keep other runs out of `config.output_dir`, which is created and claimed (see `claim`).

    Raises:
        ExperimentError: another run is using the folder; or see `claim`.
    """
    if not accelerator.is_main_process:
        yield claim(config.output_dir, config, accelerator)
        return
    folder = _writable(config.output_dir)
    # a POSIX lock is the process's alone: those that load images do not keep it when this one is killed
    with (folder / LOCK_NAME).open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ExperimentError(f"output_dir {folder} is in use by another run: wait for its end") from error
        yield claim(folder, config, accelerator)


def claim(output_dir: str | Path | None, config: SegmentationConfig, accelerator: Accelerator) -> Path:
    """Create the folder of a run, or check that it is the one to resume; write `config.yaml`.

    A folder without checkpoints and results has nothing to lose, and takes any configuration.

    Args:
        output_dir: the folder.
        config: of the run.
        accelerator: all of its processes call this function, the main one writes.

    Raises:
        ExperimentError: the folder has results of another configuration (the message names the keys that differ), or
            cannot be written to.
    """
    folder, values = _named(output_dir), values_of(config)
    if any(path for pattern in RESULTS for path in folder.glob(pattern)):
        _check_same(folder / CONFIG_NAME, values)
    accelerator.wait_for_everyone()  # until the others have read it
    if accelerator.is_main_process:
        _write(_writable(folder), values)
    accelerator.wait_for_everyone()
    return folder


def _named(output_dir: str | Path | None) -> Path:
    if output_dir is None:
        raise ExperimentError("output_dir is not set: name the folder of the results, such as output_dir=results/run1")
    return Path(output_dir)


def _writable(output_dir: str | Path | None) -> Path:
    """Create a folder, and check that it can be written to."""
    folder = _named(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK_NAME).touch()
    except OSError as error:
        raise ExperimentError(f"output_dir {folder} cannot be written to: {in_one_line(error)}") from error
    return folder


def _write(folder: Path, values: dict[str, Any]) -> None:
    for unfinished in folder.glob("*.tmp"):  # of a run that was killed while it wrote
        unfinished.unlink()
    with replace_when_complete(folder / CONFIG_NAME) as path:
        path.write_text(yaml.safe_dump(values, sort_keys=False))


def _check_same(path: Path, values: dict[str, Any]) -> None:
    try:
        recorded = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ExperimentError(
            f"output_dir {path.parent} has results, but no {CONFIG_NAME} that can be read: choose another folder"
        ) from error
    old, new = dict(_flat(recorded)), dict(_flat(values))
    differing = [key for key in {**old, **new} if key not in FREE and old.get(key) != new.get(key)]
    if differing:
        found = ", ".join(f"{key} ({old.get(key)!r} there, now {new.get(key)!r})" for key in differing)
        raise ExperimentError(
            f"output_dir {path.parent} has results of another configuration, which differs in {found}: "
            "choose another folder, or set these keys as they were"
        )


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values
