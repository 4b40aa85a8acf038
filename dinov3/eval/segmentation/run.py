"""The command `dinov3_segmentation`: train or evaluate a segmentor as a configuration says.

Nothing heavy is imported before the configuration has been checked.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm.contrib.logging import logging_redirect_tqdm

from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.config import CONFIG_FILES, SegmentationConfig, read_config

if TYPE_CHECKING:
    from torch import nn

COMMAND = "dinov3_segmentation"
EPILOG = f"""\
examples:
  {COMMAND} config=config-ade20k-linear-training model.dino_hub=dinov3_vitl16 datasets.root=DATA output_dir=OUT
  {COMMAND} config=OUT/config.yaml load_from=OUT/checkpoint_best.pth eval_only=true output_dir=OUT/evaluation
  torchrun --nproc_per_node=4 -m dinov3.eval.segmentation.run config=mine.yaml n_gpus=4 output_dir=OUT

The same command again resumes a training that was interrupted.
packaged configurations: {", ".join(CONFIG_FILES.names())}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; end with one sentence and exit code 2 on what the user can put right.

    Args:
        arguments: the command line without the command's name; by default that of the process.
    """
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Train a linear head or Mask2Former on a ViT, or evaluate a trained one, on folders of images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="config=NAME_OR_YAML_FILE, and keys of the configuration, such as optimizer.lr=1e-4",
    )
    settings = parser.parse_args(arguments).settings
    files = [text.partition("=")[2] for text in settings if text.startswith("config=")]
    overrides = [text for text in settings if not text.startswith("config=")]
    if len(files) > 1:
        _refuse(f"config must be given once, found {' and '.join(files)}")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is loaded: spinning threads stall the loader
    logging.basicConfig(format="%(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")  # of timm's import
    try:
        with logging_redirect_tqdm():
            run_segmentation_with_dinov3(None, read_config(files[0] if files else None, overrides))
        leave_process_group()
    except ExperimentError as error:
        _refuse(str(error))


def run_segmentation_with_dinov3(backbone: "nn.Module | None", config: SegmentationConfig) -> dict[str, Any]:
    """Train a segmentor, or evaluate one.

    Args:
        backbone: the ViT; None: the one that `config.model` names.
        config: a checked configuration (see `read_config`). It decides between `evaluate_checkpoint` (`eval_only`),
            `train_segmentation` (`decoder_head.type: linear`) and `train_m2f_segmentation` (`m2f`).

    Returns:
        What `results.json` in `config.output_dir` holds.

    Raises:
        ExperimentError: the configuration, the images, the weights or the output folder do not fit.
    """
    if config.eval_only:
        from dinov3.eval.segmentation.eval import evaluate_checkpoint

        return evaluate_checkpoint(backbone, config)
    if config.decoder_head.type == "m2f":
        from dinov3.eval.segmentation.train_m2f import train_m2f_segmentation

        return train_m2f_segmentation(backbone, config)
    from dinov3.eval.segmentation.train import train_segmentation

    return train_segmentation(backbone, config)


def leave_process_group() -> None:
    """Leave the processes of `torchrun`, which warns of those that just end."""
    from accelerate import PartialState

    PartialState().destroy_process_group()


def _refuse(message: str) -> NoReturn:
    print(f"{COMMAND}: error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
