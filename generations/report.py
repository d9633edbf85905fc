"""Write a report page: `python generations/report.py [--config FILE] exp_id X [--seconds N]`

Writes report.html, contact_sheet.png and summary.json into the run's folder, from the results of
main.py, inference.py, sample_images.py and evaluate.py (docs/report_and_demo.md). With --table1
FOLDER it collects many runs into Table 1 of the paper.
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
    from generations.commands.report import run

    run(arguments, cfg)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--seconds", type=float, metavar="N", help="time that the run took, for the summary"
    )
    parser.add_argument(
        "--stage1", metavar="EXP_ID", help="run that this one started from, for comparison"
    )
    parser.add_argument(
        "--items", type=int, help="maximum number of cards in a gallery (default: all)"
    )
    parser.add_argument(
        "--table1",
        metavar="FOLDER",
        help="instead, collect the runs of scripts/table1.sh in this folder into a table",
    )
    parser.add_argument(
        "--one-file-up-to",
        type=int,
        default=1000,
        metavar="N",
        help="maximum number of cards for a page that includes its pictures; with more they go "
        "into a folder beside the page (default: %(default)s)",
    )
    parser.add_argument(
        "--sheet-items",
        type=int,
        default=24,
        help="maximum number of cards a direction on the contact sheet (default: %(default)s)",
    )


if __name__ == "__main__":
    cli.run(main)
