"""Configuration: default.yaml, then YAML files with `_BASE_` chains, then `key value` overrides.

The only room that reads configuration files. The result is validated (checks.py), has every path
absolute, and is frozen.
"""

import ast
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from generations.config.checks import CLIP_FILES, FEATURE_SUFFIXES, TASKS, check_choices, validate
from generations.config.defaults import default_config, documented_keys
from generations.errors import UserError

__all__ = [
    "DATA_FILES",
    "PATHS",
    "TASKS",
    "checkout_root",
    "default_config",
    "documented_keys",
    "known_keys",
    "load_config",
]

# Files that are derived from data_dir when they are left empty: key -> file name.
DATA_FILES = {
    "clip.model": "clip.json",
    "clip.weights": "clip.safetensors",
    "dataset_coco": "dataset_coco.json",
    "grid_feat_path_train": "maskrcnn_train_grid8",  # and a suffix of FEATURE_SUFFIXES
    "grid_feat_path_valid": "maskrcnn_valid_grid8",
    "grid_cluster_id_path_train": "cluster_ids_train.pkl",
    "grid_cluster_id_path_valid": "cluster_ids_valid.pkl",
    "grid_cluster_centroids_path": "centroids.npy",
    "pretrained_generator": "generator.pth",
}
PATHS = (
    *("data_dir", "save_dir", "img_save_dir", "images_dir", "captions_file", "vocab_file"),
    *("id2captions_test", "test_samples", "rprec_hard_samples_dir", "evaluate_images_dir"),
    *("gt_img_dir_val2014", "gt_img_dir_5k", "gt_img_dir_3w", "model_path", "pretrained_model"),
    "eval_weights",
    *("features.backbone", "features.weights"),
    "generator.perceptual_weights",
    *DATA_FILES,
)


