"""What the queries of a trained Mask2Former see in an image, as a picture."""
