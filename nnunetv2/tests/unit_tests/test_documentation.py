"""The documentation says what the code does."""

import importlib.util
import re
from pathlib import Path

import pytest

from nnunetv2.model.backbone_families import FAMILIES
from nnunetv2.training.experiment.schema import load_config, packaged_configs
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "documentation").glob("*.md"))]


def test_the_configuration_reference_is_generated_from_the_dataclasses():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "documentation" / "generate_configuration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "documentation" / "configuration.md").read_text() == module.page(), "run `make docs`"


def test_the_readme_names_every_backbone_with_its_licence():
    readme = (ROOT / "README.md").read_text()
    for name, family in FAMILIES.items():
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{name}`"))
        assert family.licence in row and str(family.patch_size) in row


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_configurations_that_are_named_exist(page: Path):
    for name in re.findall(r"--config (\w+)(?![\w./])", page.read_text()):
        assert name in packaged_configs()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_yaml_examples_are_valid(page: Path, tmp_path: Path):
    for i, text in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL)):
        path = tmp_path / f"{i}.yaml"
        path.write_text(text)
        load_config(ViTnnUNetConfig, str(path))
