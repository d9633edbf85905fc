"""One HTML page of a run that needs nothing but itself: no network, no other files, no scripts.

Every text that comes from data goes through `html.escape`.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from generations.reporting.curves import Curve, draw
from generations.reporting.pictures import data_uri
from generations.reporting.results import Painting, Results, Writing

# figure -> (how papers call it, what it says)
FIGURES = {
    "cider_d": ("CIDEr-D", "agreement with people's captions; 1.2 is the “120” of papers"),
    "cider_d_human": (
        "CIDEr-D of people",
        "each image's first caption against its others: the scale to read CIDEr-D on",
    ),
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

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #ffffff; --ink: #1c2430;
  --faint: #667180; --line: #e2e5e9; --accent: #2f6fb0; --note: #fff6e0; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1c2027; --ink: #e4e7eb;
  --faint: #97a1ae; --line: #313740; --accent: #6aa9e9; --note: #33290f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 4px; }
h3 { font-size: 14px; margin: 20px 0 6px; color: var(--faint); font-weight: 600; }
.lead { color: var(--faint); margin: 2px 0 14px; }
nav { margin-top: 8px; } nav a { color: var(--accent); margin-right: 16px; text-decoration: none; }
nav a:hover { text-decoration: underline; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 22px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 18px; min-width: 132px; }
.tile b { display: block; font-size: 24px; line-height: 1.25; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--faint); font-size: 13px; }
.notes { background: var(--note); border-radius: 8px; padding: 10px 18px; margin: 20px 0 0;
  list-style: none; }
table { border-collapse: collapse; }
td { padding: 5px 28px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; font-weight: 600; }
td.what { color: var(--faint); }
.grid, .curves { display: grid; gap: 16px; }
.curves { grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); }
.grid { grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px; margin: 0; overflow-wrap: anywhere; }
.curves .card { padding: 10px 8px 4px; }
.curves figcaption { font-size: 13px; font-weight: 600; padding: 0 6px 4px; display: flex;
  justify-content: space-between; }
.curves figcaption span { color: var(--faint); font-weight: 400; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 10.5px; fill: var(--faint); } svg .end { text-anchor: end; }
svg .mid { text-anchor: middle; } svg .rule { stroke: var(--line); }
svg .curve { fill: none; stroke: var(--accent); stroke-width: 1.6; stroke-linejoin: round; }
svg .last { fill: var(--accent); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; }
.pair div > span { display: block; color: var(--faint); font-size: 12px; margin-bottom: 3px; }
img, .absent { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  border-radius: 4px; background: var(--line); }
.absent { display: grid; place-items: center; color: var(--faint); font-size: 13px; }
.card p { margin: 10px 2px 0; }
.side { display: grid; grid-template-columns: 140px 1fr; gap: 14px; align-items: start; }
.side p { margin: 0 0 8px; font-weight: 600; }
.side ul { margin: 0; padding: 0; list-style: none; color: var(--faint); font-size: 13px; }
.side li { margin-bottom: 3px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px;
  overflow: auto; font: 13px/1.45 ui-monospace, monospace; }
summary { cursor: pointer; color: var(--accent); margin-top: 8px; }
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
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
</body>
</html>
""")


def render_page(
    title: str,
    results: Results,
    summary: dict[str, Any],
    curves: Sequence[Curve],
    config: str,
    most: int,
    before: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """The page.

    Args:
        title: name of the run.
        results: what the run made.
        summary: the figures on top.
        curves: of training.
        config: the run's configuration, as text.
        most: cards in each direction's gallery.
        before: figures of the stage-1 run that this run started from, as those of `results`.

    Returns:
        HTML.
    """
    sections = [
        ("metrics", "Metrics", _metrics(results.figures, before or {})),
        ("curves", "Training", _curves(curves)),
        ("painted", "Caption → picture", _paintings(results.paintings, most)),
        ("written", "Image → caption", _writings(results.writings, most)),
        ("config", "Configuration", _config(config)),
    ]
    there = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{heading}</a>' for key, heading, _ in there)
    body = [_tiles(summary), _notes(results.notes)]
    body += [f'<h2 id="{key}">{heading}</h2>\n{content}' for key, heading, content in there]
    return PAGE.substitute(
        title=escape(title),
        style=STYLE,
        navigation=f"<nav>{links}</nav>",
        body="\n".join(filter(None, body)),
    )


def number(value: Any) -> str:
    """A figure as text: counts whole, others with three digits behind the point."""
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))


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
        for name, value in sorted(values.items(), key=lambda item: _place(item[0])):
            text, what = FIGURES.get(name, (name, ""))
            rows.append(
                f"<tr><td>{escape(text)}</td>"
                + (f'<td class="number">{number(earlier.get(name, ""))}</td>' if earlier else "")
                + f'<td class="number">{number(value)}</td>'
                f'<td class="what">{what}</td></tr>'
            )
        parts.append(f"<h3>{escape(group)}</h3><table>{''.join(rows)}</table>")
    return "".join(parts)


def _place(figure: str) -> int:
    """Where a figure stands in the table: in the order of FIGURES, others after them."""
    return [*FIGURES].index(figure) if figure in FIGURES else len(FIGURES)


def _curves(curves: Sequence[Curve]) -> str:
    figures = [
        f'<figure class="card"><figcaption>{escape(curve.name)}'
        f"<span>{curve.values[-1]:.4g}</span></figcaption>{draw(curve)}</figure>"
        for curve in curves
    ]
    lead = '<p class="lead">Against iterations; the last value at the right of each name.</p>'
    return f'{lead}<div class="curves">{"".join(figures)}</div>' if figures else ""


def _paintings(paintings: Sequence[Painting], most: int) -> str:
    cards = [
        f'<div class="card"><div class="pair"><div><span>painted</span>{_picture(item.painted)}'
        f"</div><div><span>real</span>{_picture(item.real)}</div></div>"
        f"<p>{escape(item.caption)}</p></div>"
        for item in paintings[:most]
    ]
    return _gallery(cards, len(paintings), "painted pictures")


def _writings(writings: Sequence[Writing], most: int) -> str:
    cards = []
    for item in writings[:most]:
        others = "".join(f"<li>{escape(text)}</li>" for text in item.references)
        cards.append(
            f'<div class="card side">{_picture(item.image)}<div>'
            f"<p>{escape(item.caption) or '(empty)'}</p><ul>{others}</ul></div></div>"
        )
    return _gallery(cards, len(writings), "written captions; in grey, what people wrote")


def _gallery(cards: Sequence[str], total: int, what: str) -> str:
    if not cards:
        return ""
    count = f"The first {len(cards)} of {total:,}" if len(cards) < total else f"All {total:,}"
    return f'<p class="lead">{count} {what}.</p><div class="grid">{"".join(cards)}</div>'


def _picture(path: Path | None) -> str:
    source = data_uri(path) if path else None
    if source is None:
        return f'<div class="absent">{"unreadable" if path else "no image"}</div>'
    return f'<img src="{source}" alt="" loading="lazy">'


def _config(config: str) -> str:
    return f"<details><summary>all keys</summary><pre>{escape(config)}</pre></details>"
