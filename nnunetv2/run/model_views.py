"""What a trained model makes of a slice: labels with their confidence, queries, and the features of its ViT."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from dinov3.errors import ExperimentError, in_one_line
from dinov3.eval.segmentation.models.utils.extent import pad_to_multiple
from dinov3.eval.segmentation.precision import autocast_for
from dinov3.models.features import get_vit_features
from nnunetv2.experiment.checkpoint import read_fold_checkpoint
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model.segmentation_model import ViTSegmentationModel
from nnunetv2.run.devices import find_device
from nnunetv2.run.feature_colours import enlarged, feature_colours


class Prediction(NamedTuple):
    """What `nnUNetv2_predict` predicts for a slice.

    Attributes:
        labels: (H, W).
        probabilities: of the classes or regions, (C, H, W).
    """

    labels: np.ndarray
    probabilities: np.ndarray


class Query(NamedTuple):
    """A query.

    Attributes:
        number: of the query, from 0.
        name: the class that it finds most probable besides "no object".
        score: that probability.
        mask: probabilities (h, w).
    """

    number: int
    name: str
    score: float
    mask: np.ndarray


class FeaturePicture(NamedTuple):
    """The features of a block of the ViT as colours.

    Attributes:
        block: 0-based index of the block.
        explained: the share of their variance that the colours show, 0 to 1.
        picture: (H, W, 3), 0 to 1.
    """

    block: int
    explained: float
    picture: np.ndarray


def load_model(folder: Path, fold: str, checkpoint: str, device: str) -> nnUNetPredictor:
    """Load a trained model; its checkpoint is read safely before nnU-Net reads it.

    Args:
        folder: of the model.
        fold: a number, or `all`.
        checkpoint: name of the file in the fold's folder.
        device: cpu, cuda or mps.

    Raises:
        ExperimentError: there is no such device, or the files are not those of a trained model for slices.
    """
    # nnU-Net's own reading would run whatever a file tells it to
    read_fold_checkpoint(folder / f"fold_{fold}" / checkpoint, "-chk")
    predictor = nnUNetPredictor(device=find_device(device), allow_tqdm=False)
    try:
        predictor.initialize_from_trained_model_folder(str(folder), (fold,), checkpoint)
    except Exception as error:  # whatever plans and checkpoints that do not belong together end in
        raise ExperimentError(f"-m: {folder} cannot be read as a trained model: {in_one_line(error)}") from error
    patch_size = list(predictor.configuration_manager.patch_size)
    if len(patch_size) != 2:
        raise ExperimentError(f"-m: {folder} holds a model of patches {patch_size}; slices are drawn of 2D models")
    predictor.network.to(predictor.device).eval()
    return predictor


def has_queries(predictor: nnUNetPredictor) -> bool:
    """Whether the network classifies masks."""
    return hasattr(predictor.network, "forward_queries")


def has_vit(predictor: nnUNetPredictor) -> bool:
    """Whether the network is a ViT with a decoder."""
    return isinstance(predictor.network, ViTSegmentationModel)


def class_names(predictor: nnUNetPredictor) -> list[str]:
    """Names of the network's classes, or of its regions, as `dataset.json` has them."""
    manager = predictor.label_manager
    chosen = manager.foreground_regions if manager.has_regions else manager.all_labels
    return [name_of(predictor, values_of(values)) for values in chosen]


def name_of(predictor: nnUNetPredictor, labels: tuple[int, ...]) -> str:
    """The name that `dataset.json` gives to a class or region (see `values_of`); without one its labels."""
    names = {values_of(values): name for name, values in predictor.dataset_json["labels"].items()}
    return names.get(labels, str(labels))


def values_of(values: object) -> tuple[int, ...]:
    """The labels of a class, or of a region."""
    return tuple(int(value) for value in values) if isinstance(values, (list, tuple)) else (int(values),)


def predict(predictor: nnUNetPredictor, image: np.ndarray) -> Prediction:
    """Predict a slice as `nnUNetv2_predict` does: window by window, with mirroring.

    Args:
        predictor: with a trained model.
        image: (C, H, W).
    """
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image).unsqueeze(1))
    manager = predictor.label_manager
    labels = np.asarray(manager.convert_logits_to_segmentation(logits))[0]
    return Prediction(labels, np.asarray(manager.apply_inference_nonlin(logits))[:, 0])


def confident_queries(predictor: nnUNetPredictor, image: np.ndarray, number: int) -> list[Query]:
    """Return the queries that are most confident of their class; they see the whole slice.

    Args:
        predictor: with a network of mask classification.
        image: (C, H, W).
        number: how many at most.

    Raises:
        ExperimentError: the slice does not fit into the GPU's memory.
    """
    with _whole_slice(predictor, image) as images:
        queries = predictor.network.forward_queries(images)
    return most_confident(queries["pred_logits"][0], queries["pred_masks"][0], class_names(predictor), number)


def most_confident(classes: torch.Tensor, masks: torch.Tensor, names: list[str], number: int) -> list[Query]:
    """Return the queries that are most confident of their class, in descending order.

    Args:
        classes: logits (Q, C + 1), "no object" last.
        masks: logits (Q, h, w).
        names: of the C classes.
        number: how many at most.
    """
    scores, chosen = classes.float().softmax(-1)[:, :-1].max(-1)
    order = scores.argsort(descending=True, stable=True)[:number].tolist()
    return [Query(i, names[int(chosen[i])], float(scores[i]), masks[i].float().sigmoid().cpu().numpy()) for i in order]


def feature_pictures(predictor: nnUNetPredictor, image: np.ndarray, every_layer: bool) -> Iterator[FeaturePicture]:
    """Yield the features of the ViT's feature layers as colours; the ViT sees the whole slice.

    Args:
        predictor: with a ViT and a decoder.
        image: (C, H, W).
        every_layer: of all feature layers, not of the deepest one only.

    Raises:
        ExperimentError: the slice does not fit into the GPU's memory.
    """
    network = predictor.network
    layers = network.feature_indices if every_layer else network.feature_indices[-1:]
    with _whole_slice(predictor, image) as images:
        maps = vit_features(network, images, layers)
    for layer, features in zip(layers, maps, strict=True):
        colours = feature_colours(features[0].cpu())
        picture = enlarged(colours.picture, network.patch_size, image.shape[-2:])
        yield FeaturePicture(layer, colours.explained, picture.numpy())


def vit_features(network: nn.Module, images: torch.Tensor, layers: list[int]) -> list[torch.Tensor]:
    """The maps (B, D, h, w) of some blocks of a model's ViT for images (B, C, H, W), padded to whole patches."""
    with autocast_for(images.device, network.precision):
        normalised = (images - network.input_mean) / network.input_std
        padded = pad_to_multiple(normalised, network.patch_size, mode="reflect")
        return get_vit_features(network.backbone, padded, layers)


@contextlib.contextmanager
def _whole_slice(predictor: nnUNetPredictor, image: np.ndarray) -> Iterator[torch.Tensor]:
    """A slice (C, H, W) as a batch on the device, for a network that is to see it as a whole."""
    try:
        with torch.inference_mode():
            yield torch.from_numpy(image)[None].to(predictor.device)
    except torch.OutOfMemoryError as error:
        shape = " × ".join(map(str, image.shape[-2:]))
        raise ExperimentError(
            f"a slice of {shape} does not fit into the memory of {predictor.device}; use -device cpu"
        ) from error
