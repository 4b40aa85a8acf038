"""Small trained folds in the form that plans and checkpoints have today, which must load and predict the same for ever.

`python nnunetv2/tests/stored_folds.py NAME ...` trains folds anew (on drawn images, on the CPU) and writes them to
`stored_folds/`; do that only for new forms of plans or networks, beside the folds that are there.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).with_suffix("")
IMAGE = FOLDER / "image_0000.png"
SIDE = 64
MAX_BYTES = 2 * 2**20
SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1, "batch_size": 2, "seed": 5}
TRAIN = {**SHORT, "patch_size": [SIDE, SIDE], "precision": "float32"}
# LoRA starts without effect, and must have one here
TRAIN_LORA = {**TRAIN, "optimizer": "adamw", "initial_lr": 0.02, "num_iterations_per_epoch": 10}
BACKBONE = {"backbone": "dinov3", "backbone_size": "tiny", "pretrained": False}
# Name to trainer and configuration, and what is changed in the network's keywords in the plans to keep it small
FOLDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "segformer": (
        "nnUNetTrainerNoDeepSupervision_segformer",
        {"model": {**BACKBONE, "decoder_hidden_size": 32}, "train": TRAIN},
        {},
    ),
    "dpt": (
        "nnUNetTrainer_vit",
        {
            "model": {
                **BACKBONE,
                "backbone": "timm:test_vit",
                "model_path": "nnunetv2.model.model_dpt",
                "decoder": {"fusion_hidden_size": 16},
            },
            "train": TRAIN,
        },
        {},
    ),
    "upernet_lora": (
        "nnUNetTrainer_vit",
        {"model": {**BACKBONE, "decoder": {"hidden_size": 16}}, "lora": {"enabled": True, "r": 4}, "train": TRAIN_LORA},
        {},
    ),
    "dinounet": (
        "nnUNetTrainer_vit",
        {
            "model": {
                **BACKBONE,
                "backbone": "timm:test_vit",
                "model_path": "nnunetv2.model.model_dinounet",
                "decoder": {"features_per_stage": [8, 8, 16, 16], "rank": 16, "auxiliary_outputs": True},
            },
            "train": TRAIN,
        },
        {},
    ),
    "m2f": (
        "nnUNetTrainer_m2f",
        {
            "model": {**BACKBONE, "backbone": "timm:test_vit", "hidden_dim": 32, "num_queries": 8},
            "lora": {"enabled": False},
            "m2f_train": {"num_points": 64},
            "train": TRAIN,
        },
        {"dim_feedforward": 32, "enc_layers": 1, "dec_layers": 3},
    ),
    **{
        name: (
            "nnUNetTrainer_m2f",
            {
                "model": {
                    **BACKBONE,
                    "backbone": "timm:test_vit",
                    "model_path": f"nnunetv2.model.model_{name}",
                    "freeze_backbone": False,
                    "decoder": {"num_queries": 8, "num_blocks": 2},
                },
                "m2f_train": {"num_points": 64},
                "train": {**TRAIN, "initial_lr": 0.001},
            },
            {},
        )
        for name in ("eomt", "pmt")
    },
}


def predict(folder: Path) -> np.ndarray:
    """Predict the stored image with a stored fold as the stock command does.

    Returns:
        Probabilities (C, H, W), float32.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,))
    reader = predictor.plans_manager.image_reader_writer_class()
    image, properties = reader.read_images([str(IMAGE)])
    _, probabilities = predictor.predict_single_npy_array(image, properties, save_or_return_probabilities=True)
    return np.asarray(probabilities[:, 0], dtype=np.float32)


def train(name: str, output: Path) -> Path:
    """Train a fold with nnU-Net on a data set that `prepare` has made; return the folder of the model."""
    from nnunetv2.experiment.dataset import read_dataset_json
    from nnunetv2.experiment.derive import derive_plans
    from nnunetv2.experiment.plans import read_plans, write_new_plans
    from nnunetv2.experiment.schema import build
    from nnunetv2.run.run_training import run_training
    from nnunetv2.training.vit.schemas import schema_of

    trainer, values, smaller = FOLDS[name]
    (dataset,) = (output / "preprocessed").iterdir()
    config = build(schema_of(trainer), {"trainer": trainer, **values}, name)
    plans = derive_plans(read_plans(dataset, "nnUNetPlans"), "2d", read_dataset_json(dataset), config, name)
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"].update(smaller)
    write_new_plans(dataset, plans)
    run_training(dataset.name, "2d", 0, trainer, plans["plans_name"], device=torch.device("cpu"))
    return output / "results" / dataset.name / f"{trainer}__{plans['plans_name']}__2d"


def store(model: Path, folder: Path) -> None:
    """Store what prediction reads of a model, its weights rounded to 8 bits, and what it predicts then."""
    (folder / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (folder / name).write_bytes((model / name).read_bytes())
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    weights = {
        name: tensor.to(torch.float8_e4m3fn if tensor.ndim > 1 else torch.float16)
        for name, tensor in checkpoint["network_weights"].items()
    }
    kept = {key: checkpoint[key] for key in ("init_args", "trainer_name", "inference_allowed_mirroring_axes")}
    torch.save({"network_weights": weights, **kept}, folder / "fold_0" / "checkpoint_final.pth")
    np.save(folder / "probabilities.npy", predict(folder).astype(np.float16))


def main() -> None:
    """Train and store the folds that the command line names."""
    names = sys.argv[1:]
    if not names or set(names) - FOLDS.keys() or any((FOLDER / name).exists() for name in names):
        sys.exit(f"name folds that are not stored yet, of {', '.join(FOLDS)}")
    sys.path += [str(Path(__file__).parents[2] / folder) for folder in ("benchmarks", "demo")]
    from tiny_training import prepare

    with tempfile.TemporaryDirectory() as temporary:
        os.environ.update(prepare(Path(temporary)))
        FOLDER.mkdir(exist_ok=True)
        if not IMAGE.exists():
            shutil.copy(next(Path(temporary).glob("raw/*/imagesTr/*_0000.png")), IMAGE)
        for name in names:
            store(train(name, Path(temporary)), FOLDER / name)


if __name__ == "__main__":
    main()
