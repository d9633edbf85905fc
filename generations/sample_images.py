"""Paint captions: `python generations/sample_images.py [--config FILE] exp_id X key value ...`

Paints the test captions, or `--caption "..."`, or the lines of `--captions-file FILE`. With
`num_samples 8 rerank clip` it paints 8 pictures a caption and puts the one with the highest
CLIPScore first.
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
    from generations.commands.paint import run

    run(arguments, cfg)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--caption", nargs="+", metavar="TEXT", help="captions to paint, instead of the dataset's"
    )
    parser.add_argument(
        "--captions-file", metavar="FILE", help="file of captions to paint, one a line"
    )
    parser.add_argument(
        "--steps", type=int, help="number of mask-predict steps; overrides painting.steps"
    )
    parser.add_argument(
        "--protocol",
        choices=sorted(PROTOCOLS),
        help="paint the captions of an evaluation protocol (docs/evaluation.md)",
    )
    parser.add_argument("--out", metavar="FOLDER", help="folder for the pictures")


if __name__ == "__main__":
    cli.run(main)
