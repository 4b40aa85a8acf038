"""The examples of the page on this package run as they are printed."""

import re
from pathlib import Path

import pytest
import torch

from dinov3.eval.segmentation.config import read_config
from dinov3.hub.backbones import dinov3_vits16

PAGE = Path(__file__).resolve().parents[2] / "documentation" / "dinov3" / "README.md"


@pytest.mark.integration
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dinov3_vits16(pretrained=False).to_reference_state_dict(), "dinov3_vits16.pth")
    build, train, evaluate, load = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict = {}
    exec(build, names)
    assert names["output"]["pred_masks"].shape == (1, 100, 25, 33)
    assert names["output"]["pred_logits"].shape == (1, 100, 5) and len(names["output"]["aux_outputs"]) == 9
    exec(train, names)
    assert names["logits"].shape == (1, 4, 97, 131)
    trained = [p for p in names["segmentor"].parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)
    exec(evaluate, names)
    assert names["images"].shape == (2, 3, 256, 256) and names["targets"][0]["masks"].shape == (4, 256, 256)
    measured = names["metrics"].compute()
    assert int(measured["confusion_matrix"].sum()) == 300 * 400 and 0 <= float(measured["mIoU"]) < 1
    names["state"] = names["segmentor"].state_dict()
    names["backbone"] = dinov3_vits16(pretrained=False)
    exec(load, names)


def test_the_configuration_in_the_documentation_of_training(tmp_path: Path):
    (example,) = re.findall(r"```yml\n(.*?)```", (PAGE.parent / "training.md").read_text(), flags=re.DOTALL)
    (tmp_path / "linear.yaml").write_text(example)
    overrides = (f"datasets.root={tmp_path}", f"output_dir={tmp_path / 'out'}")
    config = read_config(tmp_path / "linear.yaml", overrides)
    assert config.decoder_head.num_classes == len(config.datasets.class_names) == 3
    overrides += ("decoder_head.type=m2f", "decoder_head.hidden_dim=256")
    assert read_config(tmp_path / "linear.yaml", overrides).decoder_head.type == "m2f"
