"""The pages on the decoders say what the code does; the example of a decoder of one's own works as it is printed."""

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2.experiment.decoder_options import MASK2FORMER, packaged_decoders, read_options
from nnunetv2.experiment.derive import architecture_keywords, build_on_meta, derive_plans
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.schema import find_config, load_config, packaged_configs, read_values
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_vit import nnUNetTrainer_vit
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig
from nnunetv2.training.vit.schemas import schema_of
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "documentation" / "decoders"
PAGES = ("upernet", "segformer", "dpt", "unetr", "primus", "linear", "dinounet", "eomt", "pmt")
TITLES = ("When to choose it", "Data flow", "Where ours differs", "Options", "Configurations")
# Modules whose decoder has its page under another name.
ALIASES = {"nnunetv2.model.model": "nnunetv2.model.model_upernet"}
# The decoder's operations as a share of the ViT-L's, for an image of 512 × 512, as the page on all decoders says
WORK = {
    "upernet": "17 %",
    "segformer": "4 %",
    "segformer_default": "0.4 %",
    "dpt": "50 %",
    "unetr": "43 %",
    "primus": "2 %",
    "primus_multiscale": "25 %",
    "dinounet": "30 %",
    "linear": "0.001 %",
    "eomt": "8 %",
    "pmt": "24 %",
}


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "documentation")
        yield import_module("generate_decoders")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (FOLDER / f"{page}.md").read_text(), flags=re.DOTALL)


# --- what is generated ----------------------------------------------------------------------------------------------


def test_every_packaged_decoder_has_a_page_and_every_page_a_decoder(generate: ModuleType):
    modules = {decoder.module for decoder in generate.DECODERS.values()}
    assert {ALIASES.get(module, module) for module in packaged_decoders()} == modules
    pages = {path.stem for path in FOLDER.glob("*.md")}
    assert pages == {"README", "own_decoder", *generate.DECODERS} and set(PAGES) == set(generate.DECODERS)


@pytest.mark.integration
def test_tables_and_figures_are_those_that_the_script_writes(generate: ModuleType):
    for path, content in generate.files():
        assert path.read_text(encoding="utf-8") == content, f"{path.name}: run `make docs`"
    assert {path.stem for path in (FOLDER / "figures").iterdir()} == set(PAGES)


@pytest.mark.integration
def test_every_configuration_is_on_one_page(generate: ModuleType):
    """Those of Mask2Former and of the U-Net are on pages elsewhere."""
    others = [name for name in packaged_configs() if generate.module_of(name) not in (MASK2FORMER, None)]
    assert sorted(name for page in PAGES for name in generate.configs_of(page)) == others


def test_a_page_without_a_generated_part_is_an_error(generate: ModuleType):
    with pytest.raises(ValueError, match="generated: options"):
        generate.filled("# UperNet\n", {"options": lambda: ""})


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_what_a_reader_looks_for(page: str, generate: ModuleType):
    text = (FOLDER / f"{page}.md").read_text()
    positions = [text.index(f"\n## {title}\n") for title in TITLES]
    assert positions == sorted(positions)
    assert re.search(r"\((https://arxiv\.org/abs/\S+)\)", generate.DECODERS[page].paper)[1] in text
    assert f"--config {page}" in text
    for option in fields(read_options(generate.DECODERS[page].module)):
        assert f"`model.decoder.{option.name}`" in text


@pytest.mark.integration
@pytest.mark.parametrize("page", PAGES)
def test_the_yaml_of_a_page_is_of_its_decoder_and_can_be_built(page: str, generate: ModuleType, tmp_path: Path):
    (example,) = blocks(page, "yaml")
    (tmp_path / "example.yaml").write_text(example)
    trainer = yaml.safe_load(example).get("trainer", ViTnnUNetConfig.trainer)
    config = load_config(schema_of(trainer), str(tmp_path / "example.yaml"))
    assert config.model.model_path == generate.DECODERS[page].module and config.model.decoder
    assert derive_plans(plans(), "2d", DATASET_JSON, config, "example")


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_are_accepted(page: str):
    commands = re.findall(r"^(nnUNetv2_train_\w+) 101 2d 0(.*)$", "\n".join(blocks(page, "bash")), flags=re.MULTILINE)
    assert commands
    for command, rest in commands:
        is_vit = command == "nnUNetv2_train_vit"
        config = re.search(r"--config (\w+)", rest)[1] if is_vit else "segformer_default"
        overrides = [word.strip("'") for word in rest.split() if "=" in word]
        assert load_config(schema_of(read_values(find_config(config))["trainer"]), config, overrides)


