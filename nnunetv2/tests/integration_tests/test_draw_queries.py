"""What the command `nnUNetv2_m2f_draw` refuses; its pictures are tested with the real data."""

import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pytest
import torch
from test_real_data import M2F, TINY

COMMAND, TRAINER = "nnUNetv2_m2f_draw", "nnUNetTrainer_m2f"
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def drawn(workplace):
    """A Mask2Former on the drawn data set."""
    place = workplace.with_results("m2f_draw")
    train = ("nnUNetv2_train_vit", "900", "2d", 0, "--config", "m2f_test_dinov3", "--name", "drawn", "-device", "cpu")
    place.run(*train, *TINY, *M2F, "train.patch_size=[64,64]", "train.batch_size=2")
    return place


@pytest.fixture
def model(drawn) -> Path:
    return drawn.results / "Dataset900_DemoFundus" / f"{TRAINER}__nnUNetPlans_drawn__2d"


@pytest.fixture
def image(drawn) -> Path:
    return sorted((drawn.raw / "Dataset900_DemoFundus" / "imagesTr").iterdir())[0]


@pytest.fixture
def refusal(drawn, model: Path, image: Path, tmp_path: Path) -> Refusal:
    """Run the command with some arguments changed; return the one sentence that it ends in."""

    def run(*more: object, **changed: object) -> str:
        folder = tmp_path / "output"
        folder.mkdir(exist_ok=True)
        arguments = {"m": model, "f": 0, "i": image, "o": folder / "picture.png", **changed}
        line = [word for name, value in arguments.items() for word in (f"-{name}", value)]
        result = drawn.attempt(COMMAND, *line, *more)
        assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
        assert not list(folder.iterdir())
        return result.stderr.strip().splitlines()[-1]

    return run


def test_wrong_arguments(refusal: Refusal, trained, drawn, tmp_path: Path):
    assert "is no folder of a trained model, there is no plans.json" in refusal(m=drawn.root)
    assert "there is no fold 3 in" in refusal(f=3) and refusal(f=3).endswith("found: 0")
    told = refusal("-chk", "checkpoint_other.pth")
    assert "there is no checkpoint_other.pth" in told and "checkpoint_best.pth, checkpoint_final.pth" in told
    assert refusal(i=tmp_path / "x_0000.png").endswith(f"-i: no such file: {tmp_path / 'x_0000.png'}")
    assert "--slice must be from 0 to 0" in refusal("--slice", 1)
    assert "--queries must be at least 1, found 0" in refusal("--queries", 0)
    assert "--truth: no such file" in refusal("--truth", tmp_path / "y.png")
    assert "is no file in a folder that exists" in refusal(o=tmp_path / "no" / "picture.png")
    other = next((trained.results / "Dataset900_DemoFundus").glob("nnUNetTrainer_vit__*one__2d"))
    assert "not a Mask2Former" in refusal(m=other)


def test_wrong_files(refusal: Refusal, image: Path, tmp_path: Path):
    text = tmp_path / "text_0000.webp"
    text.write_text("no image")
    assert "text_0000.webp must end in .png, as the images of the training do" in refusal(i=text)
    text = text.rename(tmp_path / "text_0000.png")
    assert "cannot read text_0000.png: " in refusal(i=text)
    pixels = matplotlib.image.imread(image)
    matplotlib.image.imsave(tmp_path / "truth.png", pixels[:-1])
    assert "--truth has the shape (1, 79, 80), the image (1, 80, 80)" in refusal("--truth", tmp_path / "truth.png")
    assert "-i: the model takes 3 channels, found 6" in refusal("-i", image, image)


def test_a_checkpoint_is_read_safely(refusal: Refusal, model: Path, tmp_path: Path):
    class Harm:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "harm",)

    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    torch.save({"network_weights": {"a": torch.zeros(1)}, "harm": Harm()}, copy / "fold_0" / "checkpoint_final.pth")
    assert "it holds Python objects" in refusal(m=copy)
    assert not (tmp_path / "harm").exists()
