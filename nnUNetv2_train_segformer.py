"""Train SegFormer on a ViT in nnU-Net: the command `nnUNetv2_train_segformer` as a script."""

import sys

try:
    from nnunetv2.run.run_training_segformer import run_training_entry
except ImportError as error:
    print(
        f"nnUNetv2_train_segformer.py: error: the project is not installed ({error}): run `pip install .`",
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    run_training_entry()
