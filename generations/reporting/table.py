"""Table 1 of the paper from the runs of scripts/table1.sh, as markdown, HTML and LaTeX."""

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import mean, stdev

from generations.errors import UserError
from generations.reporting.results import read_figures

RUN = re.compile(r"(?P<name>\w+?_stage[12])_seed(?P<seed>\d+)")


@dataclass(frozen=True)
class Row:
    """A row of Table 1.

    Attributes:
        title: as in the paper.
        captions: the runs that write its captions.
        pictures: the runs that paint its pictures.
        published: figure -> the paper's, on its scale. What is not at hand is left out.
    """

    title: str
    captions: str
    pictures: str
    published: Mapping[str, float]


@dataclass(frozen=True)
class Column:
    """A figure. `name` may end in _*, for the evaluation network; `scale` makes it the papers'."""

    title: str
    name: str
    group: str
    scale: float
    digits: int


@dataclass(frozen=True)
class Cell:
    """A figure over the seeds, and the paper's.

    Attributes:
        value: mean.
        std: standard deviation; None of one seed.
        delta: mean difference to ours with the same seed, over the seeds that both have.
        delta_std: standard deviation of these differences; None of one seed.
        published: the paper's figure, if it is at hand.
    """

    value: float | None = None
    std: float | None = None
    delta: float | None = None
    delta_std: float | None = None
    published: float | None = None


@dataclass(frozen=True)
class Table:
    """Titles of the columns, and (title, seeds, cells) of each row."""

    columns: Sequence[Column]
    rows: Sequence[tuple[str, int, Sequence[Cell]]]


# Published: the paper's table, its release notes and a later paper's comparison (SPEC 11).
ROWS = (
    Row(
        "ours",
        "ours_stage2",
        "ours_stage2",
        {
            "bleu4": 37.3,
            "meteor": 28.2,
            "rouge_l": 57.9,
            "cider_d": 122.6,
            "fid_*": 29.9,
            "clip_score": 77.2,
        },
    ),
    Row("w/o unified architecture", "captions_only_stage2", "pictures_only_stage2", {}),
    Row("w/o two-level features: dense", "dense_stage2", "dense_stage2", {}),
    Row("w/o two-level features: discrete", "discrete_stage2", "discrete_stage2", {}),
    Row("w/o sequence-level training", "ours_stage1", "ours_stage1", {}),
    Row(
        "w/o CLIP-based loss",
        "no_clip_stage2",
        "no_clip_stage2",
        {"bleu4": 37.6, "meteor": 28.3, "rouge_l": 58.1, "cider_d": 122.5, "clip_score": 72.5},
    ),
)
COLUMNS = (
    Column("BLEU-4", "bleu4", "captions", 100, 1),
    Column("METEOR", "meteor", "captions", 100, 1),
    Column("ROUGE-L", "rouge_l", "captions", 100, 1),
    Column("CIDEr-D", "cider_d", "captions", 100, 1),
    Column("FID", "fid_*", "pictures", 1, 4),
    Column("CLIPScore", "clip_score", "pictures", 1, 1),
    Column("R-precision", "r_precision", "pictures", 100, 1),
    Column("R-precision, hard", "r_precision_hard", "pictures", 100, 1),
)


def gather_table(folder: Path) -> Table:
    """Gather the runs <row>_stage<1 or 2>_seed<n> in a folder, as many as are there.

    Raises:
        UserError: there is no such run with metrics.
    """
    found: dict[str, dict[int, dict[str, float]]] = {}  # run -> seed -> figures
    for path in sorted(folder.glob("*_seed*")):
        match = RUN.fullmatch(path.name)
        figures = read_figures(path) if match and path.is_dir() else {}
        if match and figures:
            flat = {
                name: value
                for group, part in figures.items()
                if group.endswith("_test")
                for name, value in part.items()
            }
            found.setdefault(match["name"], {})[int(match["seed"])] = flat
    if not found:
        raise UserError(
            f"{folder} has no finished runs of scripts/table1.sh; run that script first"
        )
    columns = [_named(column, found) for column in COLUMNS]
    rows = []
    for row in ROWS:
        cells = [
            _cell(row, column, published, found)
            for column, published in zip(columns, (part.name for part in COLUMNS), strict=True)
        ]
        seeds = max(len(found.get(run, {})) for run in (row.captions, row.pictures))
        rows.append((row.title, seeds, cells))
    return Table(columns, rows)


