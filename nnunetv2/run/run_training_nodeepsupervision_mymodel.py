"""The command `nnUNetv2_train_nodeepsupervision_mymodel` as a module."""

from nnunetv2.run.training_commands import train_mymodel as run_training_entry

if __name__ == "__main__":
    run_training_entry()
