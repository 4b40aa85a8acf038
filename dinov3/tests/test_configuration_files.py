"""Configuration files of any package: bases, overrides, keys that are unknown, and members of enumerations."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated

import pytest

from dinov3.configuration.schema import ByName, Problem, Section, build
from dinov3.configuration.yaml_files import ConfigFiles
from dinov3.errors import ExperimentError


class Colour(Enum):
    RED = "r"
    GREEN = "g"


@dataclass
class Pen(Section):
    colour: Annotated[Colour, ByName()] = Colour.RED
    width: float = 1.0


@dataclass
class Drawing(Section):
    pen: Pen = field(default_factory=Pen)
    second: Pen | None = None

    def problems(self) -> list[str]:
        problem = Problem(f"pen.width must be above 0, found {self.pen.width}", ["pen.width"])
        return [] if self.pen.width > 0 else [problem]


@pytest.fixture
def files(tmp_path: Path) -> ConfigFiles:
    (tmp_path / "packaged").mkdir()
    (tmp_path / "packaged" / "broad.yaml").write_text("pen:\n  width: 4.0\n  colour: GREEN\n")
    (tmp_path / "own.yaml").write_text("base: broad\nsecond:\n  width: 2\n")
    (tmp_path / "empty.yaml").touch()
    return ConfigFiles((tmp_path / "packaged",), keys="pen and second", example="pen.width=2")


def test_a_file_changes_its_base_and_overrides_change_both(files: ConfigFiles, tmp_path: Path):
    values = files.read(files.find(str(tmp_path / "own.yaml")), ["second.colour=GREEN"])
    assert build(Drawing, values, "own") == Drawing(Pen(Colour.GREEN, 4.0), Pen(Colour.GREEN, 2))
    assert build(Drawing, files.read(None, ["pen.width=3"]), "overrides") == Drawing(Pen(width=3))


def test_packaged_files_are_found_by_name(files: ConfigFiles, tmp_path: Path):
    assert files.names() == ["broad"] and files.find("broad") == tmp_path / "packaged" / "broad.yaml"
    with pytest.raises(ExperimentError, match=r"'brood' not found \(did you mean 'broad'\?\); allowed: .* broad"):
        files.find("brood")


def test_messages_name_the_keys_of_the_package(files: ConfigFiles, tmp_path: Path):
    with pytest.raises(ExperimentError, match="empty; a configuration has the keys pen and second"):
        files.read(tmp_path / "empty.yaml")
    with pytest.raises(ExperimentError, match=r"'pen' is not of the form key=value, such as pen.width=2"):
        files.read(None, ["pen"])
    with pytest.raises(ExperimentError, match=r"'pen=' is not of the form key=value \(the value is missing\), such as"):
        files.read(None, ["pen="])
    with pytest.raises(ExperimentError, match=r"the overrides pen.width=\S* do not fit broad.yaml: Interpolation key"):
        files.read(files.find("broad"), ["pen.width=${nothing}"])
    with pytest.raises(ExperimentError, match=r"the overrides pen.width=\S* cannot be read: Interpolation key"):
        files.read(None, ["pen.width=${nothing}"])


@pytest.mark.parametrize("section", ["pen", "second"])  # the second one may be None
def test_an_unknown_key_is_told_with_the_nearest(section: str):
    with pytest.raises(ExperimentError) as told:
        build(Drawing, {section: {"with": 3}}, "here")
    expected = f"here: unknown key {section}.with (value 3) (did you mean 'width'?); allowed: {section}.colour, "
    assert str(told.value) == f"{expected}{section}.width"


def test_all_problems_are_told_at_once():
    with pytest.raises(ExperimentError) as told:
        build(Drawing, {"pen": {"colour": "BLUE", "width": 0}, "second": 3}, "here")
    assert str(told.value).splitlines() == [
        "here has 3 problems:",
        "pen.colour: Input should be 'RED' or 'GREEN', found 'BLUE'",
        "second: Input should be a mapping, found 3",
        "pen.width must be above 0, found 0.0",
    ]


@pytest.mark.parametrize("pen", [{"width": "broad"}, 3])
def test_a_problem_of_a_value_that_is_wrong_in_itself_is_not_reported(pen: object, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Drawing, "problems", lambda self: [Problem("too broad", ["pen.width"]), "always"])
    with pytest.raises(ExperimentError) as told:
        build(Drawing, {"pen": pen}, "here")
    assert "too broad" not in str(told.value) and str(told.value).endswith("\nalways")
    with pytest.raises(ExperimentError, match="too broad"):
        build(Drawing, {"pen": {"with": 3}}, "here")  # an unknown key


def test_the_nearest_name_is_told_in_any_case():
    with pytest.raises(ExperimentError, match=r"found 'gren' \(did you mean 'GREEN'\?\)"):
        build(Drawing, {"pen": {"colour": "gren"}}, "here")
