"""The pages on studies say what the code does."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from nnunetv2.experiment.schema import load_config
from nnunetv2.study.config import read_study
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig

DOCUMENTATION = Path(__file__).resolve().parents[3] / "documentation"


def test_the_keys_are_generated_from_the_dataclasses():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCUMENTATION)
        page = import_module("generate_studies").page()
    for module in ("generate_studies", "generate_configuration"):
        sys.modules.pop(module)
    assert (DOCUMENTATION / "study_keys.md").read_text() == page, "run `make docs`"


def examples_of(page: str) -> list[str]:
    examples = re.findall(r"```yml\n(.*?)```", (DOCUMENTATION / page).read_text(), flags=re.DOTALL)
    assert examples
    return examples


@pytest.mark.parametrize("page", ["studies.md", "which_recipe.md"])
def test_the_examples_are_valid(page: str, tmp_path: Path):
    for text in examples_of(page):
        (tmp_path / "study.yaml").write_text(text)
        assert read_study(tmp_path / "study.yaml").baseline == "unet"


def test_the_study_of_recipes_compares_the_modes_and_nothing_else(tmp_path: Path):
    (text,) = examples_of("which_recipe.md")
    (tmp_path / "study.yaml").write_text(text)
    study = read_study(tmp_path / "study.yaml")
    configs = {}
    for mode in ("frozen", "lora", "full"):
        experiment = study.experiments[mode]
        configs[mode] = load_config(
            ViTnnUNetConfig, experiment["config"], [*study.common, *experiment.get("overrides", [])]
        )
    assert {mode: config.mode for mode, config in configs.items()} == {mode: mode for mode in configs}
    assert configs["frozen"].train == configs["lora"].train == configs["full"].train
    assert configs["frozen"].model.decoder == configs["lora"].model.decoder == configs["full"].model.decoder
