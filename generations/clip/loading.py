"""Loading a CLIP by open_clip's names or from files, safely; saving a small one.

A model is named (open_clip's name and pretrained tag), or described by a JSON file as on the
Hugging Face hub, {"model_cfg", "preprocess_cfg"}, which may list the tokens that a SmallTokenizer
keeps ("token_ids").
"""

import copy
import difflib
import hashlib
import logging
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from generations.clip.activation import load_state, wants_quick_gelu
from generations.clip.backbone import build_network
from generations.clip.model import PREPROCESS, ClipModel, SmallTokenizer
from generations.errors import UserError
from generations.files import atomic_path, read_json, write_json
from generations.libraries import library

open_clip = library("open_clip", "open_clip_torch")
pretrained = library("open_clip.pretrained", "open_clip_torch")
constants = library("open_clip.constants", "open_clip_torch")

logger = logging.getLogger(__name__)

OFF = "or turn CLIP off: use_clip_score 0 mse_loss 1 eval_clipscore 0"

# what open_clip and PyTorch raise for configs and files that do not fit: they check little
MISFITS = (
    *(TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, AssertionError),
    *(ArithmeticError, OSError, EOFError, StopIteration, pickle.UnpicklingError, SafetensorError),
)


def load_clip(
    model: str, weights: str, device: torch.device | str = "cpu", quick_gelu: str = "auto"
) -> ClipModel:
    """Load a CLIP through open_clip.

    Args:
        model: open_clip model name ("ViT-B-32"), or an open_clip model config (.json).
        weights: pretrained tag of that name ("openai"; downloaded if the cache lacks it), or a
            checkpoint file: .safetensors, a state dict saved by PyTorch, or one of the TorchScript
            archives that OpenAI published.
        device: where it will live.
        quick_gelu: 1 or 0, whether a file wants that activation; auto: what its tag, config,
            tensors or name say (see `generations.clip.activation`).

    Returns:
        The model, frozen, in float32.

    Raises:
        UserError: unknown name, bad config, weights that are missing, unsafe or of another model,
            or that do not say which activation they want.
    """
    tag: dict[str, Any] = {}
    if model.endswith(".json"):
        config = _read_config(Path(model))
    else:
        model = model.replace("/", "-")
        config = {"model_cfg": _named_config(model)}
        tag = open_clip.get_pretrained_cfg(model, weights)
    path = _download(model, weights, tag) if tag else _local_file(model, weights)
    scripted = _is_torchscript(path)
    if quick_gelu != "auto":
        config["model_cfg"]["quick_gelu"] = quick_gelu == "1"
    elif tag.get("quick_gelu") or scripted:
        # open_clip builds what the name says, though these weights want the other activation.
        config["model_cfg"]["quick_gelu"] = True
    elif not tag:
        _choose_activation(config["model_cfg"], model, path)
    config["preprocess_cfg"] = PREPROCESS | config.get("preprocess_cfg", {})
    config["preprocess_cfg"] |= {key: tag[key] for key in PREPROCESS if key in tag}
    network = _build(config["model_cfg"], model)
    _load_weights(network, path, scripted, model)
    try:
        clip = ClipModel(network, _tokenizer(model, config), config)
    except MISFITS as error:
        raise UserError(f"clip.model {model}: {_short(error)}") from None
    return clip.to(device)


def _choose_activation(parts: dict[str, Any], model: str, path: Path) -> None:
    """Set the activation of a local file's model, by what the file is known to be."""
    known, why = wants_quick_gelu(path)
    if known and not parts.get("quick_gelu"):
        logger.warning("clip.weights %s: using quick GELU, because %s", path, why)
        parts["quick_gelu"] = True
    elif known is None and f"{model}-quickgelu" in open_clip.list_models():
        raise UserError(
            f"clip.weights {path}: the activation of this model is unknown, and a wrong one gives "
            "wrong scores. Set clip.quick_gelu 1 (weights of OpenAI, MetaCLIP, DFN) or 0 (LAION, "
            "DataComp and others), or name the origin in the file name"
        )


def save_clip(clip: ClipModel, folder: str | Path) -> tuple[Path, Path]:
    """Write `clip.json` and `clip.safetensors`, which `load_clip` reads.

    Args:
        clip: a model of `train_clip`, whose weights are float16 numbers, and are written as such.
        folder: where to.

    Returns:
        The paths of the config and of the weights.
    """
    config, weights = Path(folder) / "clip.json", Path(folder) / "clip.safetensors"
    state = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in clip.network.state_dict().items()
    }
    with atomic_path(weights) as temporary:
        save_file(state, temporary)
    write_json(config, clip.config)
    return config, weights


