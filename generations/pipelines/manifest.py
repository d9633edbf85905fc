"""data_dir/manifest.json: what preparation made, and how."""

import sys
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from generations.errors import UserError
from generations.files import read_json, write_json

MANIFEST = "manifest.json"
_LIBRARIES = ("faiss", "h5py", "numpy", "PIL", "tokenizers", "torch")


def note(cfg: CfgNode, step: str, **facts: Any) -> None:
    """Record a step in the manifest; this replaces its earlier record.

    Args:
        cfg: says where the data is.
        step: of `prepare.py`.
        facts: what is worth knowing; anything that JSON can hold.

    Raises:
        UserError: the file there is not a manifest.
    """
    manifest = read_manifest(cfg)
    used = {name: sys.modules[name].__version__ for name in _LIBRARIES if name in sys.modules}
    manifest["libraries"] = manifest.get("libraries", {}) | used
    manifest[step] = facts
    write_json(Path(cfg.data_dir) / MANIFEST, manifest)


def read_manifest(cfg: CfgNode) -> dict[str, Any]:
    """{step: facts} of what was made; empty where nothing was.

    Raises:
        UserError: the file there is not a manifest.
    """
    path = Path(cfg.data_dir) / MANIFEST
    manifest = read_json(path, "manifest") if path.exists() else {}
    if not isinstance(manifest, dict):
        raise UserError(
            f"manifest {path} was not written by this program: move it away, or choose another "
            "data_dir"
        )
    return manifest
