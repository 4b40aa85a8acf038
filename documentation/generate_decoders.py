"""Write what is generated in the pages on the decoders (tables, figures), and the table of the README.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`. A test keeps all in step with the code.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from decoder_figures import FIGURES
from drawing import svg
from generate_configuration import OPTION_HEADER, lines_of_table, option_rows
from torch import nn

from nnunetv2.experiment.decoder_options import FACTORY
from nnunetv2.experiment.derive import architecture_keywords, build_on_meta
from nnunetv2.experiment.schema import build, find_config, packaged_configs, read_values
from nnunetv2.training.vit.schemas import schema_of

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "documentation" / "decoders"
README = ROOT / "README.md"
NUM_CLASSES, SIDE, CHANNELS = 4, 512, 3
VARIANT = re.compile(r"_(lora|test_\w+)$")
TABLE_HEADER = "| `--config` | decoder | paper | feature layers | output stride | parameters |"
CONFIG_HEADER = "| `--config` | backbone | mode |"


@dataclass(frozen=True)
class Decoder:
    """A decoder of the tables.

    Attributes:
        title: its name.
        module: dotted name of its module.
        paper: first author, year and link.
    """

    title: str
    module: str
    paper: str


DECODERS = {
    "upernet": Decoder(
        "UperNet", "nnunetv2.model.model_upernet", "[Xiao et al. 2018](https://arxiv.org/abs/1807.10221)"
    ),
    "segformer": Decoder(
        "SegFormer", "nnunetv2.model.model_segformer", "[Xie et al. 2021](https://arxiv.org/abs/2105.15203)"
    ),
    "dpt": Decoder("DPT", "nnunetv2.model.model_dpt", "[Ranftl et al. 2021](https://arxiv.org/abs/2103.13413)"),
    "unetr": Decoder(
        "UNETR", "nnunetv2.model.model_unetr", "[Hatamizadeh et al. 2022](https://arxiv.org/abs/2103.10504)"
    ),
    "primus": Decoder("Primus", "nnunetv2.model.primus", "[Wald et al. 2025](https://arxiv.org/abs/2503.01835)"),
    "linear": Decoder(
        "linear probe", "nnunetv2.model.model_linear", "[Oquab et al. 2023](https://arxiv.org/abs/2304.07193)"
    ),
    "eomt": Decoder("EoMT", "nnunetv2.model.model_eomt", "[Kerssies et al. 2025](https://arxiv.org/abs/2503.19108)"),
    "pmt": Decoder("PMT", "nnunetv2.model.model_pmt", "[Cavagnero et al. 2026](https://arxiv.org/abs/2603.25398)"),
}
# Where a configuration is of another paper than its decoder.
OTHER_PAPERS = {"primus_multiscale": "[Li et al. 2025](https://arxiv.org/abs/2509.02379)"}


@cache
def read_config(name: str) -> Any:
    """Return a packaged configuration as it goes into the plans; it is read once."""
    values = read_values(find_config(name))
    return build(schema_of(values["trainer"]), values, name)


def configs_of(page: str) -> list[str]:
    """Names of the packaged configurations with a decoder."""
    return [name for name in packaged_configs() if module_of(name) == DECODERS[page].module]


def module_of(config_name: str) -> str | None:
    """The decoder's module of a packaged configuration; None: it has no ViT."""
    model = read_config(config_name).model
    return None if model is None else model.model_path


def main_configs() -> Iterator[tuple[str, str]]:
    """Yield pairs of page and configuration, without those that differ in backbone, mode or length only."""
    for page in DECODERS:
        yield from ((page, name) for name in configs_of(page) if not VARIANT.search(name))