@pytest.mark.integration
def test_what_the_decoders_cost(generate: ModuleType):
    text = " ".join((FOLDER / "README.md").read_text().split())
    assert set(WORK) == {name for _, name in generate.main_configs()}
    for name, told in WORK.items():
        config = generate.read_config(name)
        keywords = architecture_keywords(config, RGB, 2)
        architecture = {"network_class_name": f"{config.model.model_path}.create_segmentation_model"}
        configuration = {"architecture": {**architecture, "arch_kwargs": keywords}, "normalization_schemes": RGB}
        network, image = build_on_meta(configuration, 4).eval(), torch.empty(1, 3, 512, 512, device="meta")
        with torch.no_grad():
            with FlopCounterMode(display=False) as backbone:
                network.encode(image)
            with FlopCounterMode(display=False) as whole:
                network(image)
        share = 100 * (whole.get_total_flops() / backbone.get_total_flops() - 1)
        # a share of one digit is rounded more coarsely
        assert share == pytest.approx(float(told.removesuffix(" %")), rel=0.25 if share < 10 else 0.05)
        assert re.search(rf"(?<![\d.]){told}", text)


# --- figures --------------------------------------------------------------------------------------------------------

GRID, PATCH, CLASSES, IMAGE_CHANNELS = (6, 8), 16, 5, 3


@pytest.mark.parametrize("page", PAGES)
def test_the_shapes_of_a_figure_are_those_of_the_network(page: str, generate: ModuleType):
    figure = generate.FIGURES[page]()
    seen = set()
    for variant, options in figure.variants.items():
        model, shapes = run_and_record(figure.module, options)
        symbols = {"C": IMAGE_CHANNELS, "K": CLASSES, "D": model.embed_dim, "h": GRID[0], "w": GRID[1]}
        symbols |= {"Q": 100, "P": model.backbone.num_prefix_tokens, "H": PATCH * GRID[0], "W": PATCH * GRID[1]}
        for name, box in figure.boxes.items():
            if box.variant in ("", variant):
                expected, found = numbers(box.shape, symbols), shapes[box.source]
                as_tokens = (math.prod(expected[1:]), expected[0])
                assert found in (expected, as_tokens), f"{name}: {box.shape} is {found}"
                seen.add(name)
    assert seen == set(figure.boxes) == {name for arrow in figure.arrows for name in arrow}


