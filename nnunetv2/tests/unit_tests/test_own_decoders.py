"""Decoder modules of the user's own: what their factories fix, hand on and annotate."""

import sys
from pathlib import Path

import pytest
from example_plans import DATASET_JSON, PLANS

from nnunetv2.experiment.decoder_options import complete_options
from nnunetv2.experiment.derive import build_on_meta, derive_plans
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.schema import build
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig

NARROW_CLASS = """
from nnunetv2.model.model_dpt import DPTSegmentationModel

class Narrow(DPTSegmentationModel):
    def __init__(self, num_classes=1, dropout: float = 0.2, **options):
        super().__init__(num_classes=num_classes, fusion_hidden_size=32, decoder_dropout=dropout, **options)

create_segmentation_model = Narrow
"""
NARROW_FUNCTION = """
from nnunetv2.model.model_dpt import DPTSegmentationModel

def create_segmentation_model(num_classes, dropout: float = 0.2, **options) -> DPTSegmentationModel:
    return DPTSegmentationModel(num_classes=num_classes, fusion_hidden_size=32, decoder_dropout=dropout, **options)
"""
WITHOUT_ANNOTATION = """
from nnunetv2.model.model_linear import create_segmentation_model as create_linear

def create_segmentation_model(num_classes, dropout: float = 0.1, **options):
    return create_linear(num_classes=num_classes, dropout=dropout, **options)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a module that can be imported in the test; return its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> str:
        (tmp_path / "own_decoder_under_test.py").write_text(source)
        monkeypatch.delitem(sys.modules, "own_decoder_under_test", raising=False)
        return "own_decoder_under_test"

    yield write
    sys.modules.pop("own_decoder_under_test", None)


@pytest.mark.parametrize("source", [NARROW_CLASS, NARROW_FUNCTION], ids=["class", "function"])
def test_what_a_factory_fixes_of_its_base_is_not_given_to_it(module, source: str):
    name = module(source)
    model = {"backbone_size": "tiny", "pretrained": False, "model_path": name}
    plans = derive_plans(PLANS, "2d", DATASET_JSON, build(ViTnnUNetConfig, {"model": model}, "test"), "own")
    configuration = plans["configurations"]["2d"]
    keywords = configuration["architecture"]["arch_kwargs"]
    assert keywords["dropout"] == 0.2 and not {"fusion_hidden_size", "decoder_dropout"} & keywords.keys()
    assert build_on_meta(configuration, 2).num_classes == 2


def test_options_of_the_base_may_still_be_set(module):
    assert complete_options(module(NARROW_CLASS), {"readout_type": "add"}) == {"dropout": 0.2, "readout_type": "add"}
    with pytest.raises(ExperimentError, match=r"unknown key model\.decoder\.readout .*did you mean 'readout_type'"):
        complete_options(module(NARROW_CLASS), {"readout": "add"})


@pytest.mark.parametrize("key", ["freeze_backbone", "precision", "lora_rank"])
def test_keywords_of_the_backbone_are_no_options_of_a_decoder(module, key: str):
    with pytest.raises(ExperimentError, match=rf"model\.decoder\.{key} \(value 3\) is not an option of the decoder"):
        complete_options(module(WITHOUT_ANNOTATION), {key: 3})


@pytest.mark.parametrize("annotation", ["np.nope", "int | 'q", "Missing"])
def test_annotations_that_cannot_be_evaluated_check_nothing(module, annotation: str):
    source = f'def create_segmentation_model(num_classes, width: "{annotation}" = 3, **options):\n    """Nothing."""\n'
    assert complete_options(module(source), {"width": [1]}) == {"width": [1]}


FOR_TYPE_CHECKERS = '''
from __future__ import annotations
from typing import TYPE_CHECKING
from nnunetv2.model.model_dpt import DPTSegmentationModel

if TYPE_CHECKING:
    from collections.abc import Sequence

def create_segmentation_model(
    num_classes, sizes: Sequence[int] = (1,), width: int = 3, **options
) -> DPTSegmentationModel:
    """Nothing."""
'''


def test_an_annotation_for_type_checkers_costs_no_other_its_check(module):
    name = module(FOR_TYPE_CHECKERS)
    assert complete_options(name, {"sizes": [2], "readout_type": "add"})["sizes"] == [
        2
    ]  # the base's, by the return type
    with pytest.raises(ExperimentError, match=r"model\.decoder\.width: Input should be a valid integer, found \[1\]"):
        complete_options(name, {"width": [1]})
    with pytest.raises(ExperimentError, match=r"unknown key model\.decoder\.readout "):
        complete_options(name, {"readout": "add"})
