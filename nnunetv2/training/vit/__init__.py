"""What the trainers of ViT experiments add to nnU-Net's: optimizer, schedule, online metrics, loss curves."""
