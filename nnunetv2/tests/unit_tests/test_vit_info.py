"""The command `nnUNetv2_vit_info`: the tables, and what it tells about files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_decoders import hugging_face_eomt, published_pmt
from raw_weights import meddinov3, meta_dinov3, origin

from dinov3.hub.families import FAMILIES
from nnunetv2.experiment.decoder_options import packaged_decoders
from nnunetv2.experiment.schema import packaged_configs
from nnunetv2.run.vit_info import run_info_entry


@pytest.mark.integration
def test_the_tables_name_everything_there_is(capsys):
    run_info_entry([])
    text = capsys.readouterr().out
    first_words = {line.split()[0] for line in text.splitlines() if line}
    assert {*FAMILIES, *packaged_decoders(), *packaged_configs()} <= first_words
    for family in FAMILIES.values():
        assert ", ".join(family.sizes) in text and family.licence in text
    assert "hidden_size" in text and "lora" in text
    assert {"nnunetv2.model.model", "nnunetv2.model.model_upernet", "nnunetv2.model.primus"} <= set(packaged_decoders())


@pytest.mark.integration
def test_a_file_is_told_with_all_backbones_that_it_fits(capsys, tmp_path: Path):
    path = origin("RETFound (DINOv2)").make().save(tmp_path / "weights.pth")
    run_info_entry([str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{path}: DINOv2 (Meta), under 'teacher', 62 tensors")
    fits = [line for line in lines if line.startswith("fits: ")]
    assert [line.split()[1:3] for line in fits] == [
        [f"model.backbone={name}", "model.backbone_size=tiny"] for name in ("dinov2", "retfound_dinov2")
    ]
    assert all(f"model.checkpoint_path={path}" in line for line in fits)


def test_a_query_bias_is_no_obstacle(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nnunetv2.run.vit_info.FAMILIES", {"dinov3": replace(FAMILIES["dinov3"], timm_names={})})
    run_info_entry([str(meta_dinov3(bias=True).save(tmp_path / "weights.pth"))])
    assert "67 of 67 tensors" in capsys.readouterr().out


@pytest.mark.integration
def test_a_file_that_fits_nowhere_is_told_why(capsys, tmp_path: Path):
    raw = meddinov3()
    raw.content["teacher"].pop("backbone.blocks.3.norm1.weight")
    run_info_entry([str(raw.save(tmp_path / "weights.pth"))])
    text = capsys.readouterr().out
    assert "fits no backbone of the table" in text and "fits: " not in text
    assert "dinov3 tiny: 1 missing tensor: blocks.3.norm1.weight" in text
    assert "dinov2 large, " in text and "these are not the weights of a ViT with position embeddings" in text


def test_a_checkpoint_of_nnunet_is_told_by_what_it_says(capsys, tmp_path: Path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"network_weights": {"w": torch.zeros(1)}, "trainer_name": "t", "current_epoch": 3}, path)
    run_info_entry([str(path)])
    assert f"{path}: checkpoint of nnU-Net (trainer_name t, current_epoch 3), 1 tensors" in capsys.readouterr().out
    torch.save({"network_weights": {"w": torch.zeros(1)}}, path)
    run_info_entry([str(path)])
    assert "-pretrained_weights" in capsys.readouterr().out


@pytest.mark.integration
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: {"state_dict": published_pmt()},
            ["decoder of PMT, under 'state_dict', 3 classes, 95 tensors; no ViT", "dinov3 tiny, dinov2 tiny, "]
            + ["--config pmt model.decoder.num_queries=7 model.decoder.mlp_dim=96 model.decoder.num_blocks=2"],
        ),
        (
            lambda: hugging_face_eomt("dinov3").state_dict(),
            ["decoder of EoMT (Hugging Face), 3 classes, 19 tensors; a ViT of 6", "such as: dinov3 tiny\n"]
            + ["whole or differences", "--config eomt model.decoder.num_queries=7 model.decoder.num_blocks=2"],
        ),
    ],
    ids=["PMT", "EoMT"],
)
def test_a_decoder_is_told_with_the_options_that_it_needs(
    make: Callable[[], dict], told: list[str], capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny = {
        name: replace(FAMILIES[name], timm_names=dict(list(FAMILIES[name].timm_names.items())[:1])) for name in FAMILIES
    }
    monkeypatch.setattr("nnunetv2.run.vit_info.FAMILIES", tiny)
    path = tmp_path / "decoder.pth"
    torch.save(make(), path)
    run_info_entry([str(path)])
    text = capsys.readouterr().out
    assert all(part in text for part in told), text
    assert f"model.decoder_checkpoint_path={path}\n" in text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "weight file not found"),
        ({"w": torch.zeros(1)}, "does not hold the weights of a ViT in a known layout"),
        ([1], "it is a list"),
    ],
)
def test_what_is_no_file_of_weights_ends_in_one_sentence(content, told: str, capsys, tmp_path: Path):
    path = tmp_path / "weights.pth"
    if content is not None:
        torch.save(content, path)
    with pytest.raises(SystemExit) as stop:
        run_info_entry([str(path)])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("nnUNetv2_vit_info: error: ") and told in captured.err
    assert len(captured.err.splitlines()) == 1
