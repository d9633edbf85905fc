"""The demo page: what demo.py serves."""

import logging
import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

try:
    import gradio
except ImportError:  # an extra: everything but this page does without
    gradio = None

from PIL import Image
from yacs.config import CfgNode

from generations import runtime
from generations.errors import UserError
from generations.pipelines import assembly
from generations.pipelines.captioning import CaptioningSettings
from generations.pipelines.demo import Caption, Demo, Picture, timed
from generations.reporting.gallery import encode, framed

MOST_SAMPLES, MOST_STEPS, MOST_CAPTIONS = 8, 16, 8
DROP = '<p class="faint">Drop an image.</p>'
STYLE = """
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
#title h1 { font-size: 26px; margin: 8px 0 0; }
#title p { margin: 0; color: var(--body-text-color-subdued); }
#dropped img { width: 100%; height: 100%; object-fit: contain; }
.said { font-size: 15px; overflow-wrap: anywhere; padding: 0 !important; }
.said .html-container { padding: 0 !important; }
.said .best { font-size: 19px; line-height: 1.35; font-weight: 600; }
.said .faint { color: var(--body-text-color-subdued); font-size: 13px; margin-top: 2px; }
.said table { width: 100%; border-collapse: collapse; margin-top: 16px; font-size: 14px; }
.said table, .said tr, .said th, .said td { border: 0 !important; background: none !important; }
.said th, .said td { border-bottom: 1px solid var(--border-color-primary) !important;
  text-align: right; vertical-align: top; padding: 7px 0 7px 18px !important; }
.said th { font-weight: 500; color: var(--body-text-color-subdued); font-size: 12px;
  white-space: nowrap; padding-top: 4px !important; padding-bottom: 4px !important; }
.said td + td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.said th:first-child, .said td:first-child { text-align: left; padding-left: 0 !important; }
.said input { position: absolute; opacity: 0; pointer-events: none; }
.said .pictures { position: relative; }
.said .row { display: grid; gap: 14px 12px; margin: 8px 0 22px;
  grid-template-columns: repeat(4, minmax(0, 1fr)); }
.said .steps > .row { display: none; margin-bottom: 8px; }
.said label { cursor: pointer; }
.said .label { font-size: 12px; line-height: 1.35; margin-top: 5px;
  color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.said .frame { position: relative; aspect-ratio: 1; border-radius: 6px; overflow: hidden;
  background: var(--border-color-primary); }
.said .frame img, .said .frame svg { position: absolute; inset: 0; width: 100%; height: 100%;
  margin: 0; border-radius: 0; }
.said rect { fill: #10141a; fill-opacity: .62; stroke: #fff; stroke-opacity: .35;
  stroke-width: .03; }
CHOSEN
@media (max-width: 600px) { .said .row { gap: 10px 8px; } .said .label { font-size: 11px; } }
"""
# which sample is chosen: a radio button before the pictures is checked
CHOSEN_STYLE = """
.said input:nth-of-type(PLACE):checked ~ .steps > .row:nth-child(PLACE) { display: grid; }
.said input:nth-of-type(PLACE):checked ~ .row > label:nth-of-type(PLACE) .frame {
  outline: 3px solid var(--primary-500, #3b82f6); outline-offset: 2px; }
.said input:nth-of-type(PLACE):checked ~ .row > label:nth-of-type(PLACE) .label {
  color: var(--body-text-color); }
"""

logger = logging.getLogger(__name__)


def run(arguments: Namespace, cfg: CfgNode) -> None:
    """Load, serve until interrupted."""
    require_gradio()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it reports each look at our own server
    with runtime.start(cfg.device, distribute=False, precision=assembly.precision(cfg)) as here:
        page = build_page(Demo(cfg, here))
        try:
            launch(page, arguments.host, arguments.port, arguments.share)
        except OSError as error:
            raise UserError(
                f"the demo cannot start at {arguments.host}:{arguments.port}: {error}; choose "
                "another --port"
            ) from None


def require_gradio() -> Any:
    """The library, whose types are only known where it is installed.

    Raises:
        UserError: it is not installed.
    """
    if gradio is None:
        raise UserError("the demo needs gradio: pip install -e .[demo]")
    return gradio


