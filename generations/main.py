"""Train a model: `python generations/main.py [--config FILE] exp_id X key value ...`"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the package's own folder must not shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from generations import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, and only then import what the command needs."""
    _, cfg = cli.parse(__doc__ or "", argv)
    from generations.commands.train import run

    run(cfg)


if __name__ == "__main__":
    cli.run(main)
