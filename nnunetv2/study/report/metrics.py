"""The metrics of a report: what they are called, and which values are good."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric per case and class.

    Attributes:
        key: column of `cases.csv`.
        label: what tables and figures call it.
        higher_is_better: otherwise lower is.
        definition: in a sentence; `{unit}` is px or mm, `{tolerance}` that of the surface Dice.
    """

    key: str
    label: str
    higher_is_better: bool
    definition: str


METRICS = (
    Metric("dice", "Dice", True, "2 TP / (2 TP + FP + FN)."),
    Metric("iou", "IoU", True, "TP / (TP + FP + FN)."),
    Metric(
        "hd95",
        "HD95",
        False,
        "The larger of the two 95th percentiles of the distances between the surfaces, in {unit}; the diagonal of the "
        "image where only one of the masks is empty.",
    ),
    Metric("nsd", "NSD", True, "Normalised surface Dice at a tolerance of {tolerance:g} {unit}."),
    Metric(
        "volume_error",
        "Volume error",
        False,
        "|predicted − true volume (2D: area)| / true volume; undefined where the truth is empty.",
    ),
    Metric("sensitivity", "Sensitivity", True, "TP / (TP + FN); undefined where the truth is empty."),
    Metric("precision", "Precision", True, "TP / (TP + FP); undefined where the prediction is empty."),
    Metric("cldice", "clDice", True, "Centreline Dice (Shit et al., CVPR 2021), of tubular classes."),
    Metric(
        "betti0_error",
        "Betti-0 error",
        False,
        "Difference of the numbers of connected components (8 or 26 neighbours), of tubular classes.",
    ),
    Metric("brier", "Brier", False, "Mean of (p − y)² over the pixels, one class against the rest."),
    Metric(
        "ece",
        "ECE",
        False,
        "Expected calibration error of the class's probability, one class against the rest, 15 bins of equal width.",
    ),
)
BY_KEY = {metric.key: metric for metric in METRICS}
MEAN_OF_CLASSES = "mean of the classes"