def load_config(files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> CfgNode:
    """Merge defaults, YAML files in order, then `key value` pairs; validate, derive and freeze.

    Args:
        files: YAML files; a `_BASE_` key in one names the file (relative to it) it builds on.
        overrides: flat sequence "key", "value", ...; nested keys with dots ("solver.lr").

    Raises:
        UserError: unknown key (the nearest known one is named), wrong type, unreadable file or
            flags that contradict each other.

    Source: SPEC 4.
    """
    cfg = default_config()
    explicit: set[str] = set()
    for file in files:
        for source, values in _read_chain(Path(file), ()):
            for key, value in _flatten(values):
                _set(cfg, key, _beside(source, key, value), str(source))
                explicit.add(key)
    for key, value in _pairs(overrides):
        _set(cfg, key, _under_cwd(key, value), "command line")
        explicit.add(key)
    check_choices(cfg)
    _resolve_paths(cfg, "features.store" in explicit)
    validate(cfg)
    cfg.freeze()
    return cfg


def known_keys() -> set[str]:
    """Every key that can be set, nested ones with dots."""
    return set(_keys(default_config()))


def checkout_root() -> Path:
    """The checkout that holds the package; the current folder where it is installed by itself."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() else Path.cwd()


# --- reading -------------------------------------------------------------------------------------


def _read_chain(path: Path, seen: tuple[Path, ...]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    path = path.expanduser().resolve()
    if path in seen:
        raise UserError(f"config {path}: _BASE_ includes the file itself; remove the cycle")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except FileNotFoundError:
        raise UserError(f"config {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"config {path} is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(values, dict):
        raise UserError(
            f"config {path} must contain `key: value` lines, not a {type(values).__name__}"
        )
    base = values.pop("_BASE_", None)
    if base is not None:
        if not isinstance(base, str) or "\0" in base:
            raise UserError(f"config {path}: _BASE_ must be the name of a file, not {base!r:.60}")
        yield from _read_chain(path.parent / base, (*seen, path))
    yield path, values


class _Loader(yaml.SafeLoader):
    """Plain values only, each written out: a few lines of aliases can stand for billions."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported; repeat the value")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        names = [key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise yaml.YAMLError(f"the key {sorted(twice)[0]} appears twice; remove one")
        return super().construct_mapping(node, deep)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    if len(overrides) % 2:
        raise UserError(
            f"overrides must be `key value` pairs, but the last one, {overrides[-1]!r}, has no "
            "value; write lists without spaces: iteration_tasks xe_i2t,xe_t2i"
        )
    return zip(overrides[::2], overrides[1::2], strict=True)


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _set(cfg: CfgNode, key: str, value: Any, source: str) -> None:
    known = list(_keys(cfg))
    if key not in known:
        # a bare `lr` should find solver.lr, so compare with the last part too
        close = difflib.get_close_matches(key, known, 1, 0.6) or [
            name for name in known if name.split(".")[-1] == key.split(".")[-1]
        ]
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{source}: unknown key {key!r}{hint}")
    node, last = _parent(cfg, key)
    node[last] = _coerce(key, value, node[last], source)


def _parent(cfg: CfgNode, key: str) -> tuple[CfgNode, str]:
    """The node that holds a key, and the key's last part."""
    *parents, last = key.split(".")
    for parent in parents:
        cfg = cfg[parent]
    return cfg, last


def _coerce(key: str, value: Any, default: Any, source: str) -> Any:
    """Read `value` (text, or what YAML made of it) as the type of the default."""
    kind = type(default)
    try:
        if kind is list:
            item = type(default[0]) if default else str
            return [item(part) for part in _as_list(value)]
        if kind is str:
            if isinstance(value, (list, Mapping)):
                raise ValueError
            return "" if value is None else str(value).strip("'\"")
        if isinstance(value, str):
            value = {"true": "1", "false": "0"}.get(value.lower(), value)
        if isinstance(value, (list, type(None))) or (
            kind is int and float(value) != int(float(value))
        ):
            raise ValueError
        return kind(float(value))
    except (ValueError, TypeError, OverflowError):
        names = {int: "a whole number", float: "a number", str: "text", list: "a list"}
        raise UserError(
            f"{source}: {key} must be {names[kind]} such as {default!r}, not {value!r:.80}"
        ) from None


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    text = str(value).strip()
    try:
        parsed = ast.literal_eval(text)
        if isinstance(parsed, (list, tuple)):
            return list(parsed)
    except (ValueError, SyntaxError):
        pass  # a shell ate the quotes: [xe_i2t,xe_t2i] or xe_i2t,xe_t2i
    parts = [part.strip().strip("'\"") for part in text.strip("[]()").split(",")]
    return [part for part in parts if part]


# --- paths ---------------------------------------------------------------------------------------


def _under_cwd(key: str, value: str) -> str:
    """A path typed on the command line is meant from where it was typed."""
    if key == "root_path" or (key in PATHS and _is_path(key, value)):
        return str(Path(value).expanduser().absolute()) if value else value
    return value


def _beside(source: Path, key: str, value: Any) -> Any:
    """A path that begins with ./ in a file is meant from that file's folder."""
    if key in PATHS and isinstance(value, str) and value.startswith("./"):
        return str(source.parent / value)
    return value


def _is_path(key: str, value: str) -> bool:
    """Not so: empty, a repository of the hub, or the name of a network and not its file."""
    named = (
        key.startswith(("clip.", "features.", "generator."))
        and Path(value).suffix not in CLIP_FILES
    )
    return bool(value) and not value.startswith("hf:") and not named


def _resolve_paths(cfg: CfgNode, store_is_asked_for: bool) -> None:
    root = Path(cfg.root_path or checkout_root()).expanduser().absolute()
    cfg.root_path = str(root)
    for key in PATHS:
        node, last = _parent(cfg, key)
        if _is_path(key, node[last]):
            node[last] = str(root / Path(node[last]).expanduser())
    for key, name in DATA_FILES.items():
        node, last = _parent(cfg, key)
        file = str(Path(cfg.data_dir) / name)
        if key.startswith("grid_feat_path"):
            file = _feature_file(file, cfg.features.store, store_is_asked_for)
        node[last] = node[last] or file


def _feature_file(stem: str, store: str, asked_for: bool) -> str:
    """A file of features by its format; unless that was asked for, the format that is there."""
    wanted = stem + FEATURE_SUFFIXES[store]
    if not asked_for and not Path(wanted).exists():
        for suffix in FEATURE_SUFFIXES.values():
            if Path(stem + suffix).exists():
                return stem + suffix
    return wanted
