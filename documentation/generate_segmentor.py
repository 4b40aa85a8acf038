"""Write the figure of `dinov3`'s Mask2Former. A test keeps it in step with the code."""

from pathlib import Path

from drawing import svg
from segmentor_figure import mask2former

FIGURE = Path(__file__).resolve().parent / "dinov3" / "mask2former.svg"

if __name__ == "__main__":
    FIGURE.write_text(svg(mask2former()), encoding="utf-8")
