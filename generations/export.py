"""A run as one folder: `python generations/export.py [--config FILE] exp_id X --out models/mini`

Gathers the weights of a run, its image generator, vocabulary and small CLIP, and a configuration
to use them with: `--config models/mini/config.yaml`. See docs/report_and_demo.md.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the package's own folder must not shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
from argparse import ArgumentParser

from generations import cli, runtime
from generations.errors import UserError
from generations.pipelines.export import CONFIG, export_run

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, write."""
    arguments, cfg = cli.parse(__doc__ or "", argv, _options)
    folder = Path(arguments.out).absolute()
    name = arguments.name or f"{folder.name}_demo"
    if Path(name).name != name:
        raise UserError(f"--name {name!r} must be a plain folder name, without slashes")
    config = (Path(arguments.out) / CONFIG).as_posix()  # as it is typed
    with runtime.start("cpu", distribute=False, precision=runtime.Precision(half=False)) as here:
        exported = export_run(cfg, here, folder, name, config)
    for file, size in exported.files.items():
        logger.info("%12s bytes  %s", f"{size:,}", file)
    logger.info("%12s bytes in %s", f"{exported.size:,}", exported.folder)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where it goes")
    parser.add_argument(
        "--name", help="exp_id of what is made with it (default: the folder's name and _demo)"
    )


if __name__ == "__main__":
    cli.run(main)
