"""A trained Mask2Former from nnU-Net's results."""

from pathlib import Path

import torch

from nnunetv2.experiment.checkpoint import read_fold_checkpoint
from nnunetv2.experiment.errors import ExperimentError, in_one_line
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model.model_m2f import M2FSegmentationModel


def load_model(folder: Path, fold: str, checkpoint: str, device: str) -> nnUNetPredictor:
    """Load a trained Mask2Former; its checkpoint is read safely before nnU-Net reads it.

    Args:
        folder: of the model.
        fold: a number, or `all`.
        checkpoint: name of the file in the fold's folder.
        device: cpu, cuda or mps.

    Raises:
        ExperimentError: there is no such device, or the files are not those of a Mask2Former.
    """
    # nnU-Net's own reading would run whatever a file tells it to
    read_fold_checkpoint(folder / f"fold_{fold}" / checkpoint, "-chk")
    predictor = nnUNetPredictor(device=find_device(device), allow_tqdm=False)
    try:
        predictor.initialize_from_trained_model_folder(str(folder), (fold,), checkpoint)
    except Exception as error:  # whatever plans and checkpoints that do not belong together end in
        raise ExperimentError(f"-m: {folder} cannot be read as a trained model: {in_one_line(error)}") from error
    if not isinstance(predictor.network, M2FSegmentationModel):
        raise ExperimentError(f"-m: {folder} holds a {type(predictor.network).__name__}, not a Mask2Former")
    predictor.network.to(predictor.device).eval()
    return predictor


def find_device(name: str) -> torch.device:
    """Return torch's device.

    Raises:
        ExperimentError: this machine has none of this name.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[name]:
        raise ExperimentError(f"-device {name}: PyTorch finds no such device here; use -device cpu")
    return torch.device(name)
