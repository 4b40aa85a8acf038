"""Train a ViT segmentation model in nnU-Net: the command `nnUNetv2_train_vit` as a script."""

import sys

try:
    from nnunetv2.run.run_training_vit import run_training_entry
except ImportError as error:
    sys.exit(f"nnUNetv2_train_vit.py: the project is not installed ({error}): run `pip install .`")

if __name__ == "__main__":
    run_training_entry()
