"""The command `nnUNetv2_train_m2f` as a module."""

from nnunetv2.run.training_commands import train_m2f as run_training_entry

if __name__ == "__main__":
    run_training_entry()
