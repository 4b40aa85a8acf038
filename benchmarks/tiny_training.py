"""What the benchmarks on drawn images share: a planned data set and the training command on the tiny model."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "demo"))

from commands import environment, run  # noqa: E402
from make_fundus import DATASET_NAME, make_dataset  # noqa: E402

CONFIG = HERE / "upernet_tiny.yaml"
DATASET = DATASET_NAME
NUMBER = DATASET[7:10]
SMALL = ("train.patch_size=[64,64]", "train.batch_size=2")


def output_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the one argument that these benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, nargs="?")
    return parser


@contextmanager
def new_folder(path: Path | None) -> Iterator[Path]:
    """Make the folder to write to; without a path a temporary one.

    Raises:
        SystemExit: the path is taken.
    """
    if path is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
    elif path.exists():
        sys.exit(f"{path} is there already: name a new folder")
    else:
        path.mkdir(parents=True)
        yield path.resolve()


def prepare(output: Path) -> dict[str, str]:
    """Draw, plan and preprocess a small data set.

    Args:
        output: a folder for nnU-Net's folders `raw`, `preprocessed` and `results`.

    Returns:
        The variables for commands, with augmentation in the training's own process: trainings are repeatable.
    """
    make_dataset(output / "raw", num_train=10, num_test=0, size=96)
    variables = environment(output, output / "raw")
    run(variables, "nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-c", "2d", "-npfp", 2, "-np", 2)
    return {**variables, "nnUNet_n_proc_DA": "0"}
