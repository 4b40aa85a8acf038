"""The command `nnUNetv2_vit_draw` (before: `nnUNetv2_m2f_draw`): what a trained model makes of an image."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.run.cpu_cores import check_process_counts
from nnunetv2.run.devices import DEVICES

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.run.image_slice import Slice
    from nnunetv2.run.slice_figure import Label, Tile

COMMAND = "nnUNetv2_vit_draw"
FEATURES = ("last", "all", "none")
NUM_QUERIES = 8


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
        description="Draw an image, its truth, what a trained model predicts, and how it comes to it: of Mask2Former "
        "and its kin the masks of the most confident queries, of other models the confidence at every pixel; and the "
        "features of the ViT, whose first three principal components are the colours. The image is seen as nnU-Net "
        "preprocesses it; the prediction is that of nnUNetv2_predict with this fold alone, and queries and features "
        "are of the image as a whole.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-m", type=Path, required=True, metavar="FOLDER", help="of the model: TRAINER__PLANS__2d")
    add("-f", required=True, metavar="FOLD", help="a number, or all")
    add("-i", type=Path, required=True, nargs="+", metavar="IMAGE", help="the file CASE_0000, or those of all channels")
    add("-o", type=Path, required=True, metavar="PICTURE", help="the PNG file to write")
    add("--truth", type=Path, metavar="FILE", help="the label file of the image")
    add("--slice", type=int, metavar="N", help="of a volume, from 0, along the axis that nnU-Net slices (the middle)")
    add("--queries", type=int, metavar="N", help=f"how many to draw of a model that has them (default: {NUM_QUERIES})")
    add("--features", choices=FEATURES, help="of the last feature layer (default with a ViT), of all, or of none")
    add("-chk", default="checkpoint_final.pth", metavar="FILE", help="name of the checkpoint (default: %(default)s)")
    add("-device", default="cpu", choices=DEVICES, help="default: %(default)s")
    return parser


def draw(args: argparse.Namespace) -> None:
    """Draw the picture that the arguments describe.

    Raises:
        ExperimentError: something is wrong that the user can put right.
    """
    check_process_counts()
    if args.queries is not None and args.queries < 1:
        raise ExperimentError(f"--queries must be at least 1, found {args.queries}")
    if args.o.suffix.lower() != ".png":
        raise ExperimentError(f"-o must end in .png, found {args.o.name}")
    if not args.o.absolute().parent.is_dir() or args.o.is_dir():
        raise ExperimentError(f"-o: {args.o} is not a file in an existing folder")
    check_model_folder(args.m, args.f, args.chk)
    # torch is loaded here: what is wrong above, and `--help`, are answered at once
    from nnunetv2.run.image_slice import read_slice
    from nnunetv2.run.model_views import load_model
    from nnunetv2.run.slice_figure import foreground, ignored, write_figure

    predictor = load_model(args.m, args.f, args.chk, args.device)
    check_options(args, predictor)
    sliced = read_slice(predictor, args.i, args.truth, args.slice)
    labels = [*foreground(predictor), *ignored(predictor)]
    write_figure(list(panels(args, predictor, sliced, labels)), labels, sliced.name, args.o)


def check_options(args: argparse.Namespace, predictor: "nnUNetPredictor") -> None:
    """Check that a model has what the arguments ask for.

    Raises:
        ExperimentError: it has not.
    """
    from nnunetv2.run.model_views import has_queries, has_vit

    network = type(predictor.network).__name__
    if args.queries is not None and not has_queries(predictor):
        raise ExperimentError(f"--queries: {args.m} holds a {network}, which has none: leave it out")
    if args.features in ("last", "all") and not has_vit(predictor):
        raise ExperimentError(f"--features: {args.m} holds a {network}, which has no ViT: leave it out")


def panels(
    args: argparse.Namespace, predictor: "nnUNetPredictor", sliced: "Slice", labels: list["Label"]
) -> Iterator["Tile"]:
    """Yield the panels of the picture that the arguments describe."""
    from nnunetv2.run import slice_figure as figure
    from nnunetv2.run.model_views import (
        class_names,
        confident_queries,
        feature_pictures,
        has_queries,
        has_vit,
        predict,
    )

    prediction = predict(predictor, sliced.image)
    yield from figure.segmentation_tiles(sliced, labels, prediction.labels)
    if has_queries(predictor):
        yield from figure.query_tiles(confident_queries(predictor, sliced.image, args.queries or NUM_QUERIES))
    else:
        regions = class_names(predictor) if predictor.label_manager.has_regions else []
        yield from figure.confidence_tiles(prediction, regions)
    if has_vit(predictor) and args.features != "none":
        yield from figure.feature_tiles(feature_pictures(predictor, sliced.image, args.features == "all"))


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
