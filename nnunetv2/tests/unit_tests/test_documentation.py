"""The documentation says what the code does."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from raw_weights import origin

from nnunetv2.model.backbone import create_backbone, load_backbone_weights
from nnunetv2.model.backbone_families import FAMILIES
from nnunetv2.training.experiment.schema import load_config, packaged_configs
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "documentation").rglob("*.md"))]
WEIGHT_PAGES = [page for page in PAGES if page.parent.name == "weights" and page.stem != "README"]
# What the YAML examples of each page load, in their order; None where timm's hub copy is loaded.
EXAMPLES = {
    "dinov3": [None, "DINOv3, Meta"],
    "meddinov3": ["MedDINOv3"],
    "dinov2": [None, "DINOv2, Meta"],
    "retfound": ["RETFound (MAE)", "RETFound (DINOv2)"],
    "visionfm": ["VisionFM"],
    "timm": [None, "ViT, timm"],
}


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


def yaml_examples(page: Path) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", WEIGHT_PAGES, ids=lambda p: p.stem)
def test_a_page_of_weights_says_where_under_which_licence_and_how(page: Path):
    text = page.read_text()
    positions = [text.index(f"## {title}") for title in ("Where to get it", "Licence", "Configuration")]
    assert positions == sorted(positions) and len(yaml_examples(page)) == len(EXAMPLES[page.stem])
    backbones = {re.search(r"backbone: (\S+)", example)[1] for example in yaml_examples(page)}
    for licence in {FAMILIES[name].licence for name in backbones if name in FAMILIES}:
        assert licence in text


@pytest.mark.parametrize(
    ("page", "i"), [(page, i) for page in WEIGHT_PAGES for i in range(len(EXAMPLES[page.stem]))], ids=str
)
def test_the_examples_of_a_page_load_such_a_file(page: Path, i: int, tmp_path: Path):
    (tmp_path / "example.yaml").write_text(yaml_examples(page)[i])
    model = load_config(ViTnnUNetConfig, str(tmp_path / "example.yaml")).model
    source = EXAMPLES[page.stem][i]
    assert bool(model.checkpoint_path) == (source is not None)
    with torch.device("meta"):
        create_backbone(model.backbone, model.backbone_size)
    if source is None:
        return
    file = origin(source).make().save(tmp_path / Path(model.checkpoint_path).name)
    backbone, _, _ = create_backbone(model.backbone, "tiny")
    count = len(backbone.state_dict())
    assert f"{count} of {count} tensors" in load_backbone_weights(backbone, file)


def test_every_origin_that_needs_a_file_has_a_page():
    linked = (ROOT / "documentation/weights/README.md").read_text()
    assert all(f"({page.name})" in linked for page in WEIGHT_PAGES) and len(WEIGHT_PAGES) == len(EXAMPLES)
    assert all(f"`{name}`" in linked for name in FAMILIES)