def _named_config(model: str) -> dict[str, Any]:
    names = open_clip.list_models()
    if model not in names:
        close = difflib.get_close_matches(model, names, 3)
        hint = f"did you mean {', '.join(close)}?" if close else "see open_clip.list_models()"
        raise UserError(
            f"clip.model: {model!r} is neither a .json file nor a model of open_clip; {hint}"
        )
    return cast(dict[str, Any], open_clip.get_model_config(model))


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path, "clip.model")
    if isinstance(config, dict) and "model_cfg" not in config:
        config = {"model_cfg": config}  # the form of open_clip's built-in files
    parts = config.get("model_cfg") if isinstance(config, dict) else None
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in (parts or ())]
    if not isinstance(parts, dict) or missing:
        raise UserError(
            f"clip.model: {path} is not an open_clip model config: {', '.join(missing)} missing"
        )
    if not isinstance(config.get("preprocess_cfg", {}), dict):
        raise UserError(f"clip.model: {path}: preprocess_cfg must be an object")
    return config


def _local_file(model: str, weights: str) -> Path:
    path = Path(weights)
    if weights and path.is_file():
        return path
    if model.endswith(".json"):
        raise UserError(
            f"clip.weights: {weights!r} is not a file; give the weights that belong to {model}, "
            f"{OFF}"
        )
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
    raise UserError(
        f"clip.weights: {weights!r} is neither a file nor a tag of {model} (tags: {tags})"
    )


def _download(model: str, weights: str, tag: dict[str, Any]) -> Path:
    try:
        return Path(pretrained.download_pretrained(tag))
    except (OSError, RuntimeError, ValueError) as error:
        places = []
        if tag.get("hf_hub"):
            repository, file = tag["hf_hub"].rsplit("/", 1)
            places.append(
                f"{file or constants.HF_SAFE_WEIGHTS_NAME} of https://huggingface.co/{repository}"
            )
        if tag.get("url"):
            places.append(tag["url"])
        quick = f"{model}-quickgelu"
        fitting = quick if tag.get("quick_gelu") and quick in open_clip.list_models() else model
        raise UserError(
            f"clip.weights: {weights!r} of {model} is not in the cache and cannot be downloaded; "
            f"get {' or '.join(places)} and set clip.model {fitting} clip.weights "
            f"/path/to/the/file, {OFF} ({_short(error)})"
        ) from None


def _build(model_cfg: dict[str, Any], model: str) -> nn.Module:
    parts = copy.deepcopy(model_cfg)
    try:
        text = parts["text_cfg"]
        custom = parts.pop("custom_text", False) or "hf_model_name" in text
        if "hf_model_name" in text:
            text["hf_model_pretrained"] = False  # the checkpoint brings all weights
        if "multimodal_cfg" in parts:
            return open_clip.CoCa(**parts)
        return open_clip.CustomTextCLIP(**parts) if custom else build_network(parts)
    except UserError:  # a ValueError too
        raise
    except MISFITS as error:
        raise UserError(f"clip.model {model}: open_clip cannot build it: {_short(error)}") from None


def _tokenizer(model: str, config: dict[str, Any]) -> Callable[[list[str]], Tensor]:
    text = config["model_cfg"]["text_cfg"]
    if not model.endswith(".json"):
        return open_clip.get_tokenizer(model)
    length = text.get("context_length", 77)
    if text.get("hf_tokenizer_name"):
        raise ValueError(
            "its text_cfg needs a Hugging Face tokenizer; give the name of the model in open_clip "
            "instead"
        )
    if "token_ids" in config:
        tokenizer = SmallTokenizer(config["token_ids"], length)
    else:
        tokenizer = open_clip.SimpleTokenizer(context_length=length)
    if tokenizer.vocab_size > text.get("vocab_size", 49408):
        raise ValueError(
            f"text_cfg.vocab_size {text['vocab_size']} is less than the tokenizer's "
            f"{tokenizer.vocab_size} tokens"
        )
    return tokenizer


def _load_weights(network: nn.Module, path: Path, scripted: bool, model: str) -> None:
    try:
        if scripted:
            _check_trusted(path)
            # the archive holds a program; open_clip takes the tensors out of it
            published = open_clip.load_openai_model(str(path), precision="fp32", device="cpu")
            network.load_state_dict(published.state_dict())
        else:
            load_state(network, path)
    except UserError:
        raise
    except MISFITS as error:
        raise UserError(
            f"clip.weights {path} cannot be read as weights of {model}: {_short(error)}"
        ) from None


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # a damaged file can raise anything; what reads it next says what is wrong
        return False


def _openai_checksums() -> set[str]:
    """SHA-256 of the archives that OpenAI published; their addresses contain them."""
    urls = (open_clip.get_pretrained_url(name, "openai") for name in open_clip.list_openai_models())
    return {url.split("/")[-2] for url in urls}


def _check_trusted(path: Path) -> None:
    """Loading a TorchScript archive can run a program in it: take only those known by checksum."""
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    if checksum not in _openai_checksums():
        raise UserError(
            f"clip.weights {path} is a TorchScript archive, which can run code, and not one that "
            "OpenAI published (or it is damaged); save its state_dict() as .safetensors and give "
            "that file"
        )


def _short(error: BaseException) -> str:
    """One line of at most 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
