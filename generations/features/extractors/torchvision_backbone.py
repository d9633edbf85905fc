"""`torchvision`: the last map of any of torchvision's classifiers or detectors."""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision import models

from generations.checkpoint import read_tensors, refuse_misfit
from generations.errors import UserError
from generations.features.extractors.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SquareExtractor,
    seeded,
)
from generations.features.extractors.registry import RANDOM, ExtractorSettings, register

# where torchvision's classifiers have their last map; of each the first name that it has
_LAST_MAPS = (
    *("permute", "layer4", "inception5b", "Mixed_7c", "conv5", "trunk_output", "features"),
    *("layers", "blocks", "encoder"),
)
_HEADS = ("fc", "classifier", "head", "heads", "aux1", "aux2", "AuxLogits")
_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


@register("torchvision")
class TorchvisionBackbone(SquareExtractor):
    """A map of a network of torchvision, pooled to the grid by ROI-align.

    Of a classifier it is the last map before the mean over all places; of a detector with a
    feature pyramid the coarsest level that has at least G x G points. `layer` names another one: a
    module of the classifier, or a level of the detector's backbone.
    """

    def __init__(self, settings: ExtractorSettings, device: torch.device):
        name = settings.backbone
        detectors = models.list_models(module=models.detection)
        known = models.list_models(module=models) + detectors
        if name not in known:
            close = difflib.get_close_matches(name, known, 3) or ["resnet50"]
            raise UserError(
                f"features.backbone {name!r} is not a classifier or detector of torchvision; did "
                f"you mean {', '.join(close)}?"
            )
        self._detects = name in detectors
        self._layer = settings.layer
        model = _build(settings, self._detects)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if self._detects:
            mean, std = model.transform.image_mean, model.transform.image_std
            model = model.backbone
        else:
            self._keep_map(model)
        super().__init__(settings, model, device, mean, std, unused=_HEADS)

    def _keep_map(self, model: nn.Module) -> None:
        """Let the module in question put its output where `feature_map` finds it."""
        modules = dict(model.named_modules())
        layer = self._layer or next(name for name in _LAST_MAPS if name in modules)
        if layer not in modules:
            raise UserError(
                f"features.layer {layer!r} is not a module of this network; its top-level modules "
                f"are {', '.join(name for name, _ in model.named_children())}"
            )
        module = modules[layer]
        if isinstance(module, nn.ModuleList):  # is not called itself
            module = module[-1]
        module.register_forward_hook(self._note)

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._found = output

    def feature_map(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32, normalised -> (B, D, h, w) float32."""
        found = self.network(pixels)
        if self._detects:
            return _level(found, self._layer, self.grid_size)
        found = self._found
        del self._found
        if isinstance(found, Tensor) and found.ndim == 3:  # class token, then patch tokens
            side = math.isqrt(found.shape[1] - 1)
            found = found[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        if not isinstance(found, Tensor) or found.ndim != 4:
            raise ValueError(f"the output of {self._layer or 'the network'} is not a feature map")
        return found


def _level(levels: dict[str, Tensor], layer: str, grid_size: int) -> Tensor:
    if layer:
        if layer not in levels:
            raise ValueError(f"features.layer must be one of {', '.join(levels)}, not {layer!r}")
        return levels[layer]
    large = [level for level in levels.values() if min(level.shape[2:]) >= grid_size]
    by_size = sorted(large or levels.values(), key=lambda level: level.shape[2])
    return by_size[0] if large else by_size[-1]


def _build(settings: ExtractorSettings, detects: bool) -> Any:
    """The model with its weights."""
    name, weights = settings.backbone, settings.weights
    options: dict[str, Any] = {"weights_backbone": None} if detects else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if not weights:
        raise UserError(
            "features.weights is empty: set it to a name of torchvision "
            f"({', '.join(_published(name))}), a file, or {RANDOM}"
        )
    if weights == RANDOM:
        return seeded(lambda: models.get_model(name, weights=None, **options), settings.seed)
    if Path(weights).suffix in _SUFFIXES:
        model = models.get_model(name, weights=None, **options)
        _load(model, weights, name, detects)
        return model
    if weights not in _published(name):
        raise UserError(
            f"features.weights {weights!r} is unknown: torchvision's {name} has "
            f"{', '.join(_published(name))}; or give a file ({', '.join(_SUFFIXES)}) or {RANDOM}"
        )
    found = cast(Any, models.get_model_weights(name))[weights]
    options.pop("init_weights", None)
    try:
        return models.get_model(name, weights=found, **options)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"features.weights {weights} of {name} are not in the cache and cannot be downloaded "
            f"({reason}); get {found.url} and set features.weights to the file"
        ) from None


def _published(name: str) -> Sequence[str]:
    return list(cast(Any, models.get_model_weights(name)).__members__)


def _load(model: nn.Module, path: str, name: str, detects: bool) -> None:
    """Load all of a file but the classifier, or of a detector the backbone alone."""
    own = model.state_dict()
    stored = read_tensors(path)

    def needed(key: str) -> bool:
        top = key.split(".")[0]
        return top == "backbone" if detects else top not in _HEADS

    given = {key: tensor for key, tensor in stored.items() if needed(key)}
    fitting = {k: t for k, t in given.items() if k in own and t.shape == own[k].shape}
    missing = [key for key in own if needed(key) and key not in stored]
    # files of old do not count batches
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    refuse_misfit(path, f"torchvision's {name}", missing, [k for k in given if k not in fitting])
    model.load_state_dict(fitting, strict=False)
    if hasattr(model, "transform_input"):  # what the published weights of these were trained with
        cast(Any, model).transform_input = True
