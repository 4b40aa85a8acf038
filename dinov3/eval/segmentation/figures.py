"""Pictures of an evaluation: predictions beside their labels, and the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from dinov3.eval.segmentation.results import Example
from dinov3.files import replace_when_complete

PANELS = ("image", "labels", "prediction", "errors")
PANEL_WIDTH = 2.4  # inches
SHARPNESS, LONGEST = 200, 60_000  # dots per inch, pixels
LETTERS = 15  # of a name, per inch
MOST_CLASSES = 20  # in a legend, and with numbers in a matrix
GREY, YELLOW = (0.6, 0.6, 0.6), (1.0, 0.85, 0.1)
GREY_OF_TAB10 = 7
GOLDEN_RATIO = 0.618034
HUES = 12  # that are easy to tell apart
LEVELS = ((0.95, 0.95), (0.5, 0.95), (0.95, 0.6), (0.55, 0.6), (0.75, 0.8))  # saturation and value, for many classes


def draw_examples(
    examples: Sequence[Example], path: Path, class_names: Sequence[str], num_classes: int, ignore_index: int
) -> None:
    """Write a picture with a row for each example: image, labels, prediction and errors.

    Args:
        examples: at least one.
        path: of the picture.
        class_names: names of the classes; one that is called background is black.
        num_classes: number of classes.
        ignore_index: label of pixels that do not count; they are grey.
    """
    with replace_when_complete(Path(path)) as temporary:
        figure = examples_figure(examples, class_names, num_classes, ignore_index)
        figure.savefig(temporary, format="png", dpi=min(SHARPNESS, LONGEST / figure.get_figheight()))


def examples_figure(
    examples: Sequence[Example], class_names: Sequence[str], num_classes: int, ignore_index: int
) -> Figure:
    """Draw what `draw_examples` writes."""
    heights = [PANEL_WIDTH * example.labels.shape[0] / example.labels.shape[1] for example in examples]
    size = (PANEL_WIDTH * len(PANELS) + 0.3, sum(heights) + 0.08 * len(heights) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(examples), len(PANELS), squeeze=False, gridspec_kw={"height_ratios": heights})
    colours = class_colours(class_names)
    for row, example in zip(axes, examples, strict=True):
        _draw_row(row, example, colours, ignore_index)
    for panel, title in zip(axes[0], PANELS, strict=True):
        panel.set_title(title, fontsize=10)
    shown = _classes_of_legend(examples, num_classes)
    handles = [Patch(facecolor=colours[i], edgecolor="black", linewidth=0.4, label=class_names[i]) for i in shown]
    if any((example.labels == ignore_index).any() for example in examples):
        handles.append(Patch(color=GREY, label="ignored"))
    handles.append(Patch(color=YELLOW, label="error"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=9, frameon=False)
    return figure


def class_colours(class_names: Sequence[str]) -> np.ndarray:
    """Colours of classes that are easy to tell apart, none of them grey, (C, 3), 0 to 1."""
    named = [name.lower() != "background" for name in class_names]
    colours = np.zeros((len(named), 3))
    colours[named] = _distinct(sum(named))
    return colours


def _distinct(number: int) -> np.ndarray:
    palette = np.delete(np.array(colormaps["tab10"].colors), GREY_OF_TAB10, axis=0)
    if number <= len(palette):
        return palette[:number]
    levels = LEVELS[: -(-number // HUES)]
    steps = -(-number // len(levels))
    # evenly spaced, in an order in which neighbours are far apart
    hues = np.argsort(np.argsort(np.arange(steps) * GOLDEN_RATIO % 1)) / steps
    return np.array([hsv_to_rgb((hues[i % steps], *levels[i // steps])) for i in range(number)])


def _draw_row(row: Sequence[Axes], example: Example, colours: np.ndarray, ignore_index: int) -> None:
    ignored = example.labels == ignore_index
    wrong = (example.labels != example.prediction) & ~ignored
    errors = np.repeat(example.image.mean(-1, keepdims=True) / 255, 3, axis=-1) * 0.6
    errors[ignored], errors[wrong] = GREY, YELLOW
    labels = colours[np.where(ignored, 0, example.labels)]
    labels[ignored] = GREY
    for panel, picture in zip(row, (example.image, labels, colours[example.prediction], errors), strict=True):
        panel.imshow(picture, interpolation="nearest")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_linewidth(0.4)
    longest = max(6, int(LETTERS * PANEL_WIDTH * wrong.shape[0] / wrong.shape[1]))
    row[0].set_ylabel(example.name if len(example.name) <= longest else f"…{example.name[1 - longest :]}", fontsize=8)
    counted = max(1, int((~ignored).sum()))
    row[3].set_xlabel(f"{wrong.sum() / counted:.1%} of the pixels are wrong", fontsize=8)


def _classes_of_legend(examples: Sequence[Example], num_classes: int) -> list[int]:
    """All classes, or if they are many the most frequent of those that occur."""
    if num_classes <= MOST_CLASSES:
        return list(range(num_classes))
    maps = [classes.ravel() for example in examples for classes in (example.labels, example.prediction)]
    pixels = np.concatenate(maps)
    counts = np.bincount(pixels[pixels < num_classes], minlength=num_classes)
    frequent = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    return sorted(frequent[counts[frequent] > 0].tolist())


def draw_confusion_matrix(confusion_matrix: Tensor, path: Path, class_names: Sequence[str]) -> None:
    """Write a picture of the share of each class's pixels that is predicted as each class.

    Args:
        confusion_matrix: pixels by true and predicted class, (C, C).
        path: of the picture.
        class_names: names of the classes.
    """
    with replace_when_complete(Path(path)) as temporary:
        confusion_figure(confusion_matrix, class_names).savefig(temporary, format="png", dpi=SHARPNESS)


def confusion_figure(confusion_matrix: Tensor, class_names: Sequence[str]) -> Figure:
    """Draw what `draw_confusion_matrix` writes; the rows of classes without pixels are grey."""
    counts = confusion_matrix.cpu().double().numpy()
    labelled = counts.sum(1, keepdims=True)
    shares = np.divide(counts, labelled, out=np.full_like(counts, np.nan), where=labelled > 0)
    number = len(class_names)
    few = number <= MOST_CLASSES
    cell, font = (0.55, 9) if few else (0.11, 6)  # inches, points
    side = max(2.6, cell * number)
    figure = Figure(figsize=(side + 2.4, side + 1.4), layout="constrained")
    panel = figure.subplots()
    panel.set_facecolor(GREY)
    colours = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    panel.set_xticks(range(number), class_names, rotation=90, fontsize=font)
    panel.set_yticks(range(number), class_names, fontsize=font)
    panel.set_xlabel("predicted class")
    panel.set_ylabel("true class" if labelled.all() else "true class (grey: not labelled)")
    figure.colorbar(colours, ax=panel, label="share of the true class's pixels", shrink=0.8)
    if few:
        for (row, column), share in np.ndenumerate(shares):
            if not np.isnan(share):
                ink = "white" if share > 0.5 else "black"
                panel.text(column, row, f"{share:.2f}", ha="center", va="center", color=ink, fontsize=8)
    return figure
