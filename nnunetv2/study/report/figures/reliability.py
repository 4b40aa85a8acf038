"""The reliability diagram: how often a predicted probability is right."""

import numpy as np
from matplotlib.figure import Figure

from nnunetv2.study.report.calibration import NUM_BINS, expected_calibration_error
from nnunetv2.study.report.figures.style import GREY, lines_of, panels


def reliability_figure(bins: dict[str, dict[str, np.ndarray]], experiments: list[str]) -> Figure:
    """Draw a panel per class.

    Args:
        bins: class -> experiment -> (3, bins) of all pixels of all cases.
        experiments: of the comparison, in their order.
    """
    looks = lines_of(experiments)
    figure, axes = panels(len(bins), 5.0, max(3.0, 0.18 * len(experiments)), columns=2)
    for panel, (name, by_experiment) in zip(axes, bins.items(), strict=True):
        panel.plot((0, 1), (0, 1), color=GREY, linestyle="--", linewidth=1)
        for experiment, (pixels, confidence, positives) in by_experiment.items():
            filled = pixels > NUM_BINS  # a bin of a few pixels says nothing
            error = expected_calibration_error(by_experiment[experiment])
            panel.plot(
                *(confidence[filled] / pixels[filled], positives[filled] / pixels[filled]),
                **looks[experiment],
                markersize=3.5,
                label=f"{experiment} (ECE {error:.4f})",
            )
        panel.set(xlim=(0, 1), ylim=(0, 1), box_aspect=1, title=name, xlabel="predicted probability")
        panel.legend(fontsize=7.5, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=2.6)
    axes[0].set_ylabel("frequency of the class")
    return figure
