"""Measure where the time goes between the command and the first epoch: imports, file of weights, network.

usage: python benchmarks/start_of_training.py [SIZE]

SIZE is a size of DINOv3 (default: large). A random file of weights of that size is written to a temporary folder first.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

WRITE = """
import sys, torch
from nnunetv2.model.backbone import create_backbone
torch.save(create_backbone("dinov3", sys.argv[1])[0].state_dict(), sys.argv[2])
"""


class Stages:
    """Wall time of each stage, from the end of the one before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = perf_counter()

    def end(self, name: str) -> None:
        """Note the end of a stage."""
        now = perf_counter()
        self.seconds[name] = now - self.last
        self.last = now

    def show(self) -> None:
        """Print the stages with their shares."""
        total = sum(self.seconds.values())
        for name, value in self.seconds.items():
            print(f"{name:<52} {value:7.2f}s {value / total:6.1%}")
        print(f"{'total':<52} {total:7.2f}s")


def measure(size: str, path: Path) -> Stages:
    """Go through what the command and the trainer do with the network and its weights."""
    stages = Stages()
    import torch

    stages.end("import torch")
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer_vit  # noqa: F401

    stages.end("import nnU-Net's trainer, timm, peft")
    from dinov3.weights.fitting import fit_weights
    from dinov3.weights.layouts import read_weights
    from nnunetv2.model.backbone import load_backbone_weights, weights_follow
    from nnunetv2.model.model_upernet import create_segmentation_model

    file = read_weights(path)
    options = {"backbone_size": size, "query_bias": file.has_query_bias}
    stages.end("derive: read the file and look for a query bias")
    with torch.device("meta"), weights_follow(), torch.no_grad():
        network = create_segmentation_model(num_classes=3, **options).to("meta")
        network(torch.empty(1, 3, 512, 512))
    stages.end("derive: build and run the network on the meta device")
    fit_weights(file, network.backbone)
    stages.end("derive: compare file and network")
    with weights_follow():
        network = create_segmentation_model(num_classes=3, **options)
    stages.end("build: the network, with random weights")
    load_backbone_weights(network.backbone, path)
    stages.end("load: the file into the network")
    return stages


def main() -> None:
    """Print one line per stage."""
    size = sys.argv[1] if len(sys.argv) > 1 else "large"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        subprocess.run([sys.executable, "-W", "ignore", "-c", WRITE, size, str(path)], check=True, capture_output=True)
        print(f"DINOv3 {size}, file of {path.stat().st_size / 2**20:.0f} MiB")
        measure(size, path).show()


if __name__ == "__main__":
    main()