@cache
def numbers_of(config_name: str) -> tuple[str, str, str]:
    """Feature layers, output stride and the decoder's parameters of a configuration, built on `meta`."""
    config = read_config(config_name)
    schemes = ["RGBTo01Normalization"] * CHANNELS
    architecture = {
        "network_class_name": f"{config.model.model_path}.{FACTORY}",
        "arch_kwargs": architecture_keywords(config, schemes, batch_size=2),
    }
    network = build_on_meta({"architecture": architecture, "normalization_schemes": schemes}, NUM_CLASSES)
    total, backbone = (sum(p.numel() for p in part.parameters()) for part in (network, network.backbone))
    layers = ", ".join(str(i) for i in network.feature_indices)
    return layers, str(output_stride(network)), rounded(total - backbone)


def rounded(parameters: int) -> str:
    """A number of parameters to two digits: `37 M`, `2.4 M`, `6 k`."""
    if parameters < 1_000_000:
        return f"{parameters / 1000:.0f} k"
    return f"{parameters / 1e6:.0f} M" if parameters >= 10_000_000 else f"{parameters / 1e6:.1f} M"


def output_stride(network: nn.Module) -> int:
    """Pixels of the image per pixel of the logits, or of queries' masks, before these are resized to the image."""
    image = torch.empty(1, CHANNELS, SIDE, SIDE, device="meta")
    if hasattr(network, "forward_queries"):
        return SIDE // network.eval().forward_queries(image)["pred_masks"].shape[-1]
    sides: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels == NUM_CLASSES:
            module.register_forward_hook(lambda _module, _inputs, output: sides.append(output.shape[-1]))
    with torch.no_grad():
        network.eval()(image)
    (side,) = sides
    return SIDE // side


def overview_table(folder: str) -> str:
    """The table of all decoders, with links to the pages in a folder."""
    rows = []
    for page, name in main_configs():
        decoder = DECODERS[page]
        cells = (f"`{name}`", f"[{decoder.title}]({folder}{page}.md)", OTHER_PAPERS.get(name, decoder.paper))
        rows.append("| " + " | ".join((*cells, *numbers_of(name))) + " |")
    return lines_of_table(TABLE_HEADER, rows)


def options_table(page: str) -> str:
    """The table of a decoder's options."""
    return lines_of_table(OPTION_HEADER, option_rows(DECODERS[page].module))


def configs_table(page: str) -> str:
    """The table of the configurations with a decoder."""
    rows = []
    for name in configs_of(page):
        config = read_config(name)
        rows.append(f"| `{name}` | `{config.model.backbone}` {config.model.backbone_size} | {config.mode} |")
    return lines_of_table(CONFIG_HEADER, rows)


def figure(page: str) -> str:
    """The line that shows a decoder's figure."""
    return f"![Data flow of {DECODERS[page].title}](figures/{page}.svg)\n"


def generated_parts() -> Iterator[tuple[Path, dict[str, Callable[[], str]]]]:
    """Yield each page with its generated parts: name to what writes it."""
    yield README, {"decoders": lambda: overview_table("documentation/decoders/")}
    yield FOLDER / "README.md", {"decoders": lambda: overview_table("")}
    for page in DECODERS:
        parts = {"figure": figure, "options": options_table, "configurations": configs_table}
        yield (
            FOLDER / f"{page}.md",
            {name: lambda write=write, page=page: write(page) for name, write in parts.items()},
        )


def filled(text: str, parts: dict[str, Callable[[], str]]) -> str:
    """Return a page with its generated parts written anew.

    Raises:
        ValueError: the page lacks a part.
    """
    for name, write in parts.items():
        pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)"
        if len(re.findall(pattern, text, flags=re.DOTALL)) != 1:
            raise ValueError(f"there must be one part <!-- generated: {name} --> … <!-- end -->")
        content = f"\n{write()}\n"
        text = re.sub(pattern, lambda m, content=content: m[1] + content + m[2], text, flags=re.DOTALL)
    return text


def files() -> Iterator[tuple[Path, str]]:
    """Yield every file that is generated, or holds generated parts, with its content."""
    for path, parts in generated_parts():
        yield path, filled(path.read_text(encoding="utf-8"), parts)
    for page in DECODERS:
        yield FOLDER / "figures" / f"{page}.svg", svg(FIGURES[page]())


if __name__ == "__main__":
    for path, content in files():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
