"""Configurations that change another one: the key `base` of a YAML file, and the command that prints the result."""

from pathlib import Path

import pytest
import yaml

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.schema import find_config, load_config, packaged_configs, read_values
from nnunetv2.run.train_experiment import schema_of
from nnunetv2.run.vit_info import run_info_entry
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(ExperimentError) as caught:
        read_values(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_says_in_what_it_differs_from_a_packaged_configuration(write):
    path = write("mine.yaml", "base: dpt\nmodel: {backbone: dinov2, decoder: {readout_type: add}}\ntrain: {seed: 3}\n")
    expected = read_values(find_config("dpt"))
    expected["model"]["backbone"] = "dinov2"
    expected["model"]["decoder"]["readout_type"] = "add"
    expected["train"]["seed"] = 3
    assert read_values(path) == expected
    assert load_config(ViTnnUNetConfig, str(path)).model.decoder["fusion_hidden_size"] == 256


def test_bases_have_bases_and_the_command_line_comes_last(write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    write("shared/common.yaml", "base: upernet\ntrain: {seed: 1, num_epochs: 5, patch_size: [64, 64]}\n")
    write("shared/narrow.yaml", "base: common.yaml\nmodel: {decoder: {hidden_size: 64}}\ntrain: {seed: 2}\n")
    path = write("mine.yaml", "base: shared/narrow.yaml\ntrain: {seed: 3, patch_size: [80, 96]}\n")
    monkeypatch.chdir("/")  # bases are looked for beside the file
    values = read_values(path, ["train.num_epochs=7"])
    assert values["model"]["model_path"] == "nnunetv2.model.model_upernet"
    assert values["model"]["decoder"]["hidden_size"] == 64 and "base" not in values
    train = {"seed": 3, "num_epochs": 7, "patch_size": [80, 96]}
    assert {key: values["train"][key] for key in train} == train
    by_path = write("other/mine.yaml", f"base: {tmp_path}/shared/narrow.yaml\n")
    assert read_values(by_path)["train"]["seed"] == 2


def test_interpolations_see_the_merged_values(write):
    write("base.yaml", "train: {num_epochs: 5, warmup_epochs: '${train.num_epochs}'}\n")
    path = write("mine.yaml", "base: base.yaml\ntrain: {num_epochs: 9}\n")
    assert read_values(path)["train"]["warmup_epochs"] == 9


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base: dptt", "mine.yaml: base: configuration 'dptt' not found (did you mean 'dpt'?)"),
        ("base: 3", "mine.yaml: base must be a packaged configuration or a path to a YAML file, found 3"),
        ("base: [dpt]", "found ['dpt']"),
        ("base: mine.yaml", "mine.yaml: base must not lead back to a file that is based on it, found 'mine.yaml'"),
        ("base: second.yaml", "second.yaml: base must not lead back to a file that is based on it, found './mine"),
        ("base: broken.yaml", "broken.yaml as YAML"),
        ("base: empty.yaml", "empty.yaml is empty"),
        ("base: ${nothing}", "mine.yaml: base: configuration '${nothing}' not found"),
        ("base: ???", "mine.yaml: base: configuration '???' not found"),
    ],
)
def test_what_is_wrong_with_a_base_is_told_in_one_sentence(write, text: str, told: str):
    write("second.yaml", "base: ./mine.yaml\n")
    write("broken.yaml", "model: [\n")
    write("empty.yaml", "")
    assert told in refusal(write("mine.yaml", text))


def test_a_key_of_a_base_is_checked_as_the_files_own(write):
    write("base.yaml", "model: {backbon: dinov2}\n")
    path = write("mine.yaml", "base: base.yaml\ntrain: {seed: 3}\n")
    with pytest.raises(ExperimentError, match=r"unknown key model\.backbon .*'dinov2'.*did you mean 'backbone'"):
        load_config(ViTnnUNetConfig, str(path))


@pytest.mark.parametrize("name", packaged_configs())
def test_the_command_prints_a_configuration_merged_with_its_bases(name: str, capsys, write):
    run_info_entry(["--config", name])
    path = write("printed.yaml", capsys.readouterr().out)
    values = yaml.safe_load(path.read_text())
    assert values == read_values(find_config(name)) and "base" not in values
    schema = schema_of(values["trainer"])
    assert load_config(schema, str(path)) == load_config(schema, name)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base: dpt\ntrain: {epochs: 3}\n", "unknown key train.epochs (value 3)"),
        ("base: dpt\ntrain: [1]\n", "does not fit its base 'dpt'"),
        ("base: dpt\nmodel: {decoder: {features: 32}}\n", "unknown key model.decoder.features (value 32)"),
        ("trainer: 5\n", "trainer must name the trainer class, which decides on the keys that are allowed"),
    ],
)
def test_the_command_prints_no_wrong_configuration(text: str, told: str, capsys, write):
    with pytest.raises(SystemExit) as stop:
        run_info_entry(["--config", str(write("mine.yaml", text))])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == "" and told in captured.err and captured.err.count("\n") == 1


def test_the_command_takes_a_configuration_or_a_file_of_weights(capsys):
    with pytest.raises(SystemExit) as stop:
        run_info_entry(["weights.pth", "--config", "dpt"])
    assert stop.value.code == 2 and "--config" in capsys.readouterr().err
