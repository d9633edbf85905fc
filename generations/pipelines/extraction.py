"""Find the extractor that made the features of a dataset, and build it again.

data_dir/manifest.json remembers it with the hash of its weights; a run remembers in its folder
what the features were that it was trained on.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from generations.config import default_config
from generations.errors import UserError
from generations.features import (
    Extractor,
    ExtractorSettings,
    build_extractor,
    describe,
    extractor_settings,
    identity,
)
from generations.files import read_json, write_json
from generations.pipelines.assembly import run_folder
from generations.pipelines.manifest import MANIFEST

logger = logging.getLogger(__name__)

RUN_FILE = "extractor.json"  # in a run's folder
# of a description -> its key
_KEYS = {
    "name": "features.extractor",
    "backbone": "features.backbone",
    "layer": "features.layer",
    "precision": "features.precision",
    "image_size": "features.image_size",
    "grid_size": "grid_size",
    "dim": "grid_feat_dim",
}
_NO_CHOICE = {"weights", "seed"}  # where the weights are, not what


def configured_extractor(
    cfg: CfgNode, device: torch.device
) -> tuple[Extractor, dict[str, Any], str]:
    """The extractor that the configuration names.

    Returns:
        the extractor, its description for the manifest, and a text that differs where features
        would.
    """
    settings = extractor_settings(cfg)
    extractor = build_extractor(settings, device)
    return extractor, describe(settings, extractor), json.dumps(identity(settings, extractor))


def remember_extractor(cfg: CfgNode, folder: Path, resumed: bool) -> None:
    """Record in a run's folder the extractor of the features that it is trained on.

    Raises:
        UserError: a resumed run began with features of another extractor.
    """
    now = _of_dataset(cfg)
    if now is None:
        return
    path = folder / RUN_FILE
    before = _of_run(folder)
    if resumed and before is not None and _essence(before) != _essence(now):
        raise UserError(
            f"{folder} was trained on features of {name_of(before)}, but data_dir {cfg.data_dir} "
            f"now has features of {name_of(now)}: choose another exp_id, or the data_dir that it "
            "was trained on"
        )
    write_json(path, now)


def remembered_extractor(cfg: CfgNode, folder: Path | None, device: torch.device) -> Extractor:
    """The extractor whose features a run was trained on, for pictures it has not seen.

    Args:
        cfg: the keys of features.* are used where nothing is remembered; features.weights also
            where the file of weights has moved.
        folder: of the run, if there is one.
        device: where the network runs.

    Raises:
        UserError: the configuration asks for another one, the features of the dataset are another
            one's, or its weights are not what they were.
    """
    dataset = _of_dataset(cfg)
    run = _of_run(folder) if folder else None
    if run and dataset and _essence(run) != _essence(dataset):
        raise UserError(
            f"{folder} was trained on features of {name_of(run)}, but data_dir {cfg.data_dir} has "
            f"features of {name_of(dataset)}: set data_dir to the one it was trained on"
        )
    entry = run or dataset
    if entry is None:
        logger.warning(
            "neither the run nor %s records the extractor of its features; using "
            "features.extractor %s",
            *(Path(cfg.data_dir) / MANIFEST, cfg.features.extractor),
        )
        return build_extractor(extractor_settings(cfg), device)
    _check_configuration(cfg, entry)
    settings = ExtractorSettings(
        *(entry["name"], entry["image_size"], entry["grid_size"], entry["dim"]),
        *(entry.get("backbone", ""), entry.get("layer", "")),
        weights=cfg.features.weights or entry.get("weights", ""),
        seed=entry.get("seed", 0),
        precision=entry.get("precision", "float32"),
    )
    extractor = build_extractor(settings, device)
    now = describe(settings, extractor)
    if _essence(now) != _essence(entry):
        raise UserError(
            f"the features of {cfg.data_dir} were made by {name_of(entry)}, but features.weights "
            f"give {name_of(now)}: set the original weights, or make the features again"
        )
    logger.info("extractor: %s", name_of(now))
    return extractor


def description_of(cfg: CfgNode) -> dict[str, Any] | None:
    """What made the features of a run, or else of its dataset; None if neither says."""
    run = _of_run(run_folder(cfg)) if cfg.exp_id else None
    return run or _of_dataset(cfg)


def name_of(entry: dict[str, Any]) -> str:
    """A description in a few words, for messages."""
    words = [
        str(entry["name"]),
        *(str(entry[key]) for key in ("backbone", "layer", "precision") if key in entry),
    ]
    if entry.get("image_size"):
        words.append(f"at {entry['image_size']} pixels")
    words.append(f"({entry['grid_size']} x {entry['grid_size']} x {entry['dim']}")
    told = str(entry.get("weights_sha256", ""))[:12]
    return " ".join(words) + (f", weights {told})" if told else ")")


def _check_configuration(cfg: CfgNode, entry: dict[str, Any]) -> None:
    """Refuse what was asked for by name and is not what the features are of."""
    default = default_config()
    for fact, key in _KEYS.items():
        asked, usual = cfg, default
        for part in key.split("."):
            asked, usual = asked[part], usual[part]
        made = entry.get(fact, "")
        if asked in (made, usual) or made is None:
            continue
        raise UserError(
            f"{key} {asked} does not match the features of {cfg.data_dir}, which were made by "
            f"{name_of(entry)}; leave out {key}, or make the features again"
        )


def _of_dataset(cfg: CfgNode) -> dict[str, Any] | None:
    path = Path(cfg.data_dir) / MANIFEST
    manifest = read_json(path, "manifest") if path.exists() else {}
    step = manifest.get("features") if isinstance(manifest, dict) else None
    return _checked(step.get("extractor"), path) if isinstance(step, dict) else None


def _of_run(folder: Path) -> dict[str, Any] | None:
    path = folder / RUN_FILE
    return _checked(read_json(path, "extractor"), path) if path.exists() else None


def _checked(entry: Any, path: Path) -> dict[str, Any]:
    # image_size is null where pictures come as large as they are
    wanted = {"name": str, "image_size": int | None, "grid_size": int, "dim": int}
    optional = {"backbone": str, "layer": str, "weights": str, "precision": str}
    if not isinstance(entry, dict) or not all(
        (key in entry or key in optional) and isinstance(entry.get(key, ""), kind)
        for key, kind in (wanted | optional).items()
    ):
        raise UserError(
            f"{path} does not record the extractor of the features: make the features again"
        )
    return entry


def _essence(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _NO_CHOICE}
