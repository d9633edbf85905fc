"""Text -> image: `python generations/sample_images.py [--config FILE] exp_id X key value ...`

Paints the test captions, or `--caption "..."`, or the lines of `--captions-file FILE`. With
`num_samples 8 rerank clip` each caption's picture is the one of 8 that CLIP finds most fitting.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the package's own folder must not shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
from argparse import ArgumentParser, Namespace
from typing import Any

from yacs.config import CfgNode

from generations import cli, runtime
from generations.datasets import clean_caption, painting_captions, read_karpathy
from generations.errors import UserError
from generations.pipelines import assembly
from generations.pipelines.configured_clip import load_configured_clip
from generations.pipelines.painting import PaintingRequest, PaintingSettings, paint_captions
from generations.pipelines.painting_steps import write_steps
from generations.pipelines.protocols import PROTOCOLS, apply_protocol

STEPS_KEPT = 8  # test captions whose painting steps are written down, for the report page

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, paint, write."""
    arguments, cfg = cli.parse(__doc__ or "", argv, _options)
    cfg = apply_protocol(cfg, arguments.protocol)
    with runtime.start(cfg.device, bool(cfg.distributed), assembly.precision(cfg)) as here:
        cli.quiet_unless(here.is_main)
        sample(cfg, here, arguments)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--caption", nargs="+", metavar="TEXT", help="captions to paint")
    parser.add_argument("--captions-file", metavar="FILE", help="one caption a line")
    parser.add_argument("--steps", type=int, help="mask-predict steps, in place of painting.steps")
    parser.add_argument(
        "--protocol", choices=sorted(PROTOCOLS), help="paint the captions of a protocol"
    )
    parser.add_argument("--out", metavar="FOLDER", help="where the pictures go")


def sample(cfg: CfgNode, here: runtime.Runtime, arguments: Namespace) -> Path:
    """Paint what was asked for; returns the manifest's path."""
    steps = cfg.painting.steps if arguments.steps is None else arguments.steps
    if steps < 1:
        raise UserError(f"--steps must be at least 1, not {steps}")
    source, found = requests(cfg, arguments)
    clip = None
    if cfg.rerank == "clip":
        clip = load_configured_clip(cfg, here.device)
    model, start = assembly.load_trained_model(cfg, here)
    parent = Path(cfg.img_save_dir) / cfg.exp_id if cfg.img_save_dir else assembly.run_folder(cfg)
    folder = Path(arguments.out or parent / f"images_{source}_{start.iteration:07d}")
    settings = PaintingSettings(
        cfg.text_length,
        steps,
        cfg.samples_per_gpu,
        cfg.seed,
        cfg.painting.schedule,
        cfg.painting.temperature,
        cfg.num_samples,
        cfg.clip.prompt,
    )
    generator, tokenizer = assembly.load_image_generator(cfg, here), assembly.open_tokenizer(cfg)
    if cropped := sum(n > cfg.text_length + 1 for n in tokenizer.lengths(r.caption for r in found)):
        logger.warning(
            "%d of %d captions are longer than text_length %d: their ends are not painted",
            *(cropped, len(found), cfg.text_length),
        )
    manifest = paint_captions(
        model,
        generator,
        tokenizer,
        found,
        folder,
        settings,
        here,
        {"checkpoint": start.path, "iteration": start.iteration, **_how(cfg, settings)},
        clip,
    )
    logger.info("painted %d pictures into %s", len(found), folder)
    keep = cfg.painting.keep_steps
    traced = found[: (STEPS_KEPT if source == "test" else 0) if keep < 0 else keep]
    if traced and here.is_main:
        write_steps(model, generator, tokenizer, traced, folder, settings, here)
    return manifest


def _how(cfg: CfgNode, settings: PaintingSettings) -> dict[str, Any]:
    """What the manifest says about the painting."""
    return {
        "steps": settings.steps,
        "schedule": settings.schedule,
        "temperature": settings.heat,
        "num_samples": settings.num_samples,
        "rerank": cfg.rerank,
        "text_length": settings.text_length,
        "seed": settings.seed,
        "noise": cfg.generator.noise,
        "fp16": cfg.fp16,
        "test_val2014": cfg.test_val2014,
        "test_num": cfg.test_num,
    }


def requests(cfg: CfgNode, arguments: Namespace) -> tuple[str, list[PaintingRequest]]:
    """What to paint, and a name for it: typed captions, a file's lines, or the test captions."""
    if arguments.caption and arguments.captions_file:
        raise UserError("give --caption or --captions-file, not both")
    if arguments.caption:
        return "typed", _typed(arguments.caption, "--caption")
    if arguments.captions_file:
        path = Path(arguments.captions_file)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--captions-file {path} cannot be read: {error}") from None
        return path.stem, _typed(
            [line for line in lines if line.strip()], f"--captions-file {path}"
        )
    records = read_karpathy(cfg.dataset_coco)
    found = [
        PaintingRequest(caption, record.image_id, record.name)
        for record, caption in painting_captions(records, bool(cfg.test_val2014))
    ]
    return "test", found[: cfg.test_num] if cfg.test_num >= 0 else found


def _typed(captions: Sequence[str], where: str) -> list[PaintingRequest]:
    cleaned = [clean_caption(caption).strip() for caption in captions]
    if not cleaned or not all(cleaned):
        raise UserError(f"{where}: a caption is empty; write what to paint")
    # every training caption ends in a full stop
    return [PaintingRequest(text if text.endswith(".") else f"{text}.") for text in cleaned]


if __name__ == "__main__":
    cli.run(main)
