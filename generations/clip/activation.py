"""Find the activation of a file of CLIP weights: OpenAI's models use quick GELU.

With GELU instead, the same weights load without an error and give worse scores.
"""

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn

from generations.libraries import library

open_clip = library("open_clip", "open_clip_torch")
factory = library("open_clip.factory", "open_clip_torch")

_MARKS = {"input_resolution", "context_length", "vocab_size"}  # in OpenAI's state dicts alone
_QUICK = ("openai", "metaclip", "dfn")  # words in the names of files
_PLAIN = ("laion", "datacomp", "commonpool")
_CONFIG = "open_clip_config.json"  # beside the weights, as on the Hugging Face hub


def wants_quick_gelu(path: Path) -> tuple[bool | None, str]:
    """Whether a file's weights need quick GELU, and the reason.

    The evidence is, in this order: its tensors (OpenAI's keys, or float16 products with float32
    norms), the config beside it, and the names of the file and of its hub folder.

    Returns:
        True, False or, if nothing says it, None; and the reason.
    """
    kinds = _kinds(path)
    if kinds.keys() >= _MARKS:
        return True, "it has the keys of OpenAI's files"
    if {kinds.get("visual.conv1.weight"), kinds.get("ln_final.weight")} == {"float16", "float32"}:
        return True, "its tensors have the types of OpenAI's files"
    beside = _config_beside(path)
    if beside is not None:
        return beside, f"{_CONFIG} beside it says so"
    parts = [path.name, *(part for part in path.parts if part.startswith("models--"))]
    names = " ".join(parts).lower()
    for words, quick in ((_QUICK, True), (_PLAIN, False)):
        if found := next((word for word in words if word in names), ""):
            return quick, f"its name contains {found}"
    return None, ""


def load_state(network: nn.Module, path: Path) -> None:
    """Load a file of tensors, without those keys of OpenAI's files that are not weights.

    Raises:
        Exception: of many kinds, if the file does not fit.
    """
    if not _kinds(path).keys() >= _MARKS:
        # weights_only: a pickle that holds more than tensors is refused, not run
        open_clip.load_checkpoint(cast(Any, network), str(path), weights_only=True)
        return
    state = cast(dict[str, Any], factory.load_state_dict(str(path), weights_only=True))
    network.load_state_dict({name: state[name] for name in state if name not in _MARKS})


def _kinds(path: Path) -> dict[str, str]:
    """{name: type} of a file's tensors; {} if it cannot be read, which loading it tells."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                sizes = {"F16": "float16", "F32": "float32"}
                names = list(file.keys())  # no dictionary
                return {name: sizes.get(file.get_slice(name).get_dtype(), "") for name in names}
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = state.get("state_dict", state)
        return {
            name.removeprefix("module."): str(value.dtype)[6:] if torch.is_tensor(value) else ""
            for name, value in state.items()
        }
    except Exception:  # a damaged file can raise anything
        return {}


def _config_beside(path: Path) -> bool | None:
    try:
        content = json.loads((path.parent / _CONFIG).read_text(encoding="utf-8"))
        return bool(content["model_cfg"].get("quick_gelu", False))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
