"""A page to play with: `python generations/demo.py [--config FILE] exp_id X [--port 7860]`

Type a caption and see it painted, step by step, in several samples; drop an image and read its
caption. Served on this machine alone unless --host or --share says otherwise. Needs gradio:
`pip install -e .[demo]`. See docs/report_and_demo.md.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the package's own folder must not shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
import os
from argparse import ArgumentParser
from html import escape
from typing import Any

try:
    import gradio
except ImportError:  # an extra: everything but this page does without
    gradio = None

import numpy as np
from PIL import Image

from generations import cli, runtime
from generations.errors import UserError
from generations.pipelines.captioning import CaptioningSettings
from generations.pipelines.demo import Caption, Demo, Picture, shade, timed
from generations.pipelines.painting import PaintingSettings

SIDE = 256  # pixels of a picture on the page
MOST_SAMPLES, MOST_STEPS, MOST_CAPTIONS = 8, 16, 8
STYLE = """
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
#title h1 { font-size: 26px; margin: 8px 0 0; }
#title p { margin: 0; color: var(--body-text-color-subdued); }
.said { font-size: 15px; overflow-wrap: anywhere; }
.said b { font-size: 19px; font-weight: 600; display: block; }
.said span { color: var(--body-text-color-subdued); font-size: 13px; }
.said table { width: 100%; border-collapse: collapse; margin-top: 12px; font-size: 14px; }
.said th { text-align: right; font-weight: 500; color: var(--body-text-color-subdued);
  font-size: 12px; padding: 4px 0 4px 14px; border-bottom: 1px solid var(--border-color-primary); }
.said td { padding: 7px 0 7px 14px; border-bottom: 1px solid var(--border-color-primary);
  text-align: right; font-variant-numeric: tabular-nums; vertical-align: top; }
.said th:first-child, .said td:first-child { text-align: left; padding-left: 0; }
"""

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, serve until interrupted."""
    arguments, cfg = cli.parse(__doc__ or "", argv, _options)
    require_gradio()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it reports each look at our own server
    with runtime.start(cfg.device, distribute=False, half=bool(cfg.fp16)) as here:
        page = build_page(Demo(cfg, here))
        try:
            launch(page, arguments.host, arguments.port, arguments.share)
        except OSError as error:
            raise UserError(
                f"the demo cannot be served at {arguments.host}:{arguments.port}: {error}; try "
                "another --port"
            ) from None


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port (default: %(default)s)")
    parser.add_argument(
        "--share",
        action="store_true",
        help="also through gradio's public tunnel; off, nothing leaves this machine",
    )


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
        css=STYLE,
        max_file_size="40mb",
    )
    return address


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
                heat = ui.Slider(
                    0.1, 2, usual.temperature if usual.temperature > 0 else 1.0, step=0.1,
                    label="Temperature", info="of the drawn pictures",
                )  # fmt: skip
                schedule = ui.Radio(["linear", "cosine"], value=usual.schedule, label="Schedule")
                seed = ui.Number(usual.seed, precision=0, minimum=0, label="Seed")
            some = [[example.caption] for example in demo.examples()]
            if some:
                ui.Examples(some, [caption], label="Examples", cache_examples=False)
        with ui.Column(scale=3, min_width=300):
            said = ui.HTML(elem_classes="said", elem_id="painted_text")
            ranked = "best first by CLIPScore" if demo.ranks else "the greedy one first"
            gallery = ui.Gallery(
                label=f"Samples, {ranked}; choose one", columns=4, height="auto",
                object_fit="contain", allow_preview=False, interactive=False, format="png",
                buttons=[], elem_id="samples",
            )  # fmt: skip
            shown = ui.Gallery(
                label="Its painting, step by step; dark cells are drawn again", columns=4,
                height="auto", object_fit="contain", allow_preview=False, interactive=False,
                format="png", buttons=[], elem_id="steps",
            )  # fmt: skip
    kept = ui.State([])

    def paint(
        text: str, count: float, how_many: float, temperature: float, how: str, number: float
    ) -> tuple[Any, ...]:
        settings = PaintingSettings(
            usual.text_length, int(how_many), seed=int(number or 0), schedule=how,
            temperature=temperature if count > 1 else -1.0, num_samples=int(count),
            prompt=usual.prompt,
        )  # fmt: skip
        try:
            pictures, seconds = timed(demo.paint, text, settings)
        except UserError as error:
            raise ui.Error(str(error), print_exception=False) from None
        strips = [step_pictures(picture) for picture in pictures]
        finished = [(_large(item.steps[-1]), _label(item)) for item in pictures]
        return (
            painted_text(text, seconds),
            ui.Gallery(finished, selected_index=0),
            strips[0],
            strips,
        )

    def choose(strips: list[Any], chosen: Any) -> Any:
        return strips[chosen.index] if strips else None

    # gradio passes what the pointer chose to arguments of this type
    choose.__annotations__["chosen"] = ui.SelectData
    inputs, outputs = [caption, samples, steps, heat, schedule, seed], [said, gallery, shown, kept]
    ui.on([button.click, caption.submit], paint, inputs, outputs, api_visibility="private")
    gallery.select(choose, [kept], [shown], show_progress="hidden", api_visibility="private")


