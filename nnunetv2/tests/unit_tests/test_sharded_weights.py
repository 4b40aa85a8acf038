"""Weights in a folder, in one file or in shards with an index, as Hugging Face saves them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from raw_weights import meta_dinov3, origin
from safetensors.torch import save_file

from dinov3.hub.backbones import dinov3_vits16
from dinov3.weights.layouts import read_weights
from dinov3.weights.reading import read_checkpoint
from nnunetv2.experiment.plans import as_stored
from nnunetv2.experiment.schema import build
from nnunetv2.model.backbone import create_backbone
from nnunetv2.run.vit_info import run_info_entry
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig

INDEX = "model.safetensors.index.json"
RAW = origin("DINOv3, Hugging Face").make()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of shards, written by Hugging Face's own function."""
    folder = tmp_path / "dinov3"
    folder.mkdir()
    save_torch_state_dict(RAW.content, folder, max_shard_size="300KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def change_index(folder: Path, **places: object) -> None:
    """Change the shards that the index names for tensors; dots in names are written as double underscores."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"].update({name.replace("__", "."): place for name, place in places.items()})
    (folder / INDEX).write_text(json.dumps(index))


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=f"cannot read {path}") as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("named", [".", INDEX])
def test_shards_hold_what_one_file_holds(folder: Path, named: str):
    sharded = read_weights(folder / named)
    whole = read_weights(RAW.save(folder.parent / "whole.safetensors"))
    assert sharded.layout == whole.layout and sharded.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(value, whole.tensors[name]) for name, value in sharded.tensors.items())


def test_a_backbone_of_shards_has_the_features_of_their_source(folder: Path):
    image = torch.rand(1, 3, 48, 48)
    backbone = create_backbone("dinov3", "tiny", checkpoint_path=folder)[0].eval()
    with torch.no_grad():
        found = backbone.forward_intermediates(image, indices=[3], norm=True, intermediates_only=True)[0]
        assert torch.allclose(found, RAW.last_features(image), atol=1e-4)


def test_a_folder_with_a_single_file_is_read(tmp_path: Path):
    RAW.save(tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path).keys() == RAW.content.keys()


def test_links_as_in_the_cache_of_the_hub_are_read(folder: Path):
    blobs = folder.parent / "blobs"
    shutil.move(folder, blobs)
    folder.mkdir()
    for blob in blobs.iterdir():
        (folder / blob.name).symlink_to(Path("..") / "blobs" / blob.name)
    assert read_checkpoint(folder).keys() == RAW.content.keys()


def test_the_model_of_the_hub_module_reads_shards(tmp_path: Path):
    model = dinov3_vits16(pretrained=False, embed_dim=96, depth=4, num_heads=3)
    state = {name: torch.rand_like(value) for name, value in model.state_dict().items() if "periods" not in name}
    save_torch_state_dict({**model.state_dict(), **state}, tmp_path, max_shard_size="300KB")
    loaded = dinov3_vits16(weights=tmp_path, embed_dim=96, depth=4, num_heads=3)
    assert torch.equal(loaded.state_dict()["blocks.3.mlp.fc2.weight"], state["blocks.3.mlp.fc2.weight"])


@pytest.mark.integration
def test_the_info_command_tells_what_a_folder_is(folder: Path, capsys):
    run_info_entry([str(folder)])
    told = capsys.readouterr().out
    assert f"{folder}: DINOv3 (Hugging Face), 62 tensors" in told
    assert f"fits: model.backbone=dinov3 model.backbone_size=tiny model.checkpoint_path={folder}" in told


def test_a_missing_shard_is_named(folder: Path):
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"its shard {shard.name!r} is missing" in refusal(folder)


@pytest.mark.parametrize(("length", "told"), [(0, "it is empty"), (-100, ""), (5, "")])
def test_a_damaged_shard_is_named(folder: Path, length: int, told: str):
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:length])
    assert f"its shard {shard.name!r} cannot be read: {told}" in refusal(folder)


def test_a_tensor_that_is_not_in_its_shard_is_named(folder: Path):
    change_index(folder, no__such__tensor=sorted(folder.glob("*.safetensors"))[0].name)
    assert "lacks 1 of its tensors, such as no.such.tensor" in refusal(folder)


def test_a_tensor_that_the_index_does_not_name_is_not_dropped(folder: Path):
    shard = sorted(folder.glob("*.safetensors"))[0]
    save_file({**read_checkpoint(shard), "extra.weight": torch.zeros(1)}, shard)
    assert "extra.weight" in read_checkpoint(folder)


def test_of_a_tensor_in_two_shards_the_named_one_is_taken(folder: Path):
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    content = read_checkpoint(first)
    name, value = next(iter(content.items()))
    save_file({**read_checkpoint(second), name: value + 1}, second)
    assert torch.equal(read_checkpoint(folder)[name], value)


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/passwd", "a/../b", "..", ".", "", "a\\b", 3, None])
def test_shards_stand_beside_their_index(folder: Path, place: object):
    save_file({"secret": torch.zeros(1)}, folder.parent / "secret.safetensors")
    change_index(folder, secret=place)
    assert f"its shards must be names of files beside it, found {place!r}" in refusal(folder)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it is not valid JSON"),
        ("{", "it is not valid JSON"),
        ("[" * 100_000, "it is not valid JSON"),
        ("[]", "it has no weight_map"),
        ("{}", "it has no weight_map"),
        ('{"weight_map": {}}', "it has no weight_map"),
        ('{"weight_map": ["a"]}', "it has no weight_map"),
    ],
)
def test_a_damaged_index_is_told(folder: Path, text: str, told: str):
    (folder / INDEX).write_text(text)
    assert told in refusal(folder)


def test_a_folder_without_weights_names_the_files(tmp_path: Path):
    told = "a folder of weights holds model.safetensors or model.safetensors.index.json, this one holds"
    assert f"{told} neither" in refusal(tmp_path)
    for name in ("model.safetensors", INDEX):
        (tmp_path / name).touch()
    assert f"{told} both; pass one of them" in refusal(tmp_path)


def test_what_does_not_fit_is_told_of_a_folder_as_of_a_file(tmp_path: Path):
    raw = meta_dinov3()
    raw.content["extra.weight"] = torch.zeros(1)
    save_torch_state_dict(raw.content, tmp_path, max_shard_size="300KB")
    with pytest.raises(ValueError, match=r"1 unknown tensor: extra\.weight"):
        create_backbone("dinov3", "tiny", checkpoint_path=tmp_path)


def test_the_plans_name_a_linked_index_itself(tmp_path: Path):
    """In the hub's cache an index is a link into a folder of blobs, where its shards are not."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0123").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    index.symlink_to(tmp_path / "blobs" / "0123")
    model = {"backbone_size": "tiny", "checkpoint_path": str(index)}
    assert as_stored(build(ViTnnUNetConfig, {"model": model}, "test"))["model"]["checkpoint_path"] == str(index)
