"""The command `nnUNetv2_train_vit` as a module."""

from nnunetv2.run.training_commands import train_vit as run_training_entry

if __name__ == "__main__":
    run_training_entry()
