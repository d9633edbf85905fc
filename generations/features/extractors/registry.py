"""What an extractor is, and how one is made by its name."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Protocol, TypeVar

import numpy as np
import torch

from generations.errors import UserError

RANDOM = "random"  # features.weights: weights drawn from the seed


@dataclass(frozen=True)
class ExtractorSettings:
    """What an extractor is built from.

    Attributes:
        name: of the extractor, in the registry.
        image_size: S, pixels; None for an extractor that takes pictures as large as they are.
        grid_size: G.
        dim: D that the configuration expects.
        backbone: network of an extractor that has a choice.
        layer: part of it whose output is pooled; '': the last one.
        weights: a name that the network's library knows, a file, or "random"; '': the extractor's
            own.
        seed: of random weights.
        precision: of the network's products, float32, bfloat16 or float16; features are
            float32 in any case.
    """

    name: str
    image_size: int | None
    grid_size: int
    dim: int
    backbone: str = ""
    layer: str = ""
    weights: str = ""
    seed: int = 0
    precision: str = "float32"

    @property
    def side(self) -> int:
        """S; a UserError if it is not set."""
        if self.image_size is None:
            raise UserError(
                f"features.extractor {self.name} needs features.image_size of at least 1"
            )
        return self.image_size


class Extractor(Protocol):
    """Grid features of images.

    Attributes:
        name: in the registry.
        image_size: S of the squares it takes; None: it takes pictures as large as they are.
        grid_size: G.
        dim: D.
        weights_sha256: of names, shapes and values of its weights; '' if it has none.
    """

    name: str
    image_size: int | None
    grid_size: int
    dim: int
    weights_sha256: str

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """B times (S, S, 3) uint8 RGB -> (B, G, G, D) float32."""
        ...


Builder = Callable[[ExtractorSettings, torch.device], Extractor]
AnyBuilder = TypeVar("AnyBuilder", bound=Builder)
_BUILDERS: dict[str, Builder] = {}
# the module of each one here; it is imported when it is asked for, as its library takes seconds
_MODULES = {
    "patches": "patches",
    "torchvision": "torchvision_backbone",
    "open_clip": "clip_tower",
    "butd": "butd",
    "efficientnet-lite0": "efficientnet_lite0",
}


def register(name: str) -> Callable[[AnyBuilder], AnyBuilder]:
    """Decorator: make an extractor known as `features.extractor <name>`."""

    def add(build: AnyBuilder) -> AnyBuilder:
        _BUILDERS[name] = build
        return build

    return add


def build_extractor(settings: ExtractorSettings, device: torch.device | str = "cpu") -> Extractor:
    """Build the extractor that the settings name.

    Args:
        settings: which, and from what.
        device: where its network runs.

    Raises:
        UserError: there is none of this name, its weights cannot be had, or its features are not
            of the size expected.
    """
    if settings.name in _MODULES:
        import_module(f"{__package__}.{_MODULES[settings.name]}")
    if settings.name not in _BUILDERS:
        known = sorted({*_BUILDERS, *_MODULES})
        raise UserError(
            f"features.extractor must be one of {', '.join(known)}, not {settings.name!r}"
        )
    extractor = _BUILDERS[settings.name](settings, torch.device(device))
    if extractor.dim != settings.dim:
        sizes = f"grid_size {settings.grid_size}"
        if extractor.image_size is not None:
            sizes = f"features.image_size {settings.image_size} and {sizes}"
        raise UserError(
            f"features.extractor {settings.name} with {sizes} computes {extractor.dim} numbers for "
            f"a cell, but grid_feat_dim is {settings.dim}; set grid_feat_dim {extractor.dim} or "
            "change features.image_size"
        )
    return extractor


def identity(settings: ExtractorSettings, extractor: Extractor) -> dict[str, str | int | None]:
    """Everything that the features depend on: extractors of equal identity give equal features.

    Where the weights came from is left out; what they are counts.
    """
    facts: dict[str, str | int | None] = {
        "name": settings.name,
        "image_size": extractor.image_size,
        "grid_size": settings.grid_size,
        "dim": settings.dim,
    }
    told = {
        "backbone": settings.backbone,
        "layer": settings.layer,
        "weights_sha256": extractor.weights_sha256,
        "precision": "" if settings.precision == "float32" else settings.precision,
    }
    return facts | {key: value for key, value in told.items() if value}


def describe(settings: ExtractorSettings, extractor: Extractor) -> dict[str, str | int | None]:
    """The identity, and what is needed to build the extractor again."""
    again = asdict(settings)
    kept = ["weights"] + (["seed"] if settings.weights == RANDOM else [])
    return identity(settings, extractor) | {key: again[key] for key in kept if again[key] != ""}
