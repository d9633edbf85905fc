"""Compute metrics: `python generations/evaluate.py [--config FILE] exp_id X key value ...`

Captions: the newest captions_test_<iteration>.json of the run, or any COCO results file given by
`--captions FILE`, against the captions of the test split. Pictures: the newest
images_test_<iteration> of the run, or evaluate_images_dir; the eval_* keys choose the metrics.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the package's own folder must not shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from generations import cli
from generations.pipelines.protocols import PROTOCOLS, apply_protocol


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, and only then import what the command needs."""
    arguments, cfg = cli.parse(__doc__ or "", argv, _options)
    cfg = apply_protocol(cfg, arguments.protocol)
    from generations.commands.evaluate import run

    run(arguments, cfg)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--captions", metavar="FILE", help="COCO results file (JSON) to score")
    parser.add_argument(
        "--caption-metrics",
        default="cider_d,bleu,rouge_l,diversity",
        metavar="LIST",
        help="comma list of cider_d,bleu,rouge_l,meteor,spice,diversity,clip_score (default: "
        "%(default)s; meteor starts slowly, spice needs its parser, clip_score needs images_dir)",
    )
    parser.add_argument(
        "--protocol",
        choices=sorted(PROTOCOLS),
        help="use a fixed protocol for FID, CLIPScore and R-precision (docs/evaluation.md)",
    )
    parser.add_argument(
        "--per-item", action="store_true", help="also write the scores of each sample"
    )


if __name__ == "__main__":
    cli.run(main)
