"""The files of an evaluation: `results.json` and the confusion matrix as a table and as a picture."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dinov3.eval.segmentation.config import SegmentationConfig
from dinov3.eval.segmentation.figures import draw_confusion_matrix
from dinov3.eval.segmentation.results import Evaluation
from dinov3.files import replace_when_complete

RESULTS, MATRIX_TABLE, MATRIX_PICTURE = "results.json", "confusion_matrix.csv", "confusion_matrix.png"


def write_report(
    evaluation: Evaluation, output_dir: str | Path, class_names: Sequence[str], details: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write the files.

    Args:
        evaluation: what was found.
        output_dir: an existing folder.
        class_names: names of the classes, no two the same.
        details: further entries of `results.json`, such as those of `describe_evaluation`.

    Returns:
        What `results.json` holds: `metrics`, `per_class` (by name, then by metric), `num_images`, `seconds` and the
        details.
    """
    folder = Path(output_dir)
    figures = evaluation.as_json()
    figures["per_class"] = {
        name: {metric: values[i] for metric, values in evaluation.per_class.items()}
        for i, name in enumerate(class_names)
    }
    results = {**figures, **(details or {})}
    with replace_when_complete(folder / RESULTS) as temporary:
        temporary.write_text(json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    write_matrix(evaluation.confusion_matrix, folder / MATRIX_TABLE, class_names)
    draw_confusion_matrix(evaluation.confusion_matrix, folder / MATRIX_PICTURE, class_names)
    return results


def write_matrix(confusion_matrix: Tensor, path: Path, class_names: Sequence[str]) -> None:
    """Write the numbers of pixels as CSV: a row for each true class, a column for each predicted one."""
    with replace_when_complete(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["true class", *class_names])
        for name, counts in zip(class_names, confusion_matrix.tolist(), strict=True):
            table.writerow([name, *counts])


def describe_evaluation(model: nn.Module, config: SegmentationConfig, checkpoint: str | Path) -> dict[str, Any]:
    """How an evaluation is done, for `results.json`.

    Args:
        model: the segmentor.
        config: of the evaluation.
        checkpoint: the file of its weights.
    """
    options, slides = config.eval, config.eval.mode == "slide"
    ratios = list(config.transforms.eval.tta_ratios)
    parameters = list(model.parameters())
    return {
        "evaluation": {
            "checkpoint": str(checkpoint),
            "mode": options.mode,
            "crop_size": options.crop_size if slides else None,
            "stride": options.stride if slides else None,
            "img_size": config.transforms.eval.img_size,
            "test_time_augmentation": {"ratios": ratios, "mirrored": True} if options.use_tta else None,
            "metrics_are": "means over images" if options.compute_metric_per_image else "of the pixels of all images",
            "precision": config.model_dtype.value,
        },
        "parameters": {
            "total": sum(parameter.numel() for parameter in parameters),
            "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        },
    }


def class_names_of(config: SegmentationConfig) -> list[str]:
    """Return the names of the classes: those of `datasets.class_names`, otherwise `class 0` and so on."""
    names = config.datasets.class_names
    return [f"class {i}" for i in range(config.decoder_head.num_classes)] if names is None else list(names)
