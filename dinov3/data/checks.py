"""Checking all images and labels before a training or an evaluation starts."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from dinov3.data.checked_files import CheckedFiles, PairSummary
from dinov3.data.errors import ImageFileError
from dinov3.data.pairs import ImagePair, listed
from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.config import DatasetConfig
from dinov3.eval.segmentation.transforms import IGNORE_INDEX

MAX_NAMED = 3  # unusable images named in an error
MAX_VALUES = 10  # label values listed in a message
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
    """Read all images and labels once and find the pairs that cannot be used.

    These are files that cannot be read, labels of another size than their image, and label values outside the classes.

    Args:
        pairs: the files.
        num_classes: number of classes.
        reduce_zero_label: whether label 0 means "unlabelled" and the classes start at 1.
        datasets: `on_error` is `stop`, which raises an error if a pair cannot be used, or `skip`, which leaves such
            pairs out and logs each of them. `max_value`: see `read_image`.
        num_workers: number of threads.
        title: kind of images in messages, such as "training".
        memory: a JSON file that caches the results, so that unchanged files are not read again.

    Returns:
        The pairs that can be used.

    Raises:
        ExperimentError: pairs cannot be used (with `skip`: all of them), or no class has a pixel in any image.
    """
    files = CheckedFiles(memory, datasets.max_value)

    def summary_or_problem(pair: ImagePair) -> PairSummary | str:
        try:
            return files.summary_of(pair)
        except ImageFileError as error:
            return str(error)

    with ThreadPoolExecutor(max(1, num_workers)) as pool:  # the decoders leave the interpreter to other threads
        progress = tqdm(pool.map(summary_or_problem, pairs), f"checking {title} images", len(pairs), disable=None)
        found = dict(zip(pairs, progress, strict=True))
    files.save()
    last_label = num_classes if reduce_zero_label else num_classes - 1
    problems = {pair: _problem(summary, last_label) for pair, summary in found.items()}
    usable = _usable(problems, datasets.on_error, title)
    values = {value for pair in usable for value in found[pair]["label_values"]}
    _check_classes(values, range(int(reduce_zero_label), last_label + 1), title)
    return usable


def _problem(summary: PairSummary | str, last_label: int) -> str | None:
    if isinstance(summary, str):
        return summary
    if summary["image_size"] != summary["label_size"]:
        sizes = (" x ".join(map(str, summary[kind])) for kind in ("image_size", "label_size"))
        return "the image is {} and the labels are {} pixels".format(*sizes)
    outside = [value for value in summary["label_values"] if not 0 <= value <= last_label and value != IGNORE_INDEX]
    if not outside:
        return None
    allowed = f"0 to {last_label}, or {IGNORE_INDEX} for ignored pixels"
    return f"the labels must be {allowed}, found {listed(outside, MAX_VALUES)}"


def _usable(problems: dict[ImagePair, str | None], on_error: str, title: str) -> list[ImagePair]:
    reasons = [f"{pair.name}: {problem}" for pair, problem in problems.items() if problem is not None]
    usable = [pair for pair, problem in problems.items() if problem is None]
    if not reasons:
        return usable
    count = f"{len(reasons)} of {len(problems)} {title} images"
    if on_error == "skip" and usable:
        logger.warning("left out %s (datasets.on_error=skip)", count)
        for reason in reasons:
            logger.warning("left out %s", reason)
        return usable
    remedy = "" if on_error == "skip" else "; datasets.on_error=skip leaves such images out and lists all of them"
    named = listed(reasons, MAX_NAMED, separator="; ")  # the reasons contain commas
    raise ExperimentError(f"cannot use {count} ({named}){remedy}")


def _check_classes(values: set[int], classes: range, title: str) -> None:
    """Refuse labels without any class, and warn of single classes without a pixel.

    Both are often signs that the number of classes or the meaning of 0 is wrong.
    """
    reduced = "; label 0 counts as unlabelled (eval.reduce_zero_label)" if classes.start else ""
    absent = sorted(set(classes) - values)
    if len(absent) == len(classes):
        raise ExperimentError(
            f"no {title} image has a pixel of any class: the classes are the labels {classes.start} to "
            f"{classes.stop - 1}, found only {listed(sorted(values), MAX_VALUES)}{reduced}"
        )
    if absent:
        logger.warning("no %s image has pixels with the labels %s%s", title, listed(absent, MAX_VALUES), reduced)