def run_and_record(module: str, options: dict) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    """The shapes that a network meets on the way, by the names of `drawing.Box.source`."""
    create = import_module(module).create_segmentation_model
    with torch.device("meta"):
        model = (
            create(num_classes=CLASSES, backbone_size="tiny", input_channels=IMAGE_CHANNELS, **options)
            .eval()
            .to("meta")
        )
        image = torch.empty(1, IMAGE_CHANNELS, *(PATCH * side for side in GRID))
    shapes = {"image": tuple(image.shape[1:])}

    def record(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            shapes[name] = tuple(value.shape[1:])

    for name, part in model.named_modules():
        part.register_forward_hook(lambda _m, _i, output, name=name: record(name, output))
        part.register_forward_pre_hook(lambda _m, i, name=name: record(f"{name}:input", i[0]) if i else None)
    with torch.no_grad():
        features = [x for x in model.encode(image) if x.shape != image.shape]
        record("logits", model(image))
        if hasattr(model, "forward_queries"):
            for name, value in model.forward_queries(image).items():
                record(f"queries.{name}", value)
    for i, x in enumerate(features):
        record(f"features.{i}", x)
    record("features.-1", features[-1])
    return model, shapes


def numbers(shape: str, symbols: dict[str, int]) -> tuple[int, ...]:
    """`256 × 2h × ⌈w/2⌉` in numbers."""
    text = re.sub(r"(\d)([A-Za-z])", r"\1*\2", shape).replace("·", "*")
    text = re.sub(r"⌈(\w)/(\d)⌉", r"-(-\1//\2)", text)
    return tuple(eval(term, {}, symbols) for term in text.split(" × "))


def test_shapes_are_read_as_they_are_meant():
    assert numbers("256 × 2h × ⌈w/2⌉", {"h": 3, "w": 5}) == (256, 6, 3)
    assert numbers("(1 + h·w) × 16h", {"h": 3, "w": 5}) == (16, 48)


def test_a_text_that_does_not_fit_is_told(generate: ModuleType):
    box = next(iter(generate.FIGURES["linear"]().boxes.values()))
    wide = type(box)(0, 0, "x" * 100, "K", "logits")
    with pytest.raises(ValueError, match="too long"):
        generate.svg(type(generate.FIGURES["linear"]())({"a": wide}, [], ""))


# --- a decoder of one's own -----------------------------------------------------------------------------------------

RGB = ["RGBTo01Normalization"] * 3
DATASET_JSON = {"labels": {"background": 0, "artery": 1, "vein": 2}, "channel_names": {"0": "x"}, "file_ending": ".png"}


def plans(batch_size: int = 2) -> dict:
    configuration = {"batch_size": batch_size, "patch_size": [64, 80], "normalization_schemes": RGB, "architecture": {}}
    return {
        "dataset_name": "Dataset001_Test",
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "configurations": {"2d": configuration},
    }


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with the files of the page."""
    module, _ = blocks("own_decoder", "python")
    (tmp_path / "my_decoder.py").write_text(module)
    (tmp_path / "my_decoder.yaml").write_text(*blocks("own_decoder", "yml"))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_decoder", None)


def read_own(folder: Path, *overrides: str) -> ViTnnUNetConfig:
    tiny = ("model.backbone_size=tiny", "model.pretrained=false", *overrides)
    return load_config(ViTnnUNetConfig, str(folder / "my_decoder.yaml"), tiny)


def derive_own(folder: Path, *overrides: str, batch_size: int = 2) -> dict:
    return derive_plans(plans(batch_size), "2d", DATASET_JSON, read_own(folder, *overrides), "my_decoder")


def channels_of(derived: dict) -> int:
    return derived["configurations"]["2d"]["architecture"]["arch_kwargs"]["channels"]


def network_of(derived: dict) -> nn.Module:
    manager = PlansManager(derived)
    return nnUNetTrainer_vit.build_network_architecture(manager, manager.get_configuration("2d"), 3, 3, False)


@pytest.mark.parametrize("mode", ["model.freeze_backbone=true", "model.freeze_backbone=false", "lora.enabled=true"])
def test_the_example_trains(own: Path, mode: str):
    derived = derive_own(own, mode)
    assert channels_of(derived) == 64
    torch.manual_seed(0)
    network = network_of(derived).train()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), 0.1)
    logits = network(torch.rand(2, 3, 64, 80))
    nn.functional.cross_entropy(logits, torch.randint(3, (2, 64, 80))).backward()
    optimizer.step()
    assert logits.shape == (2, 3, 64, 80) and all(p.grad is not None for p in trained.values())
    assert all((before[name] != p).any() for name, p in trained.items() if name.startswith("head."))


def test_an_unknown_option_or_one_of_another_type_of_the_example_is_refused(own: Path):
    with pytest.raises(
        ExperimentError, match=r"unknown key model\.decoder\.chanels.*allowed: model\.decoder\.channels"
    ):
        derive_own(own, "model.decoder.chanels=3")
    with pytest.raises(
        ExperimentError, match=r"model\.decoder\.channels: Input should be a valid integer, found 'many'"
    ):
        derive_own(own, "model.decoder.channels=many")


def test_what_the_constructor_raises_is_told(own: Path):
    with pytest.raises(ExperimentError, match="cannot be built as configured"):
        derive_own(own, "model.decoder.channels=-1")


def test_the_resolver_of_the_page_decides_by_the_batch(own: Path):
    path = own / "my_decoder.py"
    path.write_text("\n\n".join(blocks("own_decoder", "python")))
    yaml = own / "my_decoder.yaml"
    assert channels_of(derive_own(own, batch_size=2)) == 64
    yaml.write_text("model:\n  model_path: my_decoder\n")
    assert [channels_of(derive_own(own, batch_size=n)) for n in (2, 12)] == [128, 64]


@pytest.mark.parametrize(
    ("returned", "told"), [("None", "TypeError"), ("{'channels': np.int64(8)}", "int64 is not JSON serializable")]
)
def test_a_resolver_that_returns_what_plans_cannot_hold_is_told(own: Path, returned: str, told: str):
    path = own / "my_decoder.py"
    resolver = f"import numpy as np\n\ndef resolve_options(options, batch_size, regions):\n    return {returned}\n"
    path.write_text(f"{path.read_text()}\n{resolver}")
    with pytest.raises(ExperimentError, match=f"cannot be built as configured.*{told}"):
        derive_own(own)


def test_without_the_module_the_network_cannot_be_rebuilt(own: Path, monkeypatch: pytest.MonkeyPatch):
    derived = derive_own(own)
    sys.modules.pop("my_decoder")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(own)])
    with pytest.raises(ValueError, match=r"my_decoder\.create_segmentation_model.* of the plans cannot be imported"):
        network_of(derived)