def step_pictures(picture: Picture) -> list[tuple[Image.Image, str]]:
    """The steps of a picture with their labels; cells that are drawn again are dark."""
    last = len(picture.steps)
    grid_size = picture.grid_size
    return [
        (shade(pixels, again, grid_size, SIDE), f"step {number} of {last}")
        for number, (pixels, again) in enumerate(zip(picture.steps, picture.again, strict=True), 1)
    ]


def painted_text(caption: str, seconds: float) -> str:
    """What was painted, as HTML."""
    return f"<b>{escape(caption.strip())}</b><span>painted in {seconds:.1f} s</span>"


def _label(picture: Picture) -> str:
    kind = "greedy" if picture.greedy else "drawn"
    return kind if picture.score is None else f"{kind}, CLIPScore {picture.score:.0f}"


def _large(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


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
            said = ui.HTML("Drop an image.", elem_classes="said", elem_id="written_text")
            files = [[str(item.image)] for item in demo.examples() if item.image]
            if files:
                ui.Examples(files, [image], label="Examples", cache_examples=False)

    def describe(
        path: str | None, how: str, wanted: float, power: float, temperature: float, number: float
    ) -> str:
        if path is None:
            return "Drop an image."
        many = 1 if how == "greedy" else int(wanted)
        settings = CaptioningSettings(
            usual.text_length, usual.collapse_repeats, how, max(usual.beam_size, many), power,
            temperature, usual.top_k, usual.top_p, many, int(number or 0),
        )  # fmt: skip
        try:
            captions, seconds = timed(demo.describe, path, settings)
        except UserError as error:
            raise ui.Error(str(error), print_exception=False) from None
        return written_text(captions, seconds)

    inputs = [image, method, count, penalty, heat, seed]
    changes = [image.change, method.change, count.release, penalty.release, heat.release]
    ui.on([*changes, seed.submit], describe, inputs, [said], api_visibility="private")


def written_text(captions: Sequence[Caption], seconds: float) -> str:
    """The best caption and the others in a table, as HTML."""
    columns = [("log-probability", [item.log_probability for item in captions], ".2f")]
    columns.append(("CLIPScore", [item.score for item in captions], ".0f"))
    columns = [column for column in columns if column[1][0] is not None]
    head = "".join(f"<th>{name}</th>" for name, _, _ in columns)
    rows = []
    for place, item in enumerate(captions):
        cells = "".join(f"<td>{values[place]:{form}}</td>" for _, values, form in columns)
        rows.append(f"<tr><td>{escape(item.text) or '(empty)'}</td>{cells}</tr>")
    table = f"<table><tr><th>all</th>{head}</tr>{''.join(rows)}</table>"
    best = escape(captions[0].text) or "(empty)"
    return f"<b>{best}</b><span>written in {seconds:.1f} s</span>{table}"


if __name__ == "__main__":
    cli.run(main)
