"""Count the parameters of every packaged decoder on DINOv3 ViT-B and ViT-L for four classes, and check the counts.

usage: python benchmarks/parameters.py

Nothing is computed and no weights are needed (PyTorch's meta device). The reference are counts that were taken from
other implementations; where these differ from ours by design, the table says by how much and why. Exits with 1 where a
count is not the reference's after that correction.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from packaged_decoders import FORMS, Form, build_network, read_form
from tqdm import tqdm

from nnunetv2.model.parameter_counts import count_parameters

NUM_CLASSES = 4
WIDTHS = {"base": 768, "large": 1024}  # of the backbone
BACKBONE = {"base": 85_641_216, "large": 303_079_424}
LORA = {"base": 294_912, "large": 786_432}  # rank 8 on qkv


class Reference(NamedTuple):
    """Trainable parameters with a frozen backbone, per size of the backbone.

    Attributes:
        counts: of another implementation.
        surplus: what that one has and ours has not.
        reason: why.
    """

    counts: dict[str, int]
    surplus: dict[str, int] | None = None
    reason: str = ""

    def expected(self, size: str) -> int:
        """What ours must have."""
        return self.counts[size] - (self.surplus[size] if self.surplus else 0)


def by_size(base: int, large: int) -> dict[str, int]:
    """A number per size of the backbone."""
    return {"base": base, "large": large}


# Beyond the packaged configurations: other widths that the reference has counts of.
ALL_FORMS = {
    **FORMS,
    "upernet, half width": Form("upernet", ("model.decoder.hidden_size=HALF_WIDTH",)),
    "unetr, wide": Form("unetr", ("model.decoder.decoder_channels=[1024,512,256,128,64]",)),
    "primus, unprojected": Form("primus", ("model.decoder.embed_dim=null",)),
    "primus multiscale, unprojected": Form("primus_multiscale", ("model.decoder.embed_dim=null",)),
}
SEGFORMER = Reference(by_size(1_051_140, 1_313_284))
REFERENCES = {
    # no other implementation, but two numbers per channel in batch norm, and a weight per channel and class
    "linear": Reference({size: 2 * width + NUM_CLASSES * (width + 1) for size, width in WIDTHS.items()}),
    "segformer bilinear": SEGFORMER,
    "segformer progressive": Reference(by_size(2_739_972, 3_002_116)),
    "segformer full": SEGFORMER,
    "upernet plain": Reference(
        by_size(33_301_512, 35_398_664),
        by_size(1_043_460, 1_043_460),
        "the other one resizes its logits by learned stages (4 to 256 to 128 to 4 channels), ours bilinearly",
    ),
    "upernet, half width": Reference(
        by_size(21_062_852, 37_426_692),
        {size: width // 2 * (width // 2 + 1) for size, width in WIDTHS.items()},
        "the other one has a 1×1 layer between the fused features and the upsampling, ours hands them over as they are",
    ),
    "dpt": Reference(
        by_size(41_569_028, 62_739_972),
        by_size(1_180_672, 1_180_672),
        "the other one keeps a residual unit in the deepest fusion that is never run, ours has none there",
    ),
    "unetr deconv": Reference(by_size(10_565_956, 11_548_996)),
    "unetr bilinear": Reference(by_size(10_651_524, 11_634_564)),
    "unetr, wide": Reference(by_size(36_350_596, 38_316_676)),
    "primus": Reference(by_size(1_569_076, 2_356_276)),
    "primus, unprojected": Reference(by_size(1_569_076, 2_788_420)),
    "primus multiscale": Reference(by_size(25_076_932, 37_662_916)),
    "primus multiscale, unprojected": Reference(by_size(25_076_932, 44_577_028)),
}


class Counts(NamedTuple):
    """Parameters of a network: of its backbone and its decoder, and how many train in which mode."""

    backbone: int
    decoder: int
    frozen: int
    lora: int

    def problems(self, size: str, reference: Reference | None) -> list[str]:
        """Say what differs from what should be."""
        pairs = {
            "backbone": (self.backbone, BACKBONE[size]),
            "trainable, frozen": (self.frozen, reference.expected(size) if reference else self.decoder),
            "decoder": (self.decoder, self.frozen),
            "trainable, LoRA": (self.lora, self.frozen + LORA[size]),
        }
        return [f"{name}: {ours:,}, expected {theirs:,}" for name, (ours, theirs) in pairs.items() if ours != theirs]


def count(form: Form, size: str) -> Counts:
    """Build a form on a backbone, frozen and with LoRA, without memory for its weights."""
    overrides = [override.replace("HALF_WIDTH", str(WIDTHS[size] // 2)) for override in form.overrides]

    def build(*mode: str) -> torch.nn.Module:
        config = read_form(Form(form.config), [*overrides, f"model.backbone_size={size}", *mode])
        with torch.device("meta"):
            return build_network(config, NUM_CLASSES)

    network, with_lora = build("lora.enabled=false"), build("lora.enabled=true", "lora.r=8")
    total, frozen = count_parameters(network)
    backbone, _ = count_parameters(network.backbone)
    return Counts(backbone, total - backbone, frozen, count_parameters(with_lora)[1])


def line(form: str, size: str, counts: Counts, mark: str) -> str:
    """One line of the table."""
    reference = REFERENCES.get(form)
    theirs = f"{reference.counts[size]:,}" if reference else "-"
    surplus = f"-{reference.surplus[size]:,} {mark}" if reference and reference.surplus else ""
    columns = "".join(f"{number:>14,}" for number in counts)
    verdict = "" if reference is None else "DIFFERS" if counts.problems(size, reference) else "equal"
    return f"{form:<32}{size:<6}{columns}{theirs:>14}{surplus:>15}  {verdict}".rstrip()


def show(table: dict[tuple[str, str], Counts]) -> Sequence[str]:
    """Print the table and its notes, and return what differs."""
    names = ("backbone", "decoder", "train: frozen", "train: LoRA", "reference", "difference")
    print(f"{'decoder':<32}{'size':<6}" + "".join(f"{name:>14}" for name in names))
    noted = [form for form in ALL_FORMS if form in REFERENCES and REFERENCES[form].reason]
    marks = {form: f"[{number}]" for number, form in enumerate(noted, start=1)}
    for (form, size), counts in table.items():
        print(line(form, size, counts, marks.get(form, "")))
    for form, mark in marks.items():
        print(f"{mark} {form}: {REFERENCES[form].reason}")
    return [
        f"{form}, {size}: {problem}"
        for (form, size), counts in table.items()
        for problem in counts.problems(size, REFERENCES.get(form))
    ]


def main() -> None:
    """Print one line per decoder and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    keys = [(form, size) for form in ALL_FORMS for size in WIDTHS]
    table = {(form, size): count(ALL_FORMS[form], size) for form, size in tqdm(keys, leave=False)}
    problems = show(table)
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
