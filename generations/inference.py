"""Caption images: `python generations/inference.py [--config FILE] exp_id X key value ...`

Captions the Karpathy test split, or the image files of `--image FILE ...`. The best caption of each
image goes into a COCO results file, captions_<split>_<iteration>.json. With `decoding.method beam`
or `sample` and several captions an image, all of them, best first, go into
alternatives_<split>_<iteration>.json: {"decoding": settings, "images": [{"image_id", "captions":
[{"caption", "log_probability", "score"}]}]}.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the package's own folder must not shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from generations import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, and only then import what the command needs."""
    arguments, cfg = cli.parse(__doc__ or "", argv, _options)
    from generations.commands.caption import run

    run(arguments, cfg)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--image", nargs="+", metavar="FILE", help="image files to caption, instead of the dataset"
    )
    parser.add_argument("--split", default="test", help="split to caption (default: test)")


if __name__ == "__main__":
    cli.run(main)
