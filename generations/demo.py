"""Serve a demo page: `python generations/demo.py [--config FILE] exp_id X [--port 7860]`

Type a caption to see it painted step by step, or drop an image to see its captions. The page is
served only on this machine unless you give --host or --share. It needs gradio:
`pip install -e .[demo]`. See docs/report_and_demo.md.
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
    from generations.commands.demo import run

    run(arguments, cfg)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve at (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="port to serve at (default: %(default)s)"
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="share the page through gradio's public tunnel (default: only on this machine)",
    )


if __name__ == "__main__":
    cli.run(main)
