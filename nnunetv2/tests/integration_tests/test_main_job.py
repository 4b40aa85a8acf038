"""The main job through its commands: train, validate, predict, export, import, ensemble."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinov3.weights.reading import read_checkpoint

ID = "900"
DATASET = "Dataset900_DemoFundus"
MODEL = "-d", ID, "-tr", "nnUNetTrainer_vit", "-p"
PROCESSES = "-npp", 1, "-nps", 1


def predict(place, output: str, plans: str, *options: object) -> Path:
    folder = place.root / output
    place.predict(place.raw / DATASET / "imagesTs", folder, *MODEL, plans, *options)
    return folder


def segmentations(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


@pytest.fixture(scope="module")
def predicted(trained) -> Path:
    return predict(trained, "predicted_one", "nnUNetPlans_one", "--save_probabilities", *PROCESSES)


def test_results_hold_everything(trained):
    folder = trained.results / DATASET / "nnUNetTrainer_vit__nnUNetPlans_one__2d"
    plans = json.loads((folder / "plans.json").read_text())
    assert plans["plans_name"] == "nnUNetPlans_one"
    assert plans["configurations"]["2d"]["vit"]["train"]["num_epochs"] == 2
    fold = folder / "fold_0"
    names = {path.name for path in fold.iterdir()}
    assert {"checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "validation"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    assert (fold / "validation" / "summary.json").is_file() and list((fold / "validation").glob("*.npz"))


def test_the_log_tells_what_is_trained(trained):
    fold = trained.results / DATASET / "nnUNetTrainer_vit__nnUNetPlans_two__2d" / "fold_0"
    log = next(fold.glob("training_log_*.txt")).read_text()
    for told in (
        "Backbone mode: lora, feature layers: [0, 1, 2, 3]",
        "'mean': [0.485, 0.456, 0.406]",  # the channels are declared rgb_to_0_1
        "Parameters of backbone:",
        "lora_dropout: 0.05",
        "random weights",
        "Epochs: 2, save_every: 1",
        f"Threads: {os.environ['OMP_NUM_THREADS']}, augmentation processes: {os.environ['nnUNet_n_proc_DA']}",
        "Wrote checkpoint_final.pth",
    ):
        assert told in log, told


def test_predictions_are_label_maps_with_probabilities_that_sum_to_one(trained, predicted: Path):
    images = sorted((trained.raw / DATASET / "imagesTs").glob("*.png"))
    for image in images:
        case = image.name.replace("_0000.png", "")
        labels = np.asarray(Image.open(predicted / f"{case}.png"))
        probabilities = np.load(predicted / f"{case}.npz")["probabilities"]
        assert labels.shape == Image.open(image).size[::-1] and set(np.unique(labels)) <= {0, 1, 2}
        assert np.allclose(probabilities.sum(0), 1, atol=1e-3)
        assert np.array_equal(probabilities[:, 0].argmax(0), labels)


def test_from_the_model_folder_the_same(trained, predicted: Path):
    model = trained.results / DATASET / "nnUNetTrainer_vit__nnUNetPlans_one__2d"
    output = trained.root / "from_folder"
    images = trained.raw / DATASET / "imagesTs"
    arguments = ("-i", images, "-o", output, "-m", model, "-f", "0", "-device", "cpu", *PROCESSES)
    trained.run("nnUNetv2_predict_from_modelfolder", *arguments)
    assert segmentations(output) == segmentations(predicted)


def test_exported_and_installed_elsewhere_the_same(trained, predicted: Path):
    package = trained.root / "model.zip"
    arguments = ("-d", ID, "-c", "2d", "-f", "0", "-tr", "nnUNetTrainer_vit", "-p", "nnUNetPlans_one", "-o", package)
    trained.run("nnUNetv2_export_model_to_zip", *arguments)
    elsewhere = trained.with_results("results_elsewhere")
    elsewhere.run("nnUNetv2_install_pretrained_model_from_zip", package)
    assert segmentations(predict(elsewhere, "predicted_elsewhere", "nnUNetPlans_one")) == segmentations(predicted)


def test_best_configuration_and_ensemble_of_two_experiments(trained, predicted: Path):
    plans = ("nnUNetPlans_one", "nnUNetPlans_two")
    arguments = ("-c", "2d", "-f", "0", "-tr", "nnUNetTrainer_vit", "-p", *plans)
    trained.run("nnUNetv2_find_best_configuration", ID, *arguments)
    best = json.loads((trained.results / DATASET / "inference_information.json").read_text())
    assert len(best["all_results"]) == 3  # two models and their ensemble
    second = predict(trained, "predicted_two", "nnUNetPlans_two", "--save_probabilities")
    output = trained.root / "ensemble"
    trained.run("nnUNetv2_ensemble", "-i", predicted, second, "-o", output)
    assert len(segmentations(output)) == 2


def test_evaluation_gives_a_dice_per_class(trained, predicted: Path):
    truth = trained.raw / DATASET / "labelsTs"
    files = ("-djfile", predicted / "dataset.json", "-pfile", predicted / "plans.json")
    trained.run("nnUNetv2_evaluate_folder", truth, predicted, *files)
    mean = json.loads((predicted / "summary.json").read_text())["mean"]
    assert set(mean) == {"1", "2"} and all(0 <= mean[label]["Dice"] <= 1 for label in mean)


def test_validation_again_and_continuing_a_finished_training_need_only_the_name(trained):
    train = ("nnUNetv2_train_vit", ID, "2d", 0, "--name", "one", "-device", "cpu")
    summary = trained.results / DATASET / "nnUNetTrainer_vit__nnUNetPlans_one__2d/fold_0/validation/summary.json"
    before = json.loads(summary.read_text())["foreground_mean"]
    summary.unlink()
    trained.run(*train, "--val")
    assert json.loads(summary.read_text())["foreground_mean"] == before
    trained.run(*train, "--val", "--val_best")
    plans = summary.parents[2] / "plans.json"
    whole = plans.read_text()
    plans.write_text(whole[: len(whole) // 2])  # as a kill leaves it, because nnU-Net writes it in place
    output = trained.run(*train, "--c")
    assert "Training done" in output and "Epoch 0" not in output
    assert plans.read_text() == whole


def test_a_checkpoint_to_start_from(trained):
    former = trained.results / DATASET / "nnUNetTrainer_vit__nnUNetPlans_one__2d/fold_0/checkpoint_final.pth"
    train = ("nnUNetv2_train_vit", ID, "2d", "all", "--config", trained.root / "tiny.yaml", "-device", "cpu")
    shortest = ("train.num_epochs=1", "train.num_iterations_per_epoch=1", "train.initial_lr=0.0000001")
    started = (*train, "-pretrained_weights", former, *shortest, "model.pretrained=true")
    trained.run(*started, "--name", "started", "--disable_checkpointing")
    # nothing was written, as asked for
    fold = trained.results / DATASET / "nnUNetTrainer_vit__nnUNetPlans_started__2d/fold_all"
    assert not list(fold.glob("*.pth"))
    trained.run(*started, "--name", "started_kept")
    folder = trained.results / DATASET / "nnUNetTrainer_vit__nnUNetPlans_started_kept__2d"
    kept, start = (read_checkpoint(path)["network_weights"] for path in (folder / fold.name / former.name, former))
    assert all(torch.allclose(value, start[name], atol=1e-4) for name, value in kept.items())
    # the hub's weights, which would be overwritten, are not asked for
    model = json.loads((folder / "plans.json").read_text())["configurations"]["2d"]["vit"]["model"]
    assert model["pretrained"] is False
