"""Convert a checkpoint between the layouts of this project and the released .pth.

python -m generations.convert_checkpoint model_0200000.pth folder [--config FILE] [key value ...]
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from generations.config import load_config
from generations.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; wrong input ends it with one line and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m generations.convert_checkpoint",
        description="Convert a checkpoint; the name of the target decides the format.",
    )
    parser.add_argument("source", type=Path, help=".pth file, .safetensors file or folder")
    parser.add_argument("target", type=Path, help=".pth file, .safetensors file or folder")
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        help="configuration file (YAML) of the model",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key value",
        help="configuration keys and values, such as: grid_size 8",
    )
    options = parser.parse_intermixed_args(arguments)
    from generations.checkpoint import convert_checkpoint

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        given = options.config or options.overrides
        cfg = load_config(options.config, options.overrides) if given else None
        convert_checkpoint(options.source, options.target, cfg)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
