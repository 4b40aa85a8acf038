"""The metrics of all predictions of a comparison, measured in parallel."""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from dinov3.errors import ExperimentError
from nnunetv2.experiment.cores import usable_cores
from nnunetv2.study.members import Comparison, Member
from nnunetv2.study.report.cache import FoldCache
from nnunetv2.study.report.data import Data
from nnunetv2.study.report.one_case import Measured, measure_case

KEYS = ["experiment", "fold", "seed", "num_training_cases", "case", "class"]


@dataclass(frozen=True)
class CaseTable:
    """What was measured.

    Attributes:
        rows: a row per prediction and class: `KEYS`, and a column per metric that was measured.
        bins: of the calibration, (3, bins), added up per experiment, number of training cases and class.
    """

    rows: pd.DataFrame
    bins: dict[tuple[str, int | None, str], np.ndarray]


def predictions_of(member: Member, file_ending: str) -> dict[str, Path]:
    """Return the predictions of a fold by their cases."""
    files = sorted((member.folder / member.predictions).glob(f"*{file_ending}"))
    return {path.name.removesuffix(file_ending): path for path in files}


def measure_all(comparison: Comparison, data: Data, processes: int | None = None) -> CaseTable:
    """Measure the predictions that are not in the folds' caches, and return all metrics.

    Args:
        comparison: whose members are finished.
        data: of the comparison.
        processes: None: as many as this process may use cores.

    Raises:
        ExperimentError: a prediction or a label file cannot be read, they do not belong together, or a process was
            killed.
    """
    caches = [FoldCache(member.folder, data) for member in comparison.members]
    found = [predictions_of(member, data.file_ending) for member in comparison.members]
    wanted: dict[str, list[int]] = {}
    for index, (cache, predictions) in enumerate(zip(caches, found, strict=True)):
        for case, path in predictions.items():
            if cache.get(case, path) is None:
                wanted.setdefault(case, []).append(index)
    processes = min(processes or usable_cores(), len(wanted))
    try:
        _measure_wanted(wanted, found, caches, data, processes)
    except BrokenProcessPool as error:
        raise ExperimentError(
            "a process that measures the cases was killed, most likely for want of memory, with "
            f"--processes {processes}; what was measured is kept"
        ) from error
    finally:  # what an interrupted report has measured is not lost
        for cache in caches:
            cache.save()
    return _table(comparison.members, found, caches)


def _measure_wanted(
    wanted: dict[str, list[int]],
    found: list[dict[str, Path]],
    caches: list[FoldCache],
    data: Data,
    processes: int,
) -> None:
    if not wanted:
        return
    context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's threads
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        with _without_interrupts():
            jobs = {
                pool.submit(measure_case, data, case, [found[index][case] for index in indices]): (case, indices)
                for case, indices in wanted.items()
            }
        try:
            for job in tqdm(as_completed(jobs), "metrics of the cases", len(jobs), unit="case"):
                case, indices = jobs[job]
                for index, classes in zip(indices, job.result(), strict=True):
                    caches[index].put(case, found[index][case], classes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that ignore Ctrl-C, as it reaches all of a terminal: this one tells them to stop."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _table(members: list[Member], found: list[dict[str, Path]], caches: list[FoldCache]) -> CaseTable:
    rows: list[dict[str, Any]] = []
    bins: dict[tuple[str, int | None, str], np.ndarray] = {}
    for member, predictions, cache in zip(members, found, caches, strict=True):
        for case, path in predictions.items():
            measured: Measured = cache.get(case, path) or {}
            for name, values in measured.items():
                metrics = {key: value for key, value in values.items() if key != "bins"}
                head = (member.experiment, member.fold, member.seed, member.num_training_cases, case, name)
                rows.append({**dict(zip(KEYS, head, strict=True)), **metrics})
                if "bins" in values:
                    key = (member.experiment, member.num_training_cases, name)
                    bins[key] = bins.get(key, 0) + np.asarray(values["bins"])
    if not rows:
        raise ExperimentError("no finished run: there is no validation prediction to report on")
    frame = pd.DataFrame(rows)
    frame[["seed", "num_training_cases"]] = frame[["seed", "num_training_cases"]].astype("Int64")
    return CaseTable(frame, bins)