def _named(column: Column, found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> Column:
    """Fill in the evaluation network, which a title must name."""
    if not column.name.endswith("*"):
        return column
    start = column.name[:-1]
    names = {
        name
        for seeds in found.values()
        for figures in seeds.values()
        for name in figures
        if name.startswith(start) and not name.endswith("_std")
    }
    if not names:
        return column
    if len(names) > 1:
        raise UserError(
            f"the runs have different metrics, {' and '.join(sorted(names))}: evaluate all of them "
            "with the same eval_protocol"
        )
    name = names.pop()
    return Column(f"{column.title} ({name[len(start) :]})", name, column.group, 1, column.digits)


def _cell(
    row: Row,
    column: Column,
    published: str,
    found: Mapping[str, Mapping[int, Mapping[str, float]]],
) -> Cell:
    values = _by_seed(row, column, found)
    ours = {} if row is ROWS[0] else _by_seed(ROWS[0], column, found)
    differences = [value - ours[seed] for seed, value in values.items() if seed in ours]
    return Cell(
        *_mean_and_deviation([*values.values()]),
        *_mean_and_deviation(differences),
        row.published.get(published),
    )


def _by_seed(
    row: Row, column: Column, found: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> dict[int, float]:
    seeds = found.get(row.captions if column.group == "captions" else row.pictures, {})
    return {
        seed: figures[column.name] * column.scale
        for seed, figures in seeds.items()
        if column.name in figures
    }


def _mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    return mean(values) if values else None, stdev(values) if len(values) > 1 else None


# --- forms ---------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """A table of figures, and one of the differences to ours."""
    header = ["row", "seeds", *(column.title for column in table.columns)]
    lines = _markdown_rows(header, _lines(table, _figure))
    differences = _markdown_rows(header, _lines(table, _difference)[1:])
    published = _markdown_rows(["row", *(column.title for column in COLUMNS)], _published(table))
    return "\n".join(
        [
            *lines,
            "\nDifferences to ours with the same seed:\n",
            *differences,
            "\nPublished (COCO; FID by the original's network). Empty cells: not available.\n",
            *published,
            "",
        ]
    )


def to_html(table: Table, picture: bytes | None = None) -> str:
    """A page that needs nothing but itself; `picture` is a PNG to show under the tables."""
    parts = []
    header = ["row", "seeds", *(column.title for column in table.columns)]
    for title, head, rows in (
        ("Table 1", header, _lines(table, _figure)),
        ("Differences to ours with the same seed", header, _lines(table, _difference)[1:]),
        ("Published, on COCO", ["row", *(column.title for column in COLUMNS)], _published(table)),
    ):
        cells = "".join(f"<th>{escape(text)}</th>" for text in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows
        )
        parts.append(f"<h2>{escape(title)}</h2><table><tr>{cells}</tr>{body}</table>")
    if picture:
        source = f"data:image/png;base64,{b64encode(picture).decode()}"
        parts.append(f'<h2>Pictures and captions</h2><img alt="of each row" src="{source}">')
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:32px;color:#1c2430;background:#fff}"
        "table{border-collapse:collapse}td,th{padding:5px 14px 5px 0;text-align:right;"
        "border-bottom:1px solid #e2e5e9;white-space:nowrap}img{max-width:100%}"
        "td:first-child,th:first-child{text-align:left}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Table 1</title>'
        f"<style>{style}</style><body>{''.join(parts)}</body></html>\n"
    )


def to_latex(table: Table) -> str:
    """A tabular environment for booktabs."""
    header = ["", *(column.title for column in table.columns)]
    rows = [[row[0], *row[2:]] for row in _lines(table, _figure)]
    lines = [" & ".join(_latex(text) for text in row) + r" \\" for row in [header, *rows]]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex(text: str) -> str:
    special = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#"}
    return "".join(special.get(letter, letter) for letter in text).replace(" ± ", r" $\pm$ ")


def _lines(table: Table, form: Callable[[Cell, Column], str]) -> list[list[str]]:
    return [
        [
            title,
            str(seeds),
            *(form(cell, column) for cell, column in zip(cells, table.columns, strict=True)),
        ]
        for title, seeds, cells in table.rows
    ]


def _figure(cell: Cell, column: Column) -> str:
    return _spread(cell.value, cell.std, f".{column.digits}f")


def _difference(cell: Cell, column: Column) -> str:
    return _spread(cell.delta, cell.delta_std, f"+.{column.digits}f")


def _spread(value: float | None, std: float | None, form: str) -> str:
    if value is None:
        return ""
    return f"{value:{form}}" + ("" if std is None else f" ± {std:{form.removeprefix('+')}}")


def _published(table: Table) -> list[list[str]]:
    return [
        [title, *("" if cell.published is None else f"{cell.published:g}" for cell in cells)]
        for title, _, cells in table.rows
        if any(cell.published is not None for cell in cells)
    ]


def _markdown_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in [header, rule, *rows]]
