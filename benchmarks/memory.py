"""Train the tiny model for 2,000 steps, with everything that belongs to it, and watch the memory of the process.

usage: python benchmarks/memory.py [OUTPUT]

Data loading, augmentation, validation, checkpoints and nnU-Net's plots run in the same process. OUTPUT is a new folder
for data, results and `memory.png`; without it all is temporary. Exit code 1 if more memory is resident at the end than
5% above step 200.
"""

import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import psutil
from tiny_training import CONFIG, DATASET, SMALL, new_folder, output_parser, prepare
from tqdm import tqdm

STEPS, STEPS_PER_EPOCH, FIRST, ALLOWED_GROWTH, SHOWN_EVERY = 2000, 100, 200, 0.05, 200
OVERRIDES = (
    *SMALL,
    f"train.num_epochs={STEPS // STEPS_PER_EPOCH}",
    f"train.num_iterations_per_epoch={STEPS_PER_EPOCH}",
    "train.save_every=1",
)


def train(output: Path) -> list[float]:
    """Train; return the resident memory in MiB after every step."""
    # nnU-Net reads its variables when it is imported
    os.environ.update(prepare(output))
    import torch

    from nnunetv2.run.preprocessed_dataset import preprocessed_folder, read_base_plans, read_dataset_json
    from nnunetv2.training.experiment.derive import derive_plans
    from nnunetv2.training.experiment.schema import load_config
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_vit import nnUNetTrainer_vit
    from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig

    folder = preprocessed_folder(DATASET)
    config, dataset_json = load_config(ViTnnUNetConfig, str(CONFIG), OVERRIDES), read_dataset_json(folder)
    plans = derive_plans(read_base_plans(folder, "nnUNetPlans", "2d"), "2d", dataset_json, config, CONFIG.stem)
    trainer = nnUNetTrainer_vit(plans, "2d", 0, dataset_json, torch.device("cpu"))
    process, step, resident = psutil.Process(), trainer.train_step, []

    def watched(batch: dict) -> dict:
        result = step(batch)
        resident.append(process.memory_info().rss / 2**20)
        progress.update()
        return result

    trainer.train_step = watched
    with tqdm(total=STEPS, desc="steps", unit="step", mininterval=5) as progress:
        trainer.run_training()
    return resident


def draw(resident: list[float], path: Path) -> None:
    """Write a plot of the memory in MiB per step."""
    plt.rcdefaults()  # nnU-Net's plots leave large letters
    figure, axes = plt.subplots(figsize=(8, 4))
    axes.plot(range(1, len(resident) + 1), resident)
    axes.axhline(resident[FIRST - 1] * (1 + ALLOWED_GROWTH), color="red", linestyle="--", label="allowed")
    axes.set(xlabel="training step", ylabel="resident memory [MiB]", ylim=(0, None))
    axes.legend()
    figure.savefig(path)


def report(resident: list[float]) -> float:
    """Print the memory in MiB over the steps; return its growth from step `FIRST` to the last as a fraction."""
    for step in range(FIRST, len(resident) + 1, SHOWN_EVERY):
        print(f"step {step:>5}: {resident[step - 1]:8.1f} MiB {'#' * round(60 * resident[step - 1] / max(resident))}")
    growth = resident[-1] / resident[FIRST - 1] - 1
    print(f"growth from step {FIRST} to step {len(resident)}: {growth:+.2%} (allowed: {ALLOWED_GROWTH:+.0%})")
    return growth


def main() -> None:
    """Train, draw and print."""
    args = output_parser(__doc__).parse_args()
    with new_folder(args.output) as output:
        resident = train(output)
        draw(resident, output / "memory.png")
    sys.exit(report(resident) > ALLOWED_GROWTH)


if __name__ == "__main__":
    main()
