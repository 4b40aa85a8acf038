"""Test cases, predicted by the trained folds of a comparison and by the ensembles of its experiments."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tqdm import tqdm

from dinov3.errors import ExperimentError, in_one_line
from nnunetv2.experiment.cores import usable_cores
from nnunetv2.experiment.plans import read_json
from nnunetv2.study.members import Comparison, Member
from nnunetv2.study.report.data import Data
from nnunetv2.study.report.selection import describe

if TYPE_CHECKING:
    import torch

CHECKPOINT = "checkpoint_final.pth"
MADE_FROM = "made_from.json"
Cases = dict[str, list[Path]]  # case -> a file per channel


@dataclass(frozen=True)
class HeldOut:
    """Test cases.

    Attributes:
        images: folder of the images, named as in `imagesTs`.
        labels: folder of the label files.
        device: that predicts.
    """

    images: Path
    labels: Path
    device: "torch.device"

    @property
    def folder_name(self) -> str:
        """Of the predictions in the folder of a trained model."""
        path = self.images.resolve()
        return f"test_{path.name}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def find_cases(held_out: HeldOut, comparison: Comparison, data: Data) -> Cases:
    """Return the test cases, which everything is there for to predict and to measure them.

    Raises:
        ExperimentError: a folder, image, label file, checkpoint or group is missing, or the models are a cascade.
    """
    for folder in (held_out.images, held_out.labels):
        if not folder.is_dir():
            raise ExperimentError(f"--test: the folder {folder} does not exist")
    cases = _images(held_out.images, data.file_ending)
    needed = [held_out.labels / f"{case}{data.file_ending}" for case in cases]
    needed += [member.folder / CHECKPOINT for member in comparison.members]
    missing = next((path for path in needed if not path.is_file()), None)
    if missing is not None:
        raise ExperimentError(f"--test: {missing} does not exist")
    without = next((case for case in cases if comparison.groups is not None and case not in comparison.groups), None)
    if without is not None:
        raise ExperimentError(f"groups: the test case {without!r} has no group")
    for model in {member.folder.parent for member in comparison.members}:
        if read_json(model / "plans.json")["configurations"][comparison.configuration].get("previous_stage"):
            raise ExperimentError(f"--test: {comparison.configuration} is a cascade, which is not predicted here")
    return cases


def _images(folder: Path, file_ending: str) -> Cases:
    cases: Cases = {}
    for path in sorted(folder.glob(f"*_[0-9][0-9][0-9][0-9]{file_ending}")):
        cases.setdefault(path.name.removesuffix(file_ending)[: -len("_0000")], []).append(path)
    if not cases:
        raise ExperimentError(f"--test: there is no image *_0000{file_ending} in {folder}")
    first = next(iter(cases))
    for case, files in cases.items():
        if len(files) != len(cases[first]):
            raise ExperimentError(
                f"--test: {case} has {len(files)} channels in {folder}, but {first} has {len(cases[first])}"
            )
    return cases


def predict_cases(held_out: HeldOut, comparison: Comparison, data: Data, cases: Cases) -> Comparison:
    """Predict test cases with every member and with the ensemble of an experiment's members.

    What is there already of the same images and checkpoints is kept.

    Args:
        held_out: the test cases.
        comparison: the trained folds.
        data: of the comparison.
        cases: their images.

    Returns:
        The comparison of the predictions; an ensemble is an experiment of its own with a single member.

    Raises:
        ExperimentError: a member cannot predict, or the predictions cannot be written.
    """
    together: dict[tuple[str, int | None], list[Member]] = {}
    for member in comparison.members:
        together.setdefault((member.experiment, member.num_training_cases), []).append(member)
    predicted: list[Member] = []
    with tqdm(desc="prediction of the test cases", total=len(cases) * len(comparison.members), unit="case") as progress:
        for members in together.values():
            single = [_predict(member, held_out, data, cases, progress) for member in members]
            predicted += [*single, *_ensemble(single, data, cases)]
    return replace(comparison, members=predicted)


def _predict(member: Member, held_out: HeldOut, data: Data, cases: Cases, progress: tqdm) -> Member:
    folder = member.folder.parent / held_out.folder_name / member.folder.name
    inputs = [member.folder / CHECKPOINT, *(file for files in cases.values() for file in files)]
    made_from = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in inputs]
    before = progress.n

    def write(output: Path) -> None:
        try:
            for _ in _predictions(member, held_out.device, cases, output):
                progress.update()
        except Exception as error:  # a damaged checkpoint, an image of another kind, too little memory
            raise ExperimentError(f"{describe(member)} cannot predict the test cases: {in_one_line(error)}") from error

    _keep(folder, made_from, _files(cases, data), write)
    progress.update(before + len(cases) - progress.n)
    return replace(member, folder=folder, predictions=".")


def _predictions(member: Member, device: "torch.device", cases: Cases, output: Path) -> Iterator[None]:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with redirect_stdout(io.StringIO()):  # it prints several lines per case
        predictor = nnUNetPredictor(device=device, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(member.folder.parent), (member.fold,), CHECKPOINT)
    for case, files in cases.items():
        with redirect_stdout(io.StringIO()):
            inputs, outputs = [[str(file) for file in files]], [str(output / case)]
            predictor.predict_from_files_sequential(inputs, outputs, save_probabilities=True)
        yield


def _ensemble(members: list[Member], data: Data, cases: Cases) -> list[Member]:
    """The ensemble of the predictions of members, if there are several: the mean of their probabilities."""
    if len(members) == 1:
        return []
    first = members[0]
    folder = first.folder.with_name(f"ensemble_of_{len(members)}")
    made_from = [read_json(member.folder / MADE_FROM) for member in members]

    def write(output: Path) -> None:
        from nnunetv2.ensembling.ensemble import ensemble_folders

        processes = min(usable_cores(), len(cases))
        ensemble_folders([str(member.folder) for member in members], str(output), True, processes)

    _keep(folder, made_from, _files(cases, data), write)
    name = f"{first.experiment}, ensemble of {len(members)}"
    return [Member(name, "all folds", None, first.num_training_cases, folder, ".")]


def _files(cases: Cases, data: Data) -> list[str]:
    return [f"{case}{ending}" for case in cases for ending in (data.file_ending, ".npz")]


def _keep(folder: Path, made_from: Any, files: list[str], write: Callable[[Path], None]) -> None:
    """Let predictions be written to a folder, unless it holds those that were made from the same files."""
    stored = read_json(folder / MADE_FROM) if (folder / MADE_FROM).is_file() else None
    if stored == made_from and all((folder / file).is_file() for file in files):
        return
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        (temporary / MADE_FROM).write_text(json.dumps(made_from))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise ExperimentError(f"--test: cannot write predictions to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
