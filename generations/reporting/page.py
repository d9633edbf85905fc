"""One HTML page of a run: no network, and unless the run is large (see `gallery`) no other files.

Every text that comes from data goes through `html.escape`, or as JSON to a script that shows it
by textContent. The page's own script is the only one that its policy lets run.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from generations.reporting.curves import Curve, draw
from generations.reporting.gallery import Gallery, data_uri, extremes, framed, section
from generations.reporting.results import Results, Trace

ROUNDING = 1e-9  # of a figure; a deviation that is not larger is none
# figure -> (how papers call it, what it says)
FIGURES = {
    "cider_d": ("CIDEr-D", "agreement with people's captions; 1.2 is the “120” of papers"),
    "cider_d_human": (
        "CIDEr-D of people",
        "each image's first caption against its others: the scale to read CIDEr-D on",
    ),
    "bad_endings": ("bad endings", "share of captions that break off, as “a man with a” does"),
    "clip_score": ("CLIPScore", "agreement of pictures and their captions by CLIP, 0 to 250"),
    "bleu1": ("BLEU-1", "words in common"),
    "bleu2": ("BLEU-2", "word pairs in common"),
    "bleu3": ("BLEU-3", "word triples in common"),
    "bleu4": ("BLEU-4", "runs of four words in common"),
    "rouge_l": ("ROUGE-L", "longest common subsequence"),
    "meteor": ("METEOR", "words in common, with synonyms and stems"),
    "caption_clip_score": ("CLIPScore of captions", "agreement with their images by CLIP"),
    "ref_clip_score": ("RefCLIPScore", "the same, and agreement with people's captions"),
    "distinct1": ("distinct-1", "different words, as a share of all"),
    "distinct2": ("distinct-2", "different word pairs, as a share of all"),
    "vocabulary": ("vocabulary", "number of different words"),
    "novel": ("novel", "share of captions that no training image has"),
    "r_precision": ("R-precision", "pictures that find their caption among 100 by CLIP"),
    "r_precision_hard": ("R-precision, hard", "the same among captions with one word swapped"),
}

FAMILIES = {
    "r_precision_hard_": ("R-precision, hard:", "captions with one such word swapped"),
    "fid_": ("FID,", "distance to the real images' features; smaller is better"),
    "kid_": ("KID,", "the same, unbiased with few pictures; smaller is better"),
    "is_": ("IS,", "inception score; larger is better"),
    "precision_": ("precision,", "share of pictures that lie among the real ones"),
    "recall_": ("recall,", "share of real images that lie among the pictures"),
}

ASSETS = Path(__file__).parent / "assets"

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="$policy">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header>
<h1>$title</h1>
$navigation
</header>
$body
</main>
<script type="application/json" id="data">$data</script>
<script>$script</script>
</body>
</html>
""")


