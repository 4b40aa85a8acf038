"""Draw a small cartoon data set of colour fundus photographs with artery and vein labels (nnU-Net v2 raw format)."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

DATASET_NAME = "Dataset900_DemoFundus"
# All geometry is laid out on a square of this many units, so that `size` only changes the sampling.
LAYOUT = 192.0
SUPERSAMPLE = 3
STEP = 0.5
ARTERY, VEIN, REFLEX = 1, 2, 3
WIDTH_LIMITS = {ARTERY: (2.2, 4.3), VEIN: (2.6, 6.2)}


@dataclass(frozen=True)
class Eye:
    """One eye in layout units: points are (x, y), y points down; `temporal` is +1 (macula to the right) or -1."""

    centre: np.ndarray
    radius: float
    temporal: int
    disc: np.ndarray
    disc_radius: float
    macula: np.ndarray


def make_dataset(raw_folder: Path, num_train: int = 24, num_test: int = 6, size: int = 192, seed: int = 0) -> Path:
    """Write a synthetic fundus data set and return its folder.

    Case `i` depends only on (`seed`, `i`, `size`). Cases that an earlier call left in the folder are removed, because
    nnU-Net rejects files that `numTraining` does not count.

    Args:
        raw_folder: the nnU-Net raw folder; created if missing.
        num_train: number of cases in imagesTr and labelsTr.
        num_test: number of cases in imagesTs and labelsTs, numbered after the training cases.
        size: side of the square images in pixels.
        seed: non-negative seed of the whole set.

    Returns:
        The folder `raw_folder/Dataset900_DemoFundus`.
    """
    dataset = Path(raw_folder) / DATASET_NAME
    for split in ("Tr", "Ts"):
        for folder in (dataset / f"images{split}", dataset / f"labels{split}"):
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob("fundus_*.png"):
                stale.unlink()
    for index in range(num_train + num_test):
        split = "Tr" if index < num_train else "Ts"
        image, labels = draw_case(np.random.default_rng([seed, index]), size)
        Image.fromarray(image).save(dataset / f"images{split}" / f"fundus_{index:03d}_0000.png")
        Image.fromarray(labels).save(dataset / f"labels{split}" / f"fundus_{index:03d}.png")
    description = {
        "channel_names": {str(channel): "rgb_to_0_1" for channel in range(3)},
        "labels": {"background": 0, "artery": ARTERY, "vein": VEIN},
        "numTraining": num_train,
        "file_ending": ".png",
    }
    (dataset / "dataset.json").write_text(json.dumps(description, indent=4) + "\n", encoding="utf-8")
    return dataset


def draw_case(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one case.

    Returns:
        The image (size, size, 3) uint8 in 0..255 and its labels (size, size) uint8 in {0, 1, 2}.
    """
    eye = _sample_eye(rng)
    shares = _paint_vessels(rng, eye, size)
    x, y = _pixel_grid(size)
    inside = np.hypot(x - eye.centre[0], y - eye.centre[1]) < eye.radius
    image = _add_vessels(rng, _draw_retina(rng, eye, size), shares)
    image = _photograph(rng, image, inside, size)
    # Each pixel takes the class that covers most of it, so that labels stay crisp under the anti-aliased image.
    classes = np.stack([shares[0], shares[ARTERY] + shares[REFLEX], shares[VEIN]])
    return image, (classes.argmax(axis=0) * inside).astype(np.uint8)


def _sample_eye(rng: np.random.Generator) -> Eye:
    """Sample where the field of view, the optic disc and the macula lie."""
    temporal = int(rng.choice([-1, 1]))
    centre = LAYOUT / 2 + rng.uniform(-1.5, 1.5, 2)
    disc = centre + [-temporal * rng.uniform(36, 48), rng.uniform(-9, 9)]
    macula = disc + [temporal * rng.uniform(50, 58), rng.uniform(2, 9)]
    return Eye(centre, rng.uniform(88, 92), temporal, disc, rng.uniform(13, 15.5), macula)


