"""The order in which the cells of a picture are fixed, and classifier-free guidance."""

from dataclasses import dataclass

import torch
from torch import Tensor

from generations.batch import to_device

ORDERS = ("confidence", "halton", "random")
GUIDANCE_SCHEDULES = ("constant", "growing")


@dataclass(frozen=True)
class Order:
    """Which cells are masked again after a step: those of the lowest standing.

    Attributes:
        name: confidence, of the paper: the least certain of all cells, written before or not;
            halton: settled cells stay, and those of each step lie far from each other;
            random: settled cells stay.
        noise: of confidence: Gumbel noise times this is added to the logarithm of the certainty,
            times the share of the steps that is left; 0: none.
        uniforms: (B, S, R, N) in [0, 1) of `draw_uniforms`, for S pictures of each caption: for
            noise R is the number of steps, for random 1.

    Source: SPEC 7; Chang et al. 2022 (MaskGIT), noise; Besnier et al. 2025, halton.
    """

    name: str = "confidence"
    noise: float = 0.0
    uniforms: Tensor | None = None

    def standing(self, certainty: Tensor, step: int, steps: int) -> Tensor:
        """How sure each cell (B, N) is to stay after a step (from 0), given its certainty."""
        if self.name == "halton":
            visits = torch.tensor(halton_visits(round(certainty.shape[1] ** 0.5)))
            return -to_device(visits.to(certainty.dtype), certainty.device).expand_as(certainty)
        if self.name not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {self.name!r}")
        if self.name == "confidence" and not self.noise:
            return certainty
        if self.uniforms is None:
            raise ValueError("this order is random: pass `uniforms` (see draw_uniforms)")
        number = 0 if self.name == "random" else step
        uniforms = self.uniforms[:, :, number].to(certainty.dtype)
        uniforms = to_device(uniforms, certainty.device).flatten(0, 1)  # (B * S, N)
        if self.name == "random":
            return uniforms
        gumbel = -(-uniforms.log()).log()
        return certainty.log() + self.noise * (1 - (step + 1) / steps) * gumbel


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: logits + scale * (logits - logits of the empty caption).

    Attributes:
        scale: 0: none.
        schedule: constant; or growing, linearly, to `scale` at the last step.

    Source: Ho and Salimans 2021; growing: Chang et al. 2023 (Muse), section 2.7.
    """

    scale: float = 0.0
    schedule: str = "constant"

    def at(self, step: int, steps: int) -> float:
        """The scale at a step (from 0)."""
        if self.schedule not in GUIDANCE_SCHEDULES:
            options = ", ".join(GUIDANCE_SCHEDULES)
            raise ValueError(f"guidance schedule must be one of {options}, not {self.schedule!r}")
        return self.scale * ((step + 1) / steps if self.schedule == "growing" else 1)


def halton_visits(side: int) -> list[int]:
    """When the Halton sequence of bases 2 and 3 first comes to each cell of a grid, row by row.

    The numbers are 0..side**2 - 1. Points of any stretch of the sequence are spread evenly.
    """
    visits: dict[tuple[int, int], int] = {}
    point = 0
    while len(visits) < side * side:
        point += 1
        cell = (int(_mirrored(point, 2) * side), int(_mirrored(point, 3) * side))
        visits.setdefault(cell, len(visits))
    return [visits[row, column] for row in range(side) for column in range(side)]


def _mirrored(number: int, base: int) -> float:
    """The digits of a number behind the point, the last one first."""
    found, digit = 0.0, 1.0
    while number:
        digit /= base
        found += digit * (number % base)
        number //= base
    return found
