"""A training that starts from a published decoder: checked first, loaded once, and not needed again."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published_decoders import hugging_face_eomt, published_pmt

from dinov3.weights.reading import read_checkpoint

NAME = "from_decoder"
CONFIG = """
base: {base}
model: {{backbone_size: tiny, pretrained: false, decoder: {{num_queries: 7, num_blocks: 2}}}}
m2f_train: {{num_points: 64}}
train:
  num_epochs: 1
  num_iterations_per_epoch: 1
  num_val_iterations_per_epoch: 1
  batch_size: 2
  patch_size: [64, 64]
  precision: float32
"""


def arguments(workplace, base: str) -> tuple:
    """Of a training of a small network that starts from `decoder.pth`."""
    config = workplace.root / f"{base}_started.yaml"
    config.write_text(CONFIG.format(base=base))
    options = ("--name", NAME, "--config", config, "model.decoder_checkpoint_path=decoder.pth")
    return (900, "2d", 0, "-device", "cpu", *options)


def test_train_and_predict_without_the_file(workplace, tmp_path: Path):
    place = workplace.with_results("results_started")
    file, state = place.root / "decoder.pth", published_pmt()
    torch.save(state, file)
    # with steps too small to see, the training shows what it started from
    place.run("nnUNetv2_train_vit", *arguments(place, "pmt"), "train.initial_lr=0.0000000001", "train.weight_decay=0")
    file.unlink()
    fold = place.results / "Dataset900_DemoFundus" / f"nnUNetTrainer_m2f__nnUNetPlans_{NAME}__2d" / "fold_0"
    (line,) = re.findall("Loaded .* of the decoder from .*", next(fold.glob("training_log_*.txt")).read_text())
    assert str(file) in line and "layout PMT" in line and "the ViT stays as it is" in line
    trained = read_checkpoint(fold / "checkpoint_final.pth")["network_weights"]
    for name in ("q.weight", "mask_head.0.weight", "scalers.0"):
        assert torch.allclose(trained[f"decoder.{name}"], state[f"network.decoder.{name}"], atol=1e-6)
    plans = json.loads((fold.parent / "plans.json").read_text())
    assert plans["configurations"]["2d"]["vit"]["model"]["decoder_checkpoint_path"] == str(file)
    images = tmp_path / "images"
    images.mkdir()
    for image in sorted((place.raw / "Dataset900_DemoFundus" / "imagesTs").iterdir())[:1]:
        (images / image.name).symlink_to(image)
    model = ("-d", 900, "-tr", "nnUNetTrainer_m2f", "-p", f"nnUNetPlans_{NAME}", "--disable_tta")
    place.predict(images, tmp_path / "predicted", *model)
    assert len(list((tmp_path / "predicted").glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("base", "make", "sentence"),
    [
        ("pmt", None, "model.decoder_checkpoint_path: no such file: 'decoder.pth'"),
        (
            "pmt",
            lambda: published_pmt(num_queries=9),
            "does not fit the network: set model.decoder.num_queries=9, found 7",
        ),
        (
            "eomt",
            lambda: hugging_face_eomt("dinov3").state_dict(),
            "set model.pretrained=true, or model.checkpoint_path to Meta's file",
        ),
    ],
    ids=["no file", "queries", "differences to nothing"],
)
def test_refusals_write_nothing(
    refused: Callable[..., str], workplace, base: str, make: Callable[[], dict] | None, sentence: str
):
    (workplace.root / "decoder.pth").unlink(missing_ok=True)
    if make is not None:
        torch.save(make(), workplace.root / "decoder.pth")
    assert sentence in refused(workplace, *arguments(workplace, base))