def launch(page: Any, host: str, port: int, share: bool = False, block: bool = True) -> str:
    """Serve a page; returns its address unless it blocks until interrupted."""
    blue, slate = require_gradio().themes.colors.blue, require_gradio().themes.colors.slate
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    _, address, _ = page.queue(default_concurrency_limit=1).launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=not block,
        ssr_mode=False,
        mcp_server=False,
        quiet=not block,
        footer_links=[],
        theme=require_gradio().themes.Base(
            primary_hue=blue, neutral_hue=slate, font=fonts, font_mono=["ui-monospace", "monospace"]
        ),
        css=style(),
        max_file_size="40mb",
    )
    return address


def style() -> str:
    """The page's own style sheet."""
    chosen = [CHOSEN_STYLE.replace("PLACE", str(place)) for place in range(1, MOST_SAMPLES + 1)]
    return STYLE.replace("CHOSEN\n", "".join(chosen))


def build_page(demo: Demo) -> Any:
    """The page: one tab a direction."""
    ui = require_gradio()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing leaves this machine
    with ui.Blocks(title="generations", analytics_enabled=False) as page:
        ui.Markdown(
            "# generations\nOne transformer, both ways: text to image, image to text.",
            elem_id="title",
        )
        with ui.Tab("Caption → picture"):
            _painting_tab(ui, demo)
        with ui.Tab("Image → caption"):
            _captioning_tab(ui, demo)
    return page


# --- caption -> picture --------------------------------------------------------------------------


def _painting_tab(ui: Any, demo: Demo) -> None:
    usual = demo.painting
    with ui.Row():
        with ui.Column(scale=2, min_width=300):
            caption = ui.Textbox(
                label="Caption", placeholder="what to paint", lines=2, max_lines=4, elem_id="typed"
            )
            button = ui.Button("Paint", variant="primary", elem_id="paint")
            samples = ui.Slider(
                1, MOST_SAMPLES, max(usual.num_samples, 4), step=1, label="Samples",
                info="the greedy picture, and others drawn at random",
            )  # fmt: skip
            with ui.Accordion("More choices", open=False):
                steps = ui.Slider(
                    1, MOST_STEPS, min(usual.steps, MOST_STEPS), step=1, label="Steps"
                )
                guidance = ui.Slider(
                    0, 10, usual.guidance, step=0.5, label="Guidance",
                    info="how much the caption counts; for models trained with caption_dropout",
                )  # fmt: skip
                heat = ui.Slider(
                    0.1, 2, usual.temperature if usual.temperature > 0 else 1.0, step=0.1,
                    label="Temperature", info="of the drawn pictures",
                )  # fmt: skip
                schedule = ui.Radio(["linear", "cosine"], value=usual.schedule, label="Schedule")
                seed = ui.Number(usual.seed, precision=0, minimum=0, label="Seed")
        with ui.Column(scale=3, min_width=300):
            said = ui.HTML(
                '<p class="faint">Type a caption and press Paint.</p>',
                elem_classes="said", elem_id="painted",
            )  # fmt: skip
            some = [[example.caption] for example in demo.examples()]
            if some:
                ui.Examples(some, [caption], label="Examples", cache_examples=False)

    def paint(
        text: str,
        count: float,
        how_many: float,
        strength: float,
        temperature: float,
        how: str,
        number: float,
    ) -> str:
        settings = replace(
            usual, steps=int(how_many), seed=int(number or 0), schedule=how,
            temperature=temperature if count > 1 else -1.0, num_samples=int(count),
            guidance=strength,
        )  # fmt: skip
        try:
            pictures, seconds = timed(demo.paint, text, settings)
        except UserError as error:
            raise ui.Error(str(error), print_exception=False) from None
        return painted_html(text, pictures, seconds)

    inputs = [caption, samples, steps, guidance, heat, schedule, seed]
    ui.on([button.click, caption.submit], paint, inputs, [said], api_visibility="private")


