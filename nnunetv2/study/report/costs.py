"""What the trainings cost (`cost.json` in each fold's folder) and what they were allowed (plans and logs)."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from dinov3.errors import ExperimentError
from nnunetv2.experiment.plans import read_json
from nnunetv2.experiment.versions import read_sessions
from nnunetv2.study.members import Comparison, Member
from nnunetv2.study.report.case_table import predictions_of
from nnunetv2.study.report.learning_curves import learning_curve

# column -> (label, how the runs of an experiment are put together)
COSTS: dict[str, tuple[str, str]] = {
    "gpu_hours": ("GPU-hours", "sum"),
    "peak_memory_gib": ("Peak memory (GiB)", "max"),
    "parameters_m": ("Parameters (M)", "max"),
    "trainable_m": ("Trainable (M)", "max"),
    "gflops": ("GFLOPs", "max"),
    "seconds_per_step": ("s / step", "median"),
    "seconds_per_case": ("s / case", "mean"),
}
BUDGET = {
    "steps": "training steps",
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
    rows = [_run(member, comparison.configuration, file_ending) for member in comparison.members]
    return pd.DataFrame(rows)


def cost_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the costs per experiment, in the order of the runs: GPU-hours are those of all its runs together."""
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
            known = sorted({str(value) for value in found.dropna()}) or ["unknown"]
            values.setdefault(" / ".join(known), []).append(str(experiment))
        if len(values) > 1:
            parts = "; ".join(f"{value} ({', '.join(experiments)})" for value, experiments in values.items())
            sentences.append(f"The {name} differs: {parts}.")
    return sentences


def _run(member: Member, configuration: str, file_ending: str) -> dict[str, Any]:
    cost = _optional(member.folder / "cost.json")
    debug = _optional(member.folder / "debug.json")
    plans = read_json(member.folder.parent / "plans.json")["configurations"].get(configuration, {})
    epochs, per_epoch = len(learning_curve(member.folder)), debug.get("num_iterations_per_epoch")
    processes = cost.get("processes")
    cases = cost.get("validation_cases") or len(predictions_of(member, file_ending))
    return {
        "experiment": member.experiment,
        "fold": member.fold,
        "seed": member.seed,
        "num_training_cases": member.num_training_cases,
        "gpu_hours": _scaled(cost.get("total_seconds"), (processes or 1) / 3600),
        "peak_memory_gib": _scaled(cost.get("peak_reserved_bytes") or cost.get("peak_resident_bytes"), 2**-30),
        "parameters_m": _scaled(cost.get("parameters"), 1e-6),
        "trainable_m": _scaled(cost.get("trainable_parameters"), 1e-6),
        "gflops": _scaled(cost.get("flops"), 1e-9),
        "seconds_per_step": _scaled(cost.get("step_seconds_median"), 1.0),
        "seconds_per_case": _scaled(cost.get("validation_seconds"), 1 / cases),
        "steps": epochs * int(per_epoch) if epochs and per_epoch else None,
        "batch_size": plans.get("batch_size"),
        "patch_size": " × ".join(map(str, plans["patch_size"])) if "patch_size" in plans else None,
        "device": cost.get("device") or debug.get("gpu_name") or debug.get("device"),
        "processes": processes,
        "versions": cost.get("versions") or _last_versions(member.folder),
    }


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
