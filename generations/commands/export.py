"""A run as one folder: what export.py runs."""

import logging
from argparse import Namespace
from pathlib import Path

from yacs.config import CfgNode

from generations import runtime
from generations.errors import UserError
from generations.pipelines.export import CONFIG, export_run

logger = logging.getLogger(__name__)


def run(arguments: Namespace, cfg: CfgNode) -> None:
    """Load, write."""
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
