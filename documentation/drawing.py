"""Boxes and arrows as SVG: the figures of the decoders' data flow (see `decoder_figures`)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

COLUMN, ROW, GAP, MARGIN = 216, 92, 24, 12
LINE, PADDING, FONT_SIZE = 17, 9, 13
# no glyph of a common sans serif font is wider on average over a line of ours
CHARACTER = 7.3
COLOURS = {"features": "#dbe8f6", "step": "#ffffff", "option": "#fbf3dc", "result": "#ddefdd"}


@dataclass(frozen=True)
class Box:
    """A step of the data flow.

    Attributes:
        column: left end, in columns.
        row: row, may be between two.
        title: what is done, one or more lines.
        shape: shape of the result, without the batch, as `D × 2h × 2w`.
        source: what has this shape: the dotted name of a submodule, with `:input` its input, `image`, `features.<i>`
            (what the decoder gets), `queries.<name>` or `logits`.
        width: in columns.
        kind: `features`, `step`, `option` or `result`: the colour.
        variant: the variant of the decoder in which the box exists; empty: in all.
    """

    column: float
    row: float
    title: str
    shape: str
    source: str
    width: float = 1
    kind: str = "step"
    variant: str = ""

    @property
    def lines(self) -> list[str]:
        """The lines of text."""
        return [*self.title.split("\n"), self.shape]

    @property
    def left(self) -> float:
        """x of the left edge."""
        return MARGIN + self.column * COLUMN

    @property
    def right(self) -> float:
        """x of the right edge."""
        return self.left + self.width * COLUMN - GAP

    @property
    def height(self) -> float:
        """Height in pixels."""
        return len(self.lines) * LINE + 2 * PADDING - 2

    @property
    def middle(self) -> float:
        """y of the centre."""
        return MARGIN + self.row * ROW + ROW / 2

    @property
    def top(self) -> float:
        """y of the upper edge."""
        return self.middle - self.height / 2

    @property
    def bottom(self) -> float:
        """y of the lower edge."""
        return self.middle + self.height / 2


@dataclass(frozen=True)
class Figure:
    """A data flow.

    Attributes:
        boxes: by name.
        arrows: pairs of names, from and to.
        module: dotted name of the decoder's module.
        variants: options of the decoder, by the name of the variant.
    """

    boxes: dict[str, Box]
    arrows: list[tuple[str, str]]
    module: str
    variants: dict[str, dict] = field(default_factory=lambda: {"": {}})


def svg(figure: Figure) -> str:
    """Draw a figure.

    Raises:
        ValueError: a text is too long for its box.
    """
    boxes = figure.boxes
    width = max(box.right for box in boxes.values()) + MARGIN
    height = max(box.bottom for box in boxes.values()) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="DejaVu Sans, Verdana, Helvetica, sans-serif" font-size="{FONT_SIZE}">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#444"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
    ]
    parts.extend(_arrow(boxes[start], boxes[end]) for start, end in figure.arrows)
    for box in boxes.values():
        parts.extend(_box(box))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _box(box: Box) -> Iterator[str]:
    width = box.right - box.left
    yield (
        f'<rect x="{box.left:g}" y="{box.top:g}" width="{width:g}" height="{box.height:g}" rx="5" '
        f'fill="{COLOURS[box.kind]}" stroke="#444"/>'
    )
    for i, line in enumerate(box.lines):
        if len(line) * CHARACTER > width:
            raise ValueError(f"{line!r} is too long for its box of {width:g} pixels")
        is_shape = i == len(box.lines) - 1
        style = 'fill="#1f4e79" font-weight="bold"' if is_shape else 'fill="#111"'
        y = box.top + PADDING + LINE * i + FONT_SIZE - 1
        yield f'<text x="{(box.left + box.right) / 2:g}" y="{y:g}" text-anchor="middle" {style}>{escape(line)}</text>'


def _arrow(start: Box, end: Box) -> str:
    """Straight down where the boxes overlap, sideways on the same row, else down and then sideways."""
    low, high = max(start.left, end.left), min(start.right, end.right)
    sideways = end.right if end.left < start.left else end.left
    if start.row == end.row:
        points = [(start.left if end.left < start.left else start.right, start.middle), (sideways, end.middle)]
    elif low < high:
        points = [((low + high) / 2, start.bottom), ((low + high) / 2, end.top)]
    else:
        centre = (start.left + start.right) / 2
        points = [(centre, start.bottom), (centre, end.middle), (sideways, end.middle)]
    path = " L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path d="M{path}" fill="none" stroke="#444" stroke-width="1.4" marker-end="url(#tip)"/>'
