"""The command `nnUNetv2_m2f_draw`: what the most confident queries of a trained Mask2Former see in an image."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.run.cpu_cores import check_process_counts
from nnunetv2.run.devices import DEVICES

COMMAND = "nnUNetv2_m2f_draw"


def run_draw_entry(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: the command line without the command's name; by default that of the process.
    """
    parser = create_parser()
    args = parser.parse_args(arguments)
    try:
        draw(args)
    except ExperimentError as error:
        parser.exit(2, f"{COMMAND}: error: {error}\n")


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Draw an image, its truth, what a trained Mask2Former predicts, and the masks of its most "
        "confident queries. The image is seen as nnU-Net preprocesses it; the prediction is that of "
        "nnUNetv2_predict with this fold alone, and the queries see the image as a whole.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-m", type=Path, required=True, metavar="FOLDER", help="of the model: nnUNetTrainer_m2f__PLANS__2d")
    add("-f", required=True, metavar="FOLD", help="a number, or all")
    add("-i", type=Path, required=True, nargs="+", metavar="IMAGE", help="the file CASE_0000, or those of all channels")
    add("-o", type=Path, required=True, metavar="PICTURE", help="the PNG file to write")
    add("--truth", type=Path, metavar="FILE", help="the label file of the image")
    add("--slice", type=int, metavar="N", help="of a volume, from 0, along the axis that nnU-Net slices (the middle)")
    add("--queries", type=int, default=8, metavar="N", help="how many to draw (default: %(default)s)")
    add("-chk", default="checkpoint_final.pth", metavar="FILE", help="name of the checkpoint (default: %(default)s)")
    add("-device", default="cpu", choices=DEVICES, help="default: %(default)s")
    return parser


def draw(args: argparse.Namespace) -> None:
    """Draw the picture that the arguments describe.

    Raises:
        ExperimentError: something is wrong that the user can put right.
    """
    check_process_counts()
    if args.queries < 1:
        raise ExperimentError(f"--queries must be at least 1, found {args.queries}")
    if args.o.suffix.lower() != ".png":
        raise ExperimentError(f"-o must end in .png, found {args.o.name}")
    if not args.o.absolute().parent.is_dir() or args.o.is_dir():
        raise ExperimentError(f"-o: {args.o} is not a file in an existing folder")
    check_model_folder(args.m, args.f, args.chk)
    # torch is loaded here: what is wrong above, and `--help`, are answered at once
    from nnunetv2.run.image_slice import read_slice
    from nnunetv2.run.query_figure import (
        confident_queries,
        foreground,
        ignored,
        load_model,
        predict,
        tiles,
        write_figure,
    )

    predictor = load_model(args.m, args.f, args.chk, args.device)
    sliced = read_slice(predictor, args.i, args.truth, args.slice)
    labels = [*foreground(predictor), *ignored(predictor)]
    queries = confident_queries(predictor, sliced.image, args.queries)
    panels = list(tiles(sliced, labels, predict(predictor, sliced.image), queries))
    write_figure(panels, labels, sliced.name, args.o)


def check_model_folder(folder: Path, fold: str, checkpoint: str) -> None:
    """Check that a folder is that of a trained model with this fold and checkpoint.

    Raises:
        ExperimentError: something is not there.
    """
    for path in (folder / "plans.json", folder / "dataset.json"):
        if not path.is_file():
            raise ExperimentError(f"-m: {folder} is not the folder of a trained model: it has no {path.name}")
    if not (folder / f"fold_{fold}").is_dir():
        found = ", ".join(sorted(path.name.removeprefix("fold_") for path in folder.glob("fold_*"))) or "none"
        raise ExperimentError(f"-f: there is no fold {fold} in {folder}; found: {found}")
    path = folder / f"fold_{fold}" / checkpoint
    if not path.is_file():
        found = ", ".join(sorted(path.name for path in path.parent.glob("*.pth"))) or "none"
        raise ExperimentError(f"-chk: there is no {checkpoint} in {path.parent}; found: {found}")


if __name__ == "__main__":
    run_draw_entry()
