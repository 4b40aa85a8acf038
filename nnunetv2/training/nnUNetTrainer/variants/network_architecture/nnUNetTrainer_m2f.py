"""The trainer under the path where nnU-Net keeps variants of architectures."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_m2f import nnUNetTrainer_m2f as nnUNetTrainer_m2f
