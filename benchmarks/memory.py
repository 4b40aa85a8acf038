"""Train a tiny model with everything that belongs to it, and watch the memory of the process.

usage: python benchmarks/memory.py [OUTPUT] [--config upernet|m2f]

Data loading, augmentation, validation, checkpoints and nnU-Net's plots run in the same process. OUTPUT is a new folder
for data, results and `memory.png`; without it all is temporary. Exit code 1 if more memory is resident at the end than
5% above an early step: of `upernet` 2,000 steps are compared with step 200, of `m2f` 1,000 steps with step 100.
"""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import psutil
from tiny_training import CONFIG, DATASET, SMALL, new_folder, output_parser, prepare
from tqdm import tqdm

ALLOWED_GROWTH = 0.05


class Subject(NamedTuple):
    """A training to watch.

    Attributes:
        config: a YAML file, or the name of a packaged configuration.
        steps: of the whole training.
        first: the step whose memory the last one's is compared with; two epochs have passed.
        overrides: what makes the configuration a tiny one.
    """

    config: str
    steps: int
    first: int
    overrides: tuple[str, ...]

    @property
    def steps_per_epoch(self) -> int:
        """The first plot, validation and checkpoint must have passed at the step to compare with."""
        return self.first // 2


SUBJECTS = {
    "upernet": Subject(str(CONFIG), steps=2000, first=200, overrides=()),
    "m2f": Subject(
        "m2f",
        steps=1000,
        first=100,
        overrides=(
            *("model.backbone_size=tiny", "model.pretrained=false", "model.freeze_backbone=false"),
            *("model.hidden_dim=32", "model.num_queries=8", "m2f_train.num_points=256"),
            "train.num_val_iterations_per_epoch=5",
        ),
    ),
}


def train(output: Path, subject: Subject) -> list[float]:
    """Train; return the resident memory in MiB after every step."""
    # nnU-Net reads its variables when it is imported
    os.environ.update(prepare(output))
    import torch

    from nnunetv2.experiment.dataset import preprocessed_folder, read_base_plans, read_dataset_json
    from nnunetv2.experiment.derive import derive_plans
    from nnunetv2.experiment.schema import find_config, load_config, read_values
    from nnunetv2.training.vit.schemas import schema_of
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    folder, trainer_name = preprocessed_folder(DATASET), read_values(find_config(subject.config))["trainer"]
    config = load_config(schema_of(trainer_name), subject.config, overrides(subject))
    dataset_json = read_dataset_json(folder)
    plans = derive_plans(read_base_plans(folder, "nnUNetPlans", "2d"), "2d", dataset_json, config, "tiny")
    trainer_class = recursive_find_trainer_class_by_name(trainer_name)
    trainer = trainer_class(plans, "2d", 0, dataset_json, torch.device("cpu"))
    process, step, resident = psutil.Process(), trainer.train_step, []

    def watched(batch: dict) -> dict:
        result = step(batch)
        resident.append(process.memory_info().rss / 2**20)
        progress.update()
        return result

    trainer.train_step = watched
    with tqdm(total=subject.steps, desc="steps", unit="step", mininterval=5) as progress:
        trainer.run_training()
    return resident


def overrides(subject: Subject) -> tuple[str, ...]:
    """Everything that is changed in the configuration of a training."""
    return (
        *SMALL,
        *subject.overrides,
        f"train.num_epochs={subject.steps // subject.steps_per_epoch}",
        f"train.num_iterations_per_epoch={subject.steps_per_epoch}",
        "train.save_every=1",
    )


def draw(resident: list[float], first: int, path: Path) -> None:
    """Write a plot of the memory in MiB per step."""
    plt.rcdefaults()  # nnU-Net's plots leave large letters
    figure, axes = plt.subplots(figsize=(8, 4))
    axes.plot(range(1, len(resident) + 1), resident)
    axes.axhline(resident[first - 1] * (1 + ALLOWED_GROWTH), color="red", linestyle="--", label="allowed")
    axes.set(xlabel="training step", ylabel="resident memory [MiB]", ylim=(0, None))
    axes.legend()
    figure.savefig(path)


def report(resident: list[float], first: int) -> float:
    """Print the memory in MiB over the steps; return its growth from step `first` to the last as a fraction."""
    for step in range(first, len(resident) + 1, first):
        print(f"step {step:>5}: {resident[step - 1]:8.1f} MiB {'#' * round(60 * resident[step - 1] / max(resident))}")
    growth = resident[-1] / resident[first - 1] - 1
    print(f"growth from step {first} to step {len(resident)}: {growth:+.2%} (allowed: {ALLOWED_GROWTH:+.0%})")
    return growth


def main() -> None:
    """Train, draw and print."""
    parser = output_parser(__doc__)
    parser.add_argument("--config", choices=list(SUBJECTS), default="upernet", help="what to train")
    args = parser.parse_args()
    subject = SUBJECTS[args.config]
    with new_folder(args.output) as output:
        resident = train(output, subject)
        draw(resident, subject.first, output / "memory.png")
    sys.exit(report(resident, subject.first) > ALLOWED_GROWTH)


if __name__ == "__main__":
    main()
