"""Train the UperNet baseline in nnU-Net: the command `nnUNetv2_train_nodeepsupervision_mymodel` as a script."""

import sys

try:
    from nnunetv2.run.run_training_nodeepsupervision_mymodel import run_training_entry
except ImportError as error:
    print(
        "nnUNetv2_train_nodeepsupervision_mymodel.py: error: the project is not installed "
        f"({error}): run `pip install .`",
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    run_training_entry()
