"""Convert a file of dense features: `convert_features.py SOURCE TARGET [--dtype float16]`

The suffixes give the formats: .h5 is the original's HDF5, .packed one array file, which is read
many times faster. If a conversion is killed, the same command continues it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the package's own folder must not shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from generations import cli

DTYPES = ("float16", "bfloat16", "float32")

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert one file."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="file to convert, .h5 or .packed")
    parser.add_argument("target", type=Path, help="file to write, .packed or .h5")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float16", help="type of the numbers in a .packed target"
    )
    options = parser.parse_args(argv)
    from generations.datasets import convert_features

    images = convert_features(options.source, options.target, options.dtype)
    logger.info("features of %d images: %s -> %s", images, options.source, options.target)


if __name__ == "__main__":
    cli.run(main)
