"""Checking all images and labels before a training starts."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from dinov3.data.checked_files import CheckedFiles, Facts
from dinov3.data.errors import ImageFileError
from dinov3.data.pairs import ImagePair, counted
from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.config import DatasetConfig
from dinov3.eval.segmentation.transforms import IGNORE_INDEX

NAMED = 10  # problems that a message names
logger = logging.getLogger(__name__)


def check_pairs(
    pairs: Sequence[ImagePair],
    num_classes: int,
    reduce_zero_label: bool,
    datasets: DatasetConfig,
    num_workers: int,
    title: str,
    memory: Path | None = None,
) -> list[ImagePair]:
    """Read all images and labels once: can they be read, are they of one size, and are all labels classes?

    Args:
        pairs: the files.
        num_classes: number of classes.
        reduce_zero_label: whether label 0 means "unlabelled" and the classes are counted from 1.
        datasets: `on_error` says what to do with pairs that cannot be used: `stop`, or `skip` to leave them out with
            a warning. `max_value`: see `read_image`.
        num_workers: number of threads.
        title: what messages call the images, such as "training".
        memory: a JSON file that keeps what has been read, so that unchanged files are not read again.

    Returns:
        The pairs that can be used.

    Raises:
        ExperimentError: there are pairs that cannot be used, or with `skip` no others.
    """
    files = CheckedFiles(memory, datasets.max_value)

    def facts_or_problem(pair: ImagePair) -> Facts | str:
        try:
            return files.facts_of(pair)
        except ImageFileError as error:
            return str(error)

    with ThreadPoolExecutor(max(1, num_workers)) as pool:  # the decoders leave the interpreter to other threads
        progress = tqdm(pool.map(facts_or_problem, pairs), f"checking {title} images", len(pairs), disable=None)
        found = dict(zip(pairs, progress, strict=True))
    files.save()
    last_label = num_classes if reduce_zero_label else num_classes - 1
    problems = {pair: _problem(facts, last_label) for pair, facts in found.items()}
    usable = _usable(problems, datasets.on_error, title)
    seen = {value for pair in usable for value in found[pair]["values"]}
    _warn_of_absent_labels(sorted({*range(int(reduce_zero_label), last_label + 1)} - seen), reduce_zero_label, title)
    return usable


def _problem(facts: Facts | str, last_label: int) -> str | None:
    if isinstance(facts, str):
        return facts
    if facts["image"] != facts["labels"]:
        sizes = (" x ".join(map(str, facts[kind])) for kind in ("image", "labels"))
        return "the image is {} and the labels are {} pixels".format(*sizes)
    outside = [value for value in facts["values"] if not 0 <= value <= last_label and value != IGNORE_INDEX]
    if not outside:
        return None
    allowed = f"0 to {last_label}, or {IGNORE_INDEX} for ignored pixels"
    return f"the labels must be {allowed}, found {_shown(outside)}"


def _shown(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return ", ".join(map(str, numbers[:NAMED])) + more


def _usable(problems: dict[ImagePair, str | None], on_error: str, title: str) -> list[ImagePair]:
    reasons = [f"{pair.name}: {problem}" for pair, problem in problems.items() if problem is not None]
    usable = [pair for pair, problem in problems.items() if problem is None]
    if not reasons:
        return usable
    told = f"{counted(reasons, f'{title} image', NAMED)} of {len(problems)}"
    if on_error == "skip" and usable:
        logger.warning("left out %s", told)
        return usable
    remedy = "" if on_error == "skip" else "; datasets.on_error=skip leaves such images out"
    raise ExperimentError(f"images must be readable, and their labels fit to them and be classes, found {told}{remedy}")


def _warn_of_absent_labels(absent: Sequence[int], reduce_zero_label: bool, title: str) -> None:
    """Tell of classes without a pixel: often a sign that the number of classes or the meaning of 0 is wrong."""
    if absent:
        reduced = "; label 0 counts as unlabelled (eval.reduce_zero_label)" if reduce_zero_label else ""
        logger.warning("no %s image has pixels with the labels %s%s", title, _shown(absent), reduced)
