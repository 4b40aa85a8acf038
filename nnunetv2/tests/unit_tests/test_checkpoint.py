"""`-pretrained_weights`: a checkpoint of nnU-Net is read safely and compared before it is handed on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2.experiment.checkpoint import check_pretrained_checkpoint, temporary_checkpoint
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.model.model_segformer import create_segformer_model
from nnunetv2.model.model_upernet import create_segmentation_model


def network(num_classes: int = 3, **options) -> torch.nn.Module:
    return create_segmentation_model(num_classes=num_classes, backbone_size="tiny", hidden_size=32, **options)


def save(path: Path, weights: dict) -> Path:
    rest = {"optimizer_state": {}, "_best_ema": np.float64(0.5), "trainer_name": "nnUNetTrainer_vit"}
    logging = {"mean_fg_dice": [np.float64(0.1)], "ema": [np.float32(0.1)]}
    init_args = {"device": torch.device("cpu"), "plans": {"plans_name": "nnUNetPlans_former"}}
    torch.save({"network_weights": weights, "logging": logging, "init_args": init_args, **rest}, path)
    return path


def test_the_same_network_fits(tmp_path: Path):
    path = save(tmp_path / "checkpoint.pth", network().state_dict())
    with torch.device("meta"):
        check_pretrained_checkpoint(path, network())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_classes": 4}, r"2 other shapes, such as \S+ is \(3, .*\) in the file, \(4, .*\) in the network"),
        ({"use_lora": True}, r"\d+ missing tensors, such as backbone\.base_model.*; \d+ unknown tensors"),
        ({"query_bias": True}, r"8 missing tensors, such as backbone\.blocks\.0\.attn\.q_bias"),
        ({"input_channels": 1}, r"3 other shapes, such as input_mean is \(1, 3, 1, 1\) in the file"),
    ],
)
def test_another_network_is_refused_by_its_tensors(options: dict, told: str, tmp_path: Path):
    path = save(tmp_path / "checkpoint.pth", network().state_dict())
    with pytest.raises(ExperimentError, match=rf"checkpoint\.pth \(of nnUNetTrainer_vit\) does not fit .*{told}"):
        check_pretrained_checkpoint(path, network(**options))


def test_what_the_new_network_has_no_place_for_is_not_dropped(tmp_path: Path):
    path = save(tmp_path / "checkpoint.pth", network(query_bias=True).state_dict())
    with pytest.raises(ExperimentError, match=r"8 unknown tensors, such as backbone\.blocks\.0\.attn\.q_bias"):
        check_pretrained_checkpoint(path, network())


def test_a_file_of_backbone_weights_is_told_from_a_checkpoint(tmp_path: Path):
    path = tmp_path / "weights.pth"
    torch.save({"cls_token": torch.zeros(1)}, path)
    with pytest.raises(ExperimentError, match=r"not a checkpoint of nnU-Net .*model\.checkpoint_path"):
        check_pretrained_checkpoint(path, network())


def test_only_tensors_are_weights(tmp_path: Path):
    path = save(tmp_path / "checkpoint.pth", {**network().state_dict(), "extra": 3})
    with pytest.raises(ExperimentError, match="no tensors under 'network_weights'"):
        check_pretrained_checkpoint(path, network())


def test_what_is_handed_on_holds_the_weights_alone_under_the_same_name(tmp_path: Path):
    state = network().state_dict()
    with temporary_checkpoint("/somewhere/checkpoint_final.pth", state) as copy:
        assert Path(copy).name == "checkpoint_final.pth"
        content = torch.load(copy, weights_only=True)
    assert content.keys() == {"network_weights"} and not Path(copy).exists()
    assert all(torch.equal(value, state[name]) for name, value in content["network_weights"].items())


def test_a_segformer_with_the_names_of_earlier_releases_of_transformers_is_handed_on_with_todays(tmp_path: Path):
    segformer = create_segformer_model(num_classes=3, backbone_size="tiny", decoder_hidden_size=16)
    state = segformer.state_dict()
    former = {name.replace("decode_head.linear_projections.", "decode_head.linear_c."): state[name] for name in state}
    assert len(former.keys() - state.keys()) == 8
    path = save(tmp_path / "checkpoint.pth", former)
    with temporary_checkpoint(path, check_pretrained_checkpoint(path, segformer)) as copy:
        weights = torch.load(copy, weights_only=True)["network_weights"]
    assert weights.keys() == state.keys() and all(torch.equal(weights[name], state[name]) for name in state)
    with pytest.raises(ExperimentError, match=r"unknown tensors, such as decode_head\.linear_c\.0\.proj\.weight"):
        check_pretrained_checkpoint(path, network())


class Malicious:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "checkpoint.pth", {"x": Malicious()})
    with pytest.raises(ExperimentError, match=r"-pretrained_weights: cannot read .*it holds Python objects"):
        check_pretrained_checkpoint(path, network())
    assert not (tmp_path / "executed").exists()
