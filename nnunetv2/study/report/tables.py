"""Tables of text with the values to sort by, and what they look like in Markdown and LaTeX."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: what it shows.
        value: what to sort by; None: by the text.
        strong: whether it is emphasised.
    """

    text: str
    value: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: as an identifier.
        title: heading.
        note: what its numbers are.
        header: of the columns.
        rows: of cells, as many as there are columns.
    """

    name: str
    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def number(value: float, digits: int = 3) -> Cell:
    """Return a number with so many digits after the point; a dash for NaN."""
    if value is None or math.isnan(value):
        return Cell("–", math.nan)
    return Cell(f"{value:.{digits}f}".replace("-", "−"), float(value))


def significant(value: float, digits: int = 3) -> Cell:
    """Return a number with so many significant digits, without an exponent."""
    if value is None or math.isnan(value):
        return Cell("–", math.nan)
    places = 0 if value == 0 else max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return Cell(f"{value:,.{min(places, 6)}f}".replace("-", "−"), float(value))


def interval(mean: float, low: float, high: float, digits: int = 3) -> Cell:
    """Return a mean with its interval in brackets."""
    if math.isnan(mean):
        return number(mean)
    if math.isnan(low):
        return number(mean, digits)
    texts = [number(value, digits).text for value in (mean, low, high)]
    return Cell(f"{texts[0]} [{texts[1]}, {texts[2]}]", float(mean))


def probability(p: float) -> Cell:
    """Return a p-value as it is usually given."""
    if math.isnan(p):
        return number(p)
    return Cell("< 0.001" if p < 0.001 else f"{p:.3f}", float(p), p < 0.05)


def to_markdown(table: Table) -> str:
    """Return the table as one of GitHub's Markdown."""
    lines = [f"| {' | '.join(table.header)} |", "|" + " --- |" * len(table.header)]
    for row in table.rows:
        texts = [f"**{cell.text}**" if cell.strong else cell.text for cell in row]
        lines.append(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |")
    return "\n".join(lines)


def to_latex(table: Table, label: str) -> str:
    """Return the table as LaTeX with booktabs, no wider than the text."""
    columns = "l" + "r" * (len(table.header) - 1)
    lines = [
        "% needs \\usepackage{booktabs, adjustbox}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{_escaped(table.title)}. {_escaped(table.note)}}}",
        f"  \\label{{{_NO_LABEL.sub('-', label)}}}",
        "  \\begin{adjustbox}{max width=\\textwidth}",
        f"  \\begin{{tabular}}{{{columns}}}",
        "    \\toprule",
        f"    {' & '.join(_escaped(name) for name in table.header)} \\\\",
        "    \\midrule",
    ]
    for row in table.rows:
        texts = [f"\\textbf{{{_escaped(cell.text)}}}" if cell.strong else _escaped(cell.text) for cell in row]
        lines.append(f"    {' & '.join(texts)} \\\\")
    return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "  \\end{adjustbox}", "\\end{table}", ""])


_NO_LABEL = re.compile(r"[^\w.:-]+", re.ASCII)  # what LaTeX may not take in a label
_LATEX = {
    "\\": r"\textbackslash{}",
    "−": "$-$",
    "–": "--",
    "×": r"$\times$",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "²": "$^2$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
