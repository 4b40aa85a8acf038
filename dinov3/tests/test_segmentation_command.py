"""The command `dinov3_segmentation`: what it refuses, and where it goes."""

import json
from pathlib import Path

import pytest
import yaml
from training_cases import tiny_values, write_images

from dinov3.eval.segmentation import eval as evaluation
from dinov3.eval.segmentation import run, train, train_m2f
from dinov3.eval.segmentation.config import config_from
from dinov3.eval.segmentation.run import main, run_segmentation_with_dinov3


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A YAML file of a tiny linear training."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values(tmp_path)))
    return f"config={path}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["optimiser.lr=1"], "unknown key optimiser"),
        (["optimiser.lr=1"], "did you mean 'optimizer'?"),
        (["decoder_head.type=unet"], "decoder_head.type: Input should be 'm2f' or 'linear', found 'unet'"),
        (["decoder_head.type=m2f"], "decoder_head.backbone_out_layers: Mask2Former"),
        (["eval_only=true"], "eval_only needs load_from"),
        (["bs"], "override 'bs' is not of the form key=value"),
        (["config=other.yaml"], "config must be given once"),
        (["n_gpus=2"], "torchrun --nproc_per_node=2"),
        (["datasets.root=nowhere"], "datasets.root: there is no folder 'nowhere'"),
        ([], "no data set was recognised below"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(
    config: str, arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit) as stopped:
        main([config, *arguments])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in message
    assert "dinov3_segmentation: error: " in message and expected in message, message
    assert not any(tmp_path.rglob("*.pth"))


def test_a_configuration_that_is_not_there(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stopped:
        main(["config=config-ade20k-linear"])
    assert stopped.value.code == 2 and "did you mean 'config-ade20k-linear-training'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "module", "function"),
    [
        ({}, train, "train_segmentation"),
        (
            {"decoder_head": {"type": "m2f", "backbone_out_layers": "FOUR_LAST"}},
            train_m2f,
            "train_m2f_segmentation",
        ),
        ({"eval_only": True, "load_from": __file__}, evaluation, "evaluate_checkpoint"),
    ],
)
def test_the_configuration_decides_what_runs(
    tmp_path: Path, changes: dict, module: object, function: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, function, lambda backbone, config: {function: backbone})
    assert run_segmentation_with_dinov3("a ViT", config_from(tiny_values(tmp_path, **changes))) == {function: "a ViT"}


@pytest.mark.integration
def test_training_and_evaluation_by_the_command_agree(config: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    write_images(tmp_path, 4)
    small = [config, "scheduler.total_iter=2", "scheduler.constructor_kwargs.warmup_iters=1"]
    main([*small])
    trained, again = json.loads((tmp_path / "run/results.json").read_text()), tmp_path / "again"
    assert trained["step"] == 2 and trained["num_images"] == 2
    main([*small])  # finished: nothing is trained
    assert len((tmp_path / "run/losses.jsonl").read_text().splitlines()) == 2
    main([*small, "eval_only=true", f"load_from={tmp_path / 'run/checkpoint_final.pth'}", f"output_dir={again}"])
    evaluated = json.loads((again / "results.json").read_text())
    assert (evaluated["metrics"], evaluated["per_class"]) == (trained["metrics"], trained["per_class"])
    with pytest.raises(SystemExit):
        main([*small, "bs=1"])
    assert "differs in bs (2 there, now 1)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*small, "eval_only=true", f"load_from={tmp_path / 'run/checkpoint_best.pth'}"])
    assert (tmp_path / "run/results.json").read_text() == json.dumps(trained, indent=2, ensure_ascii=False) + "\n"
    (tmp_path / "run/results.json").unlink()
    with pytest.raises(SystemExit):
        main([*small])
    assert "of a finished training cannot be read" in capsys.readouterr().err


def test_the_help_names_the_packaged_configurations(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stopped:
        run.main(["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and "config-ade20k-m2f-training" in shown and "torchrun" in shown
