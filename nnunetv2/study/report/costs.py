"""What the trainings cost (`cost.json` in each fold's folder) and what they were allowed (plans, split and logs)."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from dinov3.errors import ExperimentError
from nnunetv2.experiment.dataset import preprocessed_folder
from nnunetv2.experiment.plans import read_json, resolve
from nnunetv2.experiment.versions import read_sessions
from nnunetv2.study.members import Comparison, Member
from nnunetv2.study.report.case_table import predictions_of
from nnunetv2.study.report.learning_curves import learning_curve
from nnunetv2.study.training_log import read_logs

# column -> (label, how the runs of an experiment are put together); a run has either the first two or the next two
COSTS: dict[str, tuple[str, str]] = {
    "gpu_hours": ("GPU-hours", "sum"),
    "peak_gpu_memory_gib": ("Peak GPU memory (GiB)", "max"),
    "hours": ("Hours (CPU or MPS)", "sum"),
    "peak_main_memory_gib": ("Peak main memory (GiB)", "max"),
    "parameters_m": ("Parameters (M)", "max"),
    "trainable_m": ("Trainable parameters (M)", "max"),
    "gflops": ("GFLOPs", "max"),
    "seconds_per_step": ("Seconds / step", "median"),
    "seconds_per_case": ("Seconds / case", "mean"),
}
BUDGET = {
    "training_cases": "number of training cases",
    "steps": "number of training steps",
    "batch_size": "batch size",
    "patch_size": "patch size",
    "device": "device",
    "processes": "number of processes",
}
logger = logging.getLogger(__name__)


def run_table(comparison: Comparison, file_ending: str) -> pd.DataFrame:
    """Return a row per member: what it cost and what it was allowed; None where nothing tells.

    Columns: those of `COSTS` and of `BUDGET`, experiment, fold, seed, num_training_cases, versions.
    """
    return pd.DataFrame([_run(member, comparison, file_ending) for member in comparison.members])


def cost_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the costs per experiment, in the order of the runs.

    Hours are those of all the given runs of an experiment together, and NaN where those of one are not known.
    """
    how: dict[str, str | Callable[[pd.Series], float]] = {
        column: (lambda values: values.sum(min_count=len(values))) if kind == "sum" else kind
        for column, (_, kind) in COSTS.items()
    }
    return runs.groupby("experiment", sort=False)[list(COSTS)].agg(how)


def unequal_budgets(runs: pd.DataFrame) -> list[str]:
    """Return a sentence for each part of the budget that differs between runs of the same number of training cases."""
    sentences = []
    for key, name in BUDGET.items():
        values: dict[str, list[str]] = {}
        for experiment, found in runs.groupby("experiment", sort=False)[key]:
            values.setdefault(budget_text(found) or "unknown", []).append(str(experiment))
        if len(values) > 1:
            parts = "; ".join(f"{value} ({', '.join(experiments)})" for value, experiments in values.items())
            sentences.append(f"The {name} differs: {parts}.")
    return sentences


def budget_text(values: pd.Series) -> str:
    """Return the different values of a part of the budget in one line; empty where none is known."""
    known = sorted(values.dropna().unique())
    return " / ".join(value if isinstance(value, str) else f"{value:,.0f}" for value in known)


def _run(member: Member, comparison: Comparison, file_ending: str) -> dict[str, Any]:
    cost = _optional(member.folder / "cost.json")
    cases = cost.get("validation_cases") or len(predictions_of(member, file_ending))
    return {
        "experiment": member.experiment,
        "fold": member.fold,
        "seed": member.seed,
        "num_training_cases": member.num_training_cases,
        **_costs_of_the_device(cost),
        "parameters_m": _scaled(cost.get("parameters"), 1e-6),
        "trainable_m": _scaled(cost.get("trainable_parameters"), 1e-6),
        "gflops": _scaled(cost.get("flops"), 1e-9),
        "seconds_per_step": _scaled(cost.get("step_seconds_median"), 1.0),
        "seconds_per_case": _scaled(cost.get("validation_seconds"), 1 / cases),
        **_budget(member, comparison, cost),
        "versions": cost.get("versions") or _last_versions(member.folder),
    }


def _costs_of_the_device(cost: dict[str, Any]) -> dict[str, float]:
    """Time and memory: of the GPUs where CUDA told of their memory, else of the process."""
    nothing = float("nan")
    seconds, reserved = cost.get("total_seconds"), cost.get("peak_reserved_bytes")
    on_gpu = reserved is not None
    return {
        "gpu_hours": _scaled(seconds, (cost.get("processes") or 1) / 3600) if on_gpu else nothing,
        "peak_gpu_memory_gib": _scaled(reserved, 2**-30),
        "hours": nothing if on_gpu else _scaled(seconds, 1 / 3600),
        "peak_main_memory_gib": nothing if on_gpu else _scaled(cost.get("peak_resident_bytes"), 2**-30),
    }


def _budget(member: Member, comparison: Comparison, cost: dict[str, Any]) -> dict[str, Any]:
    debug, plans = _optional(member.folder / "debug.json"), read_json(member.folder.parent / "plans.json")
    known = comparison.configuration in plans["configurations"]
    configuration = resolve(plans, comparison.configuration) if known else {}
    epochs, per_epoch = len(learning_curve(member.folder)), debug.get("num_iterations_per_epoch")
    patch_size = configuration.get("patch_size")
    return {
        "training_cases": training_cases(member, comparison.dataset),
        "steps": epochs * int(per_epoch) if epochs and per_epoch else None,
        "batch_size": configuration.get("batch_size"),
        "patch_size": None if patch_size is None else " × ".join(map(str, patch_size)),
        "device": cost.get("device") or debug.get("gpu_name") or debug.get("device"),
        "processes": cost.get("processes"),
    }


def training_cases(member: Member, dataset: str) -> int | None:
    """Return how many cases a member was trained on: its logs tell, or else the split; None: neither does."""
    logged = [log.num_training_cases for log in read_logs(member.folder) if log.num_training_cases is not None]
    if logged:
        return logged[-1]
    splits = preprocessed_folder(dataset) / "splits_final.json"
    if member.num_training_cases is not None or member.fold == "all" or not splits.is_file():
        return member.num_training_cases
    folds = read_json(splits)
    return len(folds[int(member.fold)]["train"]) if int(member.fold) < len(folds) else None


def _last_versions(folder: Path) -> dict[str, str]:
    sessions = read_sessions(folder)
    return sessions[-1]["versions"] if sessions else {}


def _scaled(value: float | None, factor: float) -> float:
    return float("nan") if value is None else value * factor


def _optional(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except ExperimentError as error:  # interrupted in its writing: the report can do without
        logger.warning("%s", error)
        return {}
    return content if isinstance(content, dict) else {}
