"""Segmentation models: a pretrained ViT, frozen, with LoRA or fine-tuned, and a decoder."""