def painted_html(caption: str, pictures: Sequence[Picture], seconds: float) -> str:
    """The samples, and of the chosen one the steps; choosing needs no server."""
    ranked = ", best first by CLIPScore" if pictures[0].score is not None else ""
    radios, samples, steps = [], [], []
    for place, picture in enumerate(pictures):
        kind = "greedy" if picture.greedy else "drawn"
        score = "" if picture.score is None else f"<br>CLIPScore {picture.score:.1f}"
        name = f"sample{place}"
        radios.append(
            f'<input type="radio" name="sample" id="{name}" aria-label="sample {place + 1}"'
            f"{' checked' if place == 0 else ''}>"
        )
        sources = [encode(Image.fromarray(pixels)) for pixels in picture.steps]
        samples.append(
            f'<label for="{name}">{framed(sources[-1], f"{kind}: {caption}")}'
            f'<div class="label">{kind}{score}</div></label>'
        )
        strip = [
            f"<div>{framed(source, f'step {number}', again, picture.grid_size)}"
            f'<div class="label">step {number} of {len(sources)}</div></div>'
            for number, (source, again) in enumerate(zip(sources, picture.again, strict=True), 1)
        ]
        steps.append(f'<div class="row">{"".join(strip)}</div>')
    count = f"{len(pictures)} samples{ranked}; choose one. " if len(pictures) > 1 else ""
    return (
        f'<div class="best">{escape(caption.strip())}</div>'
        f'<p class="faint">{count}Painted in {seconds:.1f} s.</p>'
        f'<div class="pictures">{"".join(radios)}<div class="row samples">{"".join(samples)}</div>'
        '<p class="faint">Step by step: dark cells are those that the model is least certain of '
        "and draws again.</p>"
        f'<div class="steps">{"".join(steps)}</div></div>'
    )


# --- image -> caption ----------------------------------------------------------------------------


def _captioning_tab(ui: Any, demo: Demo) -> None:
    usual = demo.captioning
    with ui.Row():
        with ui.Column(scale=2, min_width=300):
            image = ui.Image(
                type="filepath", sources=["upload", "clipboard"], label="Image", height=300,
                format="png", buttons=[], elem_id="dropped",
            )  # fmt: skip
            method = ui.Radio(
                [("beam search", "beam"), ("sampling", "sample"), ("greedy", "greedy")],
                value="beam", label="Decoding", elem_id="method",
            )  # fmt: skip
            count = ui.Slider(
                1, MOST_CAPTIONS, max(usual.num_captions, 4), step=1, label="Captions"
            )
            with ui.Accordion("More choices", open=False):
                penalty = ui.Slider(
                    0, 2, usual.length_penalty, step=0.1, label="Length penalty",
                    info="ranks by log-probability / length ** this",
                )  # fmt: skip
                heat = ui.Slider(
                    0.1, 2, usual.temperature or 1.0, step=0.1, label="Temperature",
                    info="of sampling",
                )  # fmt: skip
                seed = ui.Number(usual.seed, precision=0, minimum=0, label="Seed, of sampling")
        with ui.Column(scale=3, min_width=300):
            said = ui.HTML(DROP, elem_classes="said", elem_id="written")
            files = [[str(item.image)] for item in demo.examples() if item.image]
            if files:
                ui.Examples(files, [image], label="Examples", cache_examples=False)

    def describe(
        path: str | None, how: str, wanted: float, power: float, temperature: float, number: float
    ) -> str:
        if path is None:
            return DROP
        many = 1 if how == "greedy" else int(wanted)
        settings = CaptioningSettings(
            usual.text_length, usual.collapse_repeats, how, max(usual.beam_size, many), power,
            temperature, usual.top_k, usual.top_p, many, int(number or 0),
        )  # fmt: skip
        try:
            captions, seconds = timed(demo.describe, path, settings)
        except UserError as error:
            raise ui.Error(str(error), print_exception=False) from None
        return written_html(captions, seconds)

    inputs = [image, method, count, penalty, heat, seed]
    changes = [image.change, method.change, count.release, penalty.release, heat.release]
    ui.on([*changes, seed.submit], describe, inputs, [said], api_visibility="private")


def written_html(captions: Sequence[Caption], seconds: float) -> str:
    """The best caption and the others in a table, as HTML."""
    columns = [("log p", [item.log_probability for item in captions], ".2f")]
    columns.append(("CLIPScore", [item.score for item in captions], ".1f"))
    columns = [column for column in columns if column[1][0] is not None]
    head = "".join(f"<th>{name}</th>" for name, _, _ in columns)
    rows = []
    for place, item in enumerate(captions):
        cells = "".join(f"<td>{values[place]:{form}}</td>" for _, values, form in columns)
        rows.append(f"<tr><td>{escape(item.text) or '(empty)'}</td>{cells}</tr>")
    order = "best first" if len(captions) > 1 else "caption"
    table = f"<table><tr><th>{order}</th>{head}</tr>{''.join(rows)}</table>"
    best = escape(captions[0].text) or "(empty)"
    return (
        f'<div class="best">{best}</div><p class="faint">Written in {seconds:.1f} s.</p>'
        f"{table if len(captions) > 1 or columns else ''}"
    )