def render_page(
    title: str,
    results: Results,
    summary: dict[str, Any],
    curves: Sequence[Curve],
    config: str,
    gallery: Gallery,
    gallery_data: str,
    before: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """The page.

    Args:
        title: name of the run.
        results: what the run made.
        summary: the figures on top.
        curves: of training.
        config: the run's configuration, as text.
        gallery: the cards of both directions.
        gallery_data: JSON of `write_gallery`.
        before: figures of the stage-1 run that this run started from, as those of `results`.

    Returns:
        HTML.
    """
    sections = [
        ("metrics", "Metrics", _metrics(results.figures, before or {})),
        ("painted", "Caption → picture", section(gallery, "painted", "painted pictures")),
        ("steps", "Painting step by step", _traces(results.traces)),
        (
            "written",
            "Image → caption",
            section(gallery, "written", "written captions; in grey, what people wrote"),
        ),
        ("extremes", "Best and worst by CLIPScore", extremes(gallery)),
        ("curves", "Training", _curves(curves)),
        ("config", "Configuration", _config(config)),
    ]
    there = [part for part in sections if part[2]]
    links = "".join(f'<a href="#{key}">{heading}</a>' for key, heading, _ in there)
    body = [_tiles(summary), _notes(results.notes)]
    body += [f'<h2 id="{key}">{heading}</h2>\n{content}' for key, heading, content in there]
    script = (ASSETS / "gallery.js").read_text(encoding="utf-8")
    return PAGE.substitute(
        title=escape(title),
        policy=policy(script),
        style=(ASSETS / "report.css").read_text(encoding="utf-8"),
        navigation=f"<nav>{links}</nav>",
        body="\n".join(filter(None, body)),
        data=gallery_data,
        script=script,
    )


def policy(script: str) -> str:
    """A content security policy: embedded pictures, this script, and scripts that it loads."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}' 'strict-dynamic'"
    )


def number(value: Any) -> str:
    """A figure as text: counts whole, others with three digits behind the point or two in all."""
    if not isinstance(value, float):
        return escape(str(value))
    if value.is_integer() and abs(value) >= 10:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) >= 0.01 or not value else f"{value:.2g}"


def caption_of(figure: str) -> tuple[str, str]:
    """How a figure is called, and what it says; those of FIGURES may name a network or a kind."""
    if figure in FIGURES:
        return FIGURES[figure]
    for start, (text, what) in FAMILIES.items():
        if figure.startswith(start):
            return f"{text} {figure.removeprefix(start).replace('_', ' ')}", what
    return figure, ""


def duration(seconds: float) -> str:
    """3725 is "1 h 2 min", 125 is "2 min 5 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _tiles(summary: dict[str, Any]) -> str:
    shown = [
        (FIGURES[name][0], number(summary[name]))
        for name in ("cider_d", "cider_d_human", "bleu4", "clip_score")
        if name in summary
    ]
    counts = (
        ("captions_written", "captions written"),
        ("images_painted", "pictures painted"),
        ("iteration", "iterations trained"),
    )
    shown += [(text, f"{summary[name]:,}") for name, text in counts if summary.get(name)]
    if "seconds" in summary:
        shown.append(("from start to end", duration(summary["seconds"])))
    tiles = [f'<div class="tile"><b>{value}</b><span>{text}</span></div>' for text, value in shown]
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _notes(notes: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{lines}</ul>' if notes else ""


def _metrics(
    figures: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]]
) -> str:
    parts = []
    for group, values in sorted(figures.items()):
        earlier = before.get(group, {})
        rows = []
        if earlier:
            rows.append(
                '<tr><td></td><td class="number">stage 1</td><td class="number">this run</td>'
                "<td></td></tr>"
            )
        for name in sorted(values, key=_place):
            if name.endswith("_std") and name.removesuffix("_std") in values:
                continue
            text, what = caption_of(name)
            columns = [earlier, values] if earlier else [values]
            cells = "".join(f'<td class="number">{_spread(part, name)}</td>' for part in columns)
            rows.append(f'<tr><td>{escape(text)}</td>{cells}<td class="what">{what}</td></tr>')
        parts.append(
            f'<h3>{escape(group)}</h3><div class="wide"><table>{"".join(rows)}</table></div>'
        )
    return "".join(parts)


def _spread(values: Mapping[str, float], name: str) -> str:
    """A figure with its standard deviation, where there is one and it is more than rounding."""
    deviation, value = values.get(f"{name}_std"), values.get(name)
    text = number("" if value is None else value)
    if deviation is None or value is None or deviation <= ROUNDING * abs(value):
        return text
    return f"{text} ± {number(deviation)}"


def _place(figure: str) -> int:
    """Where a figure stands in the table: in the order of FIGURES, others after them."""
    return [*FIGURES].index(figure) if figure in FIGURES else len(FIGURES)


def _curves(curves: Sequence[Curve]) -> str:
    lines = [curve for curve in curves if len(curve.steps) > 1]
    figures = [
        f'<figure class="card"><figcaption>{escape(curve.name)}'
        f"<span>{curve.values[-1]:.4g}</span></figcaption>{draw(curve)}</figure>"
        for curve in lines
    ]
    rows = [
        f'<tr><td>{escape(curve.name)}</td><td class="number">{curve.values[0]:.4g}</td>'
        f'<td class="what">at {curve.steps[0]:,}</td></tr>'
        for curve in curves
        if len(curve.steps) == 1
    ]
    parts = []
    if figures:
        lead = "Against iterations; the last value at the right of each name."
        parts.append(f'<p class="lead">{lead}</p><div class="curves">{"".join(figures)}</div>')
    if rows:
        parts.append(
            f'<h3>measured once</h3><div class="wide"><table>{"".join(rows)}</table></div>'
        )
    return "".join(parts)


def _traces(traces: Sequence[Trace]) -> str:
    cards = []
    for trace in traces:
        last = len(trace.pictures)
        steps = [
            f'<div><span class="label">step {number} of {last}</span>{_step(path, trace, again)}'
            "</div>"
            for number, (path, again) in enumerate(zip(trace.pictures, trace.again, strict=True), 1)
        ]
        cards.append(
            f'<div class="card"><div class="strip">{"".join(steps)}</div>'
            f"<p>{escape(trace.caption)}</p></div>"
        )
    lead = (
        '<p class="lead">Pictures of the tokens after each step. Dark cells are those that the '
        "model is least certain of and draws again in the next step.</p>"
    )
    return f'{lead}<div class="steps">{"".join(cards)}</div>' if cards else ""


def _step(path: Path, trace: Trace, again: Sequence[int]) -> str:
    source = data_uri(path)
    if source is None:
        return '<div class="frame">unreadable</div>'
    return framed(source, again=again, grid_size=trace.grid_size)


def _config(config: str) -> str:
    return f"<details><summary>all keys</summary><pre>{escape(config)}</pre></details>"