def _pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x (1, size) and y (size, 1) of the pixel centres in layout units, 0..LAYOUT."""
    axis = (np.arange(size) + 0.5) * LAYOUT / size
    return axis[None, :], axis[:, None]


def _grow(
    rng: np.random.Generator, eye: Eye, kind: int, first: np.ndarray, heading: float, goal: float
) -> list[np.ndarray]:
    """Grow a vessel and its branches by a smooth random walk.

    The vessel leaves `first` (3,) in direction `heading` and slowly turns to `goal`, both in radians.

    Returns:
        The vessel and all its descendants, each (n, 3) with rows x, y and width in layout units, like `first`.
    """
    (thinnest, widest), point, width = WIDTH_LIMITS[kind], first[:2], float(first[2])
    vessel, branches, wobble, side = [first], [], 0.0, int(rng.choice([-1, 1]))
    next_branch, reach, pull = rng.uniform(18, 32), 160 * (width / widest) ** 1.2, rng.uniform(0.014, 0.021)
    for travelled in np.arange(STEP, reach, STEP):
        wobble = 0.96 * wobble + rng.normal(0, 0.0045)
        heading += STEP * (pull * (goal - heading) + wobble)
        heading -= STEP * _swerve(eye, point, heading)
        point = point + STEP * np.array([np.cos(heading), np.sin(heading)])
        if np.hypot(*(point - eye.centre)) > eye.radius + 4 or np.hypot(*(point - eye.macula)) < 13:
            break
        width = max(thinnest, width * (1 - 0.004 * STEP))
        if travelled > next_branch and width > thinnest * 1.15:
            child = max(thinnest, width * rng.uniform(0.58, 0.76))
            aside = heading + side * rng.uniform(0.5, 0.95)
            branches += _grow(rng, eye, kind, np.array([*point, child]), aside, aside - side * 0.3)
            width, side, next_branch = width * 0.93, -side, travelled + rng.uniform(22, 40)
        vessel.append(np.array([*point, width]))
    return [*branches, np.array(vessel)]


def _swerve(eye: Eye, point: np.ndarray, heading: float) -> float:
    """Return the turn, in radians per layout unit, by which a vessel at `point` (2,) keeps clear of the macula."""
    x, y = eye.macula - point
    return 0.05 * float(np.sign(np.cos(heading) * y - np.sin(heading) * x)) if np.hypot(x, y) < 28 else 0.0


def _paint_vessels(rng: np.random.Generator, eye: Eye, size: int) -> np.ndarray:
    """Grow and paint one artery and one vein into each quadrant around the disc.

    Returns:
        Shares (4, size, size) in 0..1 of each pixel that background, artery, vein and artery reflex cover; sum 1.
    """
    fine = size * SUPERSAMPLE
    canvas = Image.new("L", (fine, fine), 0)
    for vertical in rng.permutation([-1, 1]):
        # Only the temporal pairs turn far towards the horizontal, which makes them arch around the macula. An angle
        # below zero would lie across the cut of arctan2 and send a vessel the long way round.
        for across, steepness, flattest in ((eye.temporal, 1.35, 0.16), (-eye.temporal, 0.85, 0.6)):
            offset = rng.choice([-1, 1]) * rng.uniform(0.14, 0.26)
            for sign, kind in rng.permutation([(1, ARTERY), (-1, VEIN)]).tolist():
                angles = np.array([steepness + sign * offset, flattest]) + rng.uniform(-0.14, 0.14, 2)
                heading, goal = np.arctan2(vertical * np.sin(angles), across * np.cos(angles))
                width = WIDTH_LIMITS[kind][1] * rng.uniform(0.88, 1.0) * (1.0 if across == eye.temporal else 0.8)
                first = np.array([*(eye.disc + rng.uniform(-2.5, 2.5, 2)), width])
                _paint_tree(canvas, _grow(rng, eye, kind, first, heading, goal), kind, fine / LAYOUT)
    pixels = np.asarray(canvas).reshape(size, SUPERSAMPLE, size, SUPERSAMPLE)
    return np.stack([(pixels == index).mean(axis=(1, 3)) for index in range(4)])


def _paint_tree(canvas: Image.Image, vessels: list[np.ndarray], kind: int, zoom: float) -> None:
    """Paint vessels (n, 3) onto the canvas (mode L, 0..3) as chains of dots; `zoom` is pixels per layout unit."""
    layers = [(kind, 1.0)] + ([(REFLEX, 0.34)] if kind == ARTERY else [])
    brush = ImageDraw.Draw(canvas)
    # The reflex goes on after the whole tree, or each branch would be cut by the body of its parent.
    for value, share_of_width in layers:
        for x, y, width in np.concatenate(vessels) * zoom:
            radius = width * share_of_width / 2
            brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)


def _draw_retina(rng: np.random.Generator, eye: Eye, size: int) -> np.ndarray:
    """Draw the retina without vessels: (size, size, 3), about 0..1."""
    x, y = _pixel_grid(size)
    colour = np.array([0.80, 0.40, 0.20]) * rng.uniform([0.92, 0.84, 0.75], [1.06, 1.14, 1.25])
    tilt = rng.uniform(-0.12, 0.12, 2)
    across, down = (x - eye.centre[0]) / eye.radius, (y - eye.centre[1]) / eye.radius
    light = 1 + tilt[0] * across + tilt[1] * down - rng.uniform(0.18, 0.34) * (across**2 + down**2)
    for grain, strength in ((1.3, 0.02), (7.0, 0.05)):
        texture = gaussian_filter(rng.normal(size=(size, size)), grain * size / LAYOUT)
        light = light + strength * texture / texture.std()
    distance = np.hypot(x - eye.macula[0], y - eye.macula[1])
    light = light * (1 - 0.3 * np.exp(-((distance / 17) ** 2)) - 0.15 * np.exp(-((distance / 5) ** 2)))
    image = light[..., None] * colour
    # Discs are slightly taller than wide, and the paler cup sits inside.
    reach = np.hypot((x - eye.disc[0]) * 1.08, (y - eye.disc[1]) * 0.95) / eye.disc_radius
    for edge, sharpness, paint in ((1.0, 14, (0.98, 0.76, 0.42)), (0.5, 8, (1.0, 0.91, 0.68))):
        cover = 0.88 / (1 + np.exp(sharpness * (reach - edge)))
        image = image * (1 - cover[..., None]) + cover[..., None] * np.array(paint)
    return image * (1 + 0.22 * np.exp(-((reach / 1.9) ** 2))[..., None])


def _add_vessels(rng: np.random.Generator, retina: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Blend vessels given as shares (4, size, size) in 0..1 into the retina (size, size, 3); same shape and range."""
    # Vessels tint the light that comes from behind them, so they follow the illumination of the retina.
    tints = np.array([[1, 1, 1], [0.92, 0.42, 0.34], [0.55, 0.27, 0.36], [1.04, 0.70, 0.54]])
    tints[1:] *= rng.uniform(0.94, 1.06, 3)
    return retina * np.einsum("khw,kc->hwc", shares, tints)


def _photograph(rng: np.random.Generator, image: np.ndarray, inside: np.ndarray, size: int) -> np.ndarray:
    """Expose, blur and add noise to an image (size, size, 3) `inside` the field of view; returns uint8 0..255."""
    blur = rng.uniform(0.4, 0.7) * size / LAYOUT
    image = gaussian_filter(image * inside[..., None] * rng.uniform(0.88, 1.08), (blur, blur, 0))
    image = image + rng.normal(0, rng.uniform(0.008, 0.018), image.shape) * inside[..., None]
    return (image.clip(0, 1) * 255).round().astype(np.uint8)
