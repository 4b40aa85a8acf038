"""The pages on studies say what the code does."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from nnunetv2.study.config import read_study

DOCUMENTATION = Path(__file__).resolve().parents[3] / "documentation"


def test_the_keys_are_generated_from_the_dataclasses():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCUMENTATION)
        page = import_module("generate_studies").page()
    for module in ("generate_studies", "generate_configuration"):
        sys.modules.pop(module)
    assert (DOCUMENTATION / "study_keys.md").read_text() == page, "run `make docs`"


def test_the_examples_are_valid(tmp_path: Path):
    examples = re.findall(r"```yml\n(.*?)```", (DOCUMENTATION / "studies.md").read_text(), flags=re.DOTALL)
    assert examples
    for text in examples:
        (tmp_path / "study.yaml").write_text(text)
        assert read_study(tmp_path / "study.yaml").baseline == "unet"
