"""The page and the Markdown file of a report."""

import base64
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from nnunetv2.study.report.draw import Drawn
from nnunetv2.study.report.tables import Table, to_markdown

PAGE = "report.html"
DPI, NARROWEST = 130, 620  # pixels of a figure in a narrow window, where it can be scrolled


@dataclass(frozen=True)
class Content:
    """What page and Markdown file say.

    Attributes:
        name: of the comparison.
        subtitle: data set, folds, date.
        missing: sentences on runs that are missing or failed.
        warnings: sentences that a reader must know before the numbers.
        tables: the main one first.
        figures: in their order, written already.
        methods: the paragraph.
        definitions: of the metrics: label and sentence.
    """

    name: str
    subtitle: str
    missing: list[str]
    warnings: list[str]
    tables: list[Table]
    figures: list[Drawn]
    methods: str
    definitions: list[tuple[str, str]]


def write_page(content: Content, folder: Path) -> None:
    """Write `report.html`, with the figures of the folder in it, and `report.md`."""
    (folder / PAGE).write_text(_html(content, folder), encoding="utf-8")
    (folder / "report.md").write_text(_markdown(content), encoding="utf-8")


def _html(content: Content, folder: Path) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    figures = [
        {
            "name": drawn.name,
            "title": drawn.title,
            "caption": drawn.caption,
            "png": base64.b64encode((folder / "figures" / f"{drawn.name}.png").read_bytes()).decode(),
            "width": round(drawn.figure.get_figwidth() * 100),
            "height": round(drawn.figure.get_figheight() * 100),
        }
        for drawn in content.figures
    ]
    return template.render(**{**vars(content), "figures": figures, "narrowest": NARROWEST})


def _markdown(content: Content) -> str:
    parts = [f"# {content.name}", content.subtitle]
    for title, sentences in (
        ("Missing or failed runs", content.missing),
        ("Before you read the numbers", content.warnings),
    ):
        if sentences:
            parts += [f"**{title}**", "\n".join(f"- {sentence}" for sentence in sentences)]
    main, *others = content.tables
    parts += [f"## {main.title}", main.note, to_markdown(main)]
    for drawn in content.figures:
        parts += [f"## {drawn.title}", f"![{drawn.title}](figures/{drawn.name}.png)", drawn.caption]
    for table in others:
        parts += [f"## {table.title}", table.note, to_markdown(table)]
    parts += ["## Methods", content.methods]
    parts += ["\n".join(f"- **{label}**: {definition}" for label, definition in content.definitions)]
    return "\n\n".join(parts) + "\n"
