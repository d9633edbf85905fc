"""Export a run: `python generations/export.py [--config FILE] exp_id X --out models/mini`

Copies the weights of a run, its image generator, vocabulary and small CLIP into one folder, with a
configuration to use them: `--config models/mini/config.yaml`. See docs/report_and_demo.md.
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
    from generations.commands.export import run

    run(arguments, cfg)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--name", help="exp_id of runs that use the export (default: the folder's name and _demo)"
    )


if __name__ == "__main__":
    cli.run(main)
