"""The documentation says what the code does."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from raw_weights import origin

from dinov3.hub.families import FAMILIES
from nnunetv2.experiment.schema import load_config, packaged_configs, read_values
from nnunetv2.model.backbone import create_backbone, load_backbone_weights
from nnunetv2.model.model_m2f import create_segmentation_model as create_mask2former
from nnunetv2.model.segmentation_model import count_parameters_per_part
from nnunetv2.run.arguments import parse_arguments
from nnunetv2.run.train_experiment import read_experiment
from nnunetv2.run.training_commands import TRAIN_M2F, TRAIN_VIT
from nnunetv2.training.nnUNetTrainer.m2f_config import M2FnnUNetConfig
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig
from nnunetv2.training.vit.schemas import schema_of

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "documentation").rglob("*.md"))]
WEIGHT_PAGES = [  # on backbones
    page for page in PAGES if page.parent.name == "weights" and page.stem not in ("README", "decoders")
]
MASK2FORMER = ROOT / "documentation" / "mask2former" / "README.md"
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
    for name in re.findall(r"--(?:m2f_)?config (\w+)(?![\w./])", page.read_text()):
        assert name in packaged_configs()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_yaml_examples_are_valid(page: Path, tmp_path: Path):
    for i, text in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL)):
        path = tmp_path / f"{i}.yaml"
        path.write_text(text)
        trainer = read_values(path).get("trainer", "nnUNetTrainer_vit")
        load_config(schema_of(trainer), str(path))


# --- Mask2Former ----------------------------------------------------------------------------------------------------


def table_rows(page: Path, first_cell: str) -> list[list[str]]:
    """The cells of the rows whose first cell fits a pattern, without marks of code."""
    rows = re.findall(rf"^\| ({first_cell} \|.*) \|$", page.read_text(), flags=re.MULTILINE)
    return [[cell.strip() for cell in row.replace("`", "").split(" | ")] for row in rows]


def mask2former_configs() -> dict[str, M2FnnUNetConfig]:
    return {name: load_config(M2FnnUNetConfig, name) for name in packaged_configs() if name.startswith("m2f")}


@pytest.fixture(scope="module")
def mask2former_parameters() -> dict[tuple[str, str], dict[str, int]]:
    """Per size of the backbone and width of the head the parameters of each part, for four classes."""
    counts = {}
    with torch.device("meta"):
        for size, width in ((size, width) for size in ("base", "large") for width in (256, 2048)):
            parts = count_parameters_per_part(create_mask2former(num_classes=4, hidden_dim=width, backbone_size=size))
            counts[size, str(width)] = {name: total for name, (total, _) in parts.items()}
    return counts


def test_the_page_on_mask2former_has_every_configuration_and_its_size(mask2former_parameters: dict):
    described = [
        [name, f"{c.model.backbone} {c.model.backbone_size}", c.mode]
        + [str(c.model.hidden_dim), str(c.train.num_iterations_per_epoch)]
        for name, c in mask2former_configs().items()
    ]
    assert sorted(table_rows(MASK2FORMER, r"`m2f\w*`")) == sorted(described)
    counted = [
        [f"dinov3 {size}", width, *(f"{parts[name]:,}" for name in ("backbone", "adapter", "head"))]
        for (size, width), parts in mask2former_parameters.items()
    ]
    assert table_rows(MASK2FORMER, "`dinov3` (?:base|large)") == counted


def test_the_readme_has_the_parameters_of_mask2former(mask2former_parameters: dict):
    configs = mask2former_configs()
    rows = table_rows(ROOT / "README.md", r"`m2f\w*`")
    assert {row[0] for row in rows} == {name for name in configs if "_test_" not in name}
    for name, trainer, mode, width, parameters in rows:
        config, parts = configs[name], mask2former_parameters["large", width]
        assert (trainer, mode, width) == (config.trainer, config.mode, str(config.model.hidden_dim))
        assert parameters == f"{(parts['adapter'] + parts['head']) / 1e6:.0f} M"


def test_the_commands_on_mask2former_are_accepted():
    lines = re.findall(r"^nnUNetv2_train_(vit|m2f) (.*?)(?: +#.*)?$", MASK2FORMER.read_text(), flags=re.MULTILINE)
    assert {command for command, _ in lines} == {"vit", "m2f"}
    for command, rest in lines:
        words = [word for word in rest.split() if word != "--c"]  # what an experiment is does not hang on it
        args = parse_arguments(TRAIN_M2F if command == "m2f" else TRAIN_VIT, [*words, "model.pretrained=false"])
        trainer = "nnUNetTrainer_vit" if args.config == "upernet" else "nnUNetTrainer_m2f"
        assert read_experiment(args).trainer == trainer


# --- pretrained weights ---------------------------------------------------------------------------------------------


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
