"""Cases as pictures: image, truth, and every experiment's prediction with its errors in colour."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from skimage.transform import resize

RIGHT, FALSE_POSITIVE, FALSE_NEGATIVE, TRUTH = "#7ddc9c", "#ff3b30", "#2f8cff", "#ffd400"
OPACITY, SIDE = 0.85, 420  # pixels of a panel's longer side


@dataclass(frozen=True, eq=False)
class Picture:
    """A case, or one slice of it.

    Attributes:
        title: which case it is, and why it is shown.
        image: (H, W) or (H, W, 3), 0 to 1.
        truth: mask (H, W).
        predictions: experiment -> mask (H, W).
        captions: experiment -> value of the metric.
        aspect: height of a pixel over its width.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    predictions: dict[str, np.ndarray]
    captions: dict[str, str]
    aspect: float = 1.0


def case_figure(pictures: list[Picture]) -> Figure:
    """Draw a row per case."""
    experiments = list(pictures[0].predictions)
    columns = 2 + len(experiments)
    shapes = [picture.image.shape[0] * picture.aspect / picture.image.shape[1] for picture in pictures]
    heights = [min(2.1 * shape, 3.2) + 0.45 for shape in shapes]
    figure = Figure(figsize=(2.15 * columns, sum(heights) + 0.35), layout="constrained")
    grid = figure.subplots(len(pictures), columns, squeeze=False, height_ratios=heights)
    for row, picture in zip(grid, pictures, strict=True):
        image = _shrunk(_as_colours(picture.image))
        overlays = [np.zeros((*image.shape[:2], 4)), _wash([(picture.truth, TRUTH)], image.shape[:2])]
        titles = [picture.title, "truth"]
        for experiment in experiments:
            overlays.append(_errors(picture.truth, picture.predictions[experiment], image.shape[:2]))
            titles.append(f"{experiment}\n{picture.captions[experiment]}")
        grey = _as_colours(0.65 * image.mean(axis=-1))  # colours of the masks must not be those of the image
        for column, (axes, title, overlay) in enumerate(zip(row, titles, overlays, strict=True)):
            axes.imshow(image if column == 0 else grey, aspect=picture.aspect, interpolation="nearest")
            axes.imshow(overlay, aspect=picture.aspect, interpolation="nearest")
            axes.set_title(title, fontsize=8)
            axes.set_axis_off()
    named = {"truth": TRUTH, "right": RIGHT, "false positive": FALSE_POSITIVE, "false negative": FALSE_NEGATIVE}
    handles = [Patch(color=colour, label=name) for name, colour in named.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _errors(truth: np.ndarray, predicted: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    layers = [
        (truth & predicted, RIGHT),
        (~truth & predicted, FALSE_POSITIVE),
        (truth & ~predicted, FALSE_NEGATIVE),
    ]
    return _wash(layers, shape)


def _wash(layers: list[tuple[np.ndarray, str]], shape: tuple[int, ...]) -> np.ndarray:
    """Return colours with opacities (h, w, 4): a shrunk pixel shows the share that a layer has of it."""
    wash = np.zeros((*shape, 4))
    for mask, colour in layers:
        share = resize(mask.astype(np.float32), shape, order=1, anti_aliasing=True)
        stronger = share > wash[..., 3]
        wash[stronger, :3] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        wash[..., 3] = np.maximum(wash[..., 3], share)
    wash[..., 3] = np.sqrt(wash[..., 3]) * OPACITY  # thin structures stay visible
    return wash


def _as_colours(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else image


def _shrunk(image: np.ndarray) -> np.ndarray:
    factor = min(1.0, SIDE / max(image.shape[:2]))
    shape = tuple(max(1, round(side * factor)) for side in image.shape[:2])
    return resize(image, (*shape, 3), order=1, anti_aliasing=True).clip(0, 1) if factor < 1 else image
