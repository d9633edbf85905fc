"""Lossless conversion between the checkpoints of this project and the released .pth."""

import logging
from dataclasses import replace
from pathlib import Path

from yacs.config import CfgNode

from generations.checkpoint.files import PTH_SUFFIXES, save_safetensors
from generations.checkpoint.keys import detect_format
from generations.checkpoint.pretrained import (
    CONFIG_FILE,
    check_fits,
    full_size_config,
    read_config,
    write_config,
)
from generations.checkpoint.training_state import (
    atomic_folder,
    fill_folder,
    read_training_checkpoint,
    write_training_checkpoint,
)
from generations.errors import UserError

logger = logging.getLogger(__name__)


def convert_checkpoint(source: str | Path, target: str | Path, cfg: CfgNode | None = None) -> None:
    """Convert a checkpoint to the layout that the target's name asks for.

    Weights are checked against the model of the configuration, where there is one, before
    anything is written. The training state (optimiser, scheduler, iteration, ...) goes along,
    but a lone .safetensors file has no room for it.

    Args:
        source: a .pth file, a .safetensors file, or a folder.
        target: a .pth file (released layout), a .safetensors file (weights alone), or a folder
            (config.json, model.safetensors, training_state.pth).
        cfg: the model's configuration; None: the source folder's config.json, or, to write a
            folder, the full-size model.

    Raises:
        UserError: not a complete checkpoint of this project's model, or of another configuration;
            the target is then as it was.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if source.resolve() == target.resolve():
        raise UserError(f"source and target are the same file, {source}: choose another target")
    checkpoint = read_training_checkpoint(source)
    form = detect_format(checkpoint.weights, str(source))
    if form != "released":
        raise UserError(
            f"{source} has the {form} format, which holds only a part of the model and cannot be "
            "converted; to start training from it, set pretrained_model"
        )
    one_file = target.suffix in (*PTH_SUFFIXES, ".safetensors")
    if cfg is None and (source / CONFIG_FILE).is_file():
        cfg = read_config(source)
    elif cfg is None and not one_file:
        cfg = full_size_config()
    if cfg is not None:
        order = check_fits(cfg, checkpoint.weights, str(source))
        weights = {name: checkpoint.weights[name] for name in order}
        checkpoint = replace(checkpoint, weights=weights)
    if target.suffix == ".safetensors":
        save_safetensors(target, checkpoint.weights)
    elif cfg is None or one_file:
        write_training_checkpoint(target, checkpoint.payload())
    else:
        with atomic_folder(target) as folder:
            fill_folder(folder, checkpoint.payload())
            write_config(cfg, folder)
    logger.info("%s -> %s: %d tensors", source, target, len(checkpoint.weights))
