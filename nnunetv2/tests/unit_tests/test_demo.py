"""What the demonstration hands to the commands: their environment, and a configuration that can be built."""

import pydoc
from pathlib import Path

import pytest
import torch
from commands import environment
from make_fundus import DATASET_NAME
from run_demo import STUDY, TRAINED

from nnunetv2.experiment.derive import architecture_keywords
from nnunetv2.experiment.schema import load_config
from nnunetv2.study.config import read_study
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig


def test_threads_that_wait_leave_the_cores_to_others_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    variables = environment(tmp_path, tmp_path / "raw")
    assert variables["OMP_WAIT_POLICY"] == "passive"
    assert variables["nnUNet_results"] == str(tmp_path / "results")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert environment(tmp_path, tmp_path / "raw")["OMP_WAIT_POLICY"] == "active"


@pytest.mark.parametrize("name", ["linear", "unetr"])
def test_the_networks_of_the_demonstration_classify_every_pixel(name: str):
    study = read_study(STUDY)
    experiment = study.entries[name]
    config = load_config(ViTnnUNetConfig, experiment.config, [*study.common, *experiment.overrides])
    keywords = architecture_keywords(config, ["RescaleTo01Normalization"] * 3, config.train.batch_size)
    network = pydoc.locate(f"{config.model.model_path}.create_segmentation_model")(num_classes=3, **keywords)
    assert network(torch.rand(1, 3, *config.train.patch_size)).shape == (1, 3, *config.train.patch_size)


def test_the_demonstration_predicts_with_an_experiment_of_its_study():
    study = read_study(STUDY)
    assert TRAINED[-1] in [f"{study.plans}_{study.name}_{experiment}" for experiment in study.entries]
    assert str(study.dataset) == DATASET_NAME[7:10]
