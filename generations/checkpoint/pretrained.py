"""Saving a model with its configuration as a folder, and building it from one.

The folder holds config.json and model.safetensors, as transformers' do.

This file alone of the package imports the model and the configuration (which are of the same
level): it is where weights become a model.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from generations.checkpoint.files import save_safetensors
from generations.checkpoint.loading import HUB, find_weights, hub_file, load_weights
from generations.config import load_config
from generations.errors import UserError
from generations.files import read_json, write_json
from generations.modeling import UnifiedTransformer, build_model

CONFIG_FILE = "config.json"
# What the model is built from; everything else in a configuration belongs to a run.
_KEYS = (
    *("text_length", "grid_feat_dim", "grid_size", "grid_cluster_num"),
    *("use_mix_feature", "use_grid_cluster", "use_grid_feat", "xlxmert_zeroshot"),
    "captioning",
)


def save_pretrained(model: nn.Module, cfg: CfgNode, folder: str | Path) -> None:
    """Write config.json and model.safetensors into a folder, each atomically.

    Args:
        model: the transformer of `build_model`, not wrapped.
        cfg: the configuration it was built from.
        folder: made if it does not exist.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    save_safetensors(folder / "model.safetensors", model.state_dict())
    write_config(cfg, folder)


def from_pretrained(
    source: str | Path, overrides: Sequence[str] = ()
) -> tuple[UnifiedTransformer, CfgNode]:
    """Build a model from a folder that `save_pretrained` wrote, or from the hub.

    Args:
        source: the folder, `hf:<repository id>`, or a repository id if no such folder exists.
        overrides: further "key", "value", ... for the configuration ("device", "cpu").

    Returns:
        the model in training mode on the CPU, and its configuration (the rest are defaults).

    Raises:
        UserError: no such folder or repository, not one of ours, or damaged.
    """
    name = str(source)
    if not name.startswith(HUB) and not Path(name).expanduser().exists() and name.count("/") == 1:
        name = HUB + name
    cfg = read_config(name, overrides)
    find_weights(name)  # before the model is built, which takes a while
    model = build_model(cfg)
    load_weights(model, name)
    return model, cfg


def write_config(cfg: CfgNode, folder: str | Path) -> None:
    """Write what the model is built from as config.json."""
    values = {key: cfg[key] for key in _KEYS}
    kind = {"model_type": "generations", "architectures": [UnifiedTransformer.__name__]}
    write_json(Path(folder) / CONFIG_FILE, {**kind, **values, "model": dict(cfg.model)})


def read_config(source: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Read the configuration of a folder or hub repository (see `from_pretrained`)."""
    name = str(source)
    path = hub_file(name, [CONFIG_FILE]) if name.startswith(HUB) else Path(name) / CONFIG_FILE
    values = read_json(path.expanduser(), "model configuration")
    if not isinstance(values, dict) or values.get("model_type") != "generations":
        raise UserError(
            f"{path} was not written by save_pretrained; to start training from an LXMERT or BERT "
            "folder, set pretrained_model"
        )
    try:
        return load_config(overrides=[*_pairs(values), *overrides])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def full_size_config() -> CfgNode:
    """The configuration of the released model."""
    return load_config()


def check_fits(cfg: CfgNode, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Check names and shapes against the model of a configuration, without allocating its tensors.

    Returns:
        the model's names, in its order.

    Raises:
        UserError: the weights are not exactly this model's.
    """
    with torch.device("meta"):
        state = build_model(cfg).state_dict()
    wrong = [name for name in {**state, **weights} if _shape(state, name) != _shape(weights, name)]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{source} does not match the configured model: {len(wrong)} tensors differ, first "
            f"{name} ({_shape(weights, name) or 'absent'} in the file, "
            f"{_shape(state, name) or 'absent'} in the model); give the configuration that it was "
            "trained with"
        )
    return list(state)


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if key in _KEYS:
            yield from (key, str(value))
        elif key == "model" and isinstance(value, Mapping):
            for inner, size in value.items():
                yield from (f"model.{inner}", str(size))
