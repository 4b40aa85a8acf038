"""Train Mask2Former on a ViT in nnU-Net: the command `nnUNetv2_train_m2f` as a script."""

import sys

try:
    from nnunetv2.run.run_training_m2f import run_training_entry
except ImportError as error:
    print(
        f"nnUNetv2_train_m2f.py: error: the project is not installed ({error}): run `pip install .`",
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    run_training_entry()
