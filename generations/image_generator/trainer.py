"""One training step of the image generator after another, with or without a discriminator.

Shape legend: B batch, D grid feature size, G grid side, N = G * G cells, S image side, K clusters.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from generations.errors import UserError
from generations.image_generator.discriminator import build_discriminator
from generations.image_generator.generator import ImageGenerator, codebook_grid
from generations.image_generator.losses import (
    cluster_classification,
    feature_matching,
    hinge_discriminator,
    hinge_generator,
    reconstruction,
)

WARMUP = 0.02  # share of the steps over which the learning rates rise


@dataclass(frozen=True)
class TrainSettings:
    """How the image generator is trained. Defaults: X-LXMERT's optimiser and weights (SPEC 9).

    Attributes:
        train_steps: number of steps.
        batch_size: images a step.
        lr: learning rate of the generator.
        precision: float32 or bfloat16, of the products.
        discriminator_lr: learning rate of the discriminator.
        beta1: Adam's first beta.
        cosine: let the learning rates fall to zero along a cosine; else they stay constant.
        bottleneck_std: scale the generator's first layer so that over the codebook each of its
            outputs has this deviation (`spread_bottleneck`); 0: leave it alone.
        reconstruction_weight: of the pixel difference.
        contrast: extra weight of pixels that stand out (`losses.reconstruction`).
        adversarial_weight: of the discriminator's score and of its classifier; 0: there is no
            discriminator at all.
        feature_matching_weight: of the difference of the discriminator's features.
        perceptual_weight: of the difference of the perceptual network's features, if there is one.
        adversarial_start: step at which the discriminator joins.
        discriminator_channels: its width at full size.
        log_every: steps between two calls of `Hooks.log`.
        report_every: steps between two looks at held-out images, samples and saves.
    """

    train_steps: int = 20000
    batch_size: int = 32
    lr: float = 4e-4
    precision: str = "float32"
    discriminator_lr: float = 1e-4
    beta1: float = 0.0
    cosine: bool = False
    bottleneck_std: float = 0.0
    reconstruction_weight: float = 10.0
    contrast: float = 0.0
    adversarial_weight: float = 1.0
    feature_matching_weight: float = 10.0
    perceptual_weight: float = 10.0
    adversarial_start: int = 0
    discriminator_channels: int = 64
    log_every: int = 50
    report_every: int = 1000


@dataclass(frozen=True)
class Sharing:
    """How several processes train one generator, each on a part of every batch.

    Attributes:
        rank: of this process.
        world_size: number of processes.
        mean: a tensor's mean over all processes, on all processes.
    """

    rank: int = 0
    world_size: int = 1
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor


class GeneratorTrainer:
    """One step at a time: the networks, their optimisers and how far they have come.

    Args:
        generator: on its device; put in training mode by every step.
        codebook: (K, D), on the same device.
        settings: the recipe.
        seed: of the discriminator's weights and the noise.
        perceptual: pictures (B, 3, S, S) in [-1, 1] -> feature maps, on the same device.
        sharing: with other processes, all of which make the same steps.

    Attributes:
        steps: number of steps done.
    """

    def __init__(
        self,
        generator: ImageGenerator,
        codebook: Tensor,
        settings: TrainSettings,
        seed: int,
        perceptual: nn.Module | None = None,
        sharing: Sharing | None = None,
    ):
        self.generator, self.codebook, self.settings = generator, codebook, settings
        self.steps = 0
        self.sharing = sharing or Sharing()
        self._seed = seed
        self._rng = torch.Generator(codebook.device)
        self._perceptual = perceptual
        betas = (settings.beta1, 0.999)
        self.optimizer = torch.optim.Adam(generator.parameters(), settings.lr, betas)
        self.discriminator = None
        if settings.adversarial_weight:
            size = generator.size
            self.discriminator = build_discriminator(
                *(codebook.cpu(), size.grid_size, size.image_size),
                *(settings.discriminator_channels, seed),
            ).to(codebook.device)
            self.discriminator_optimizer = torch.optim.Adam(
                self.discriminator.parameters(), settings.discriminator_lr, betas
            )
        self._finite = torch.ones((), dtype=torch.bool, device=codebook.device)

    def step(self, cluster_ids: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Learn from one batch.

        Args:
            cluster_ids: (B, N) int64.
            images: (B, 3, S, S) in [-1, 1].

        Returns:
            The losses, without their weights, as scalars on the device.
        """
        settings = self.settings
        self.generator.train()
        factor = learning_rate_factor(self.steps, settings)
        # of the step alone, so that a resumed training draws what the undisturbed one did
        mixed = np.random.SeedSequence((self._seed, self.steps, self.sharing.rank))
        self._rng.manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> 1))
        with self._autocast():
            painted = self.generator(
                codebook_grid(self.codebook, cluster_ids), rng=self._rng
            ).float()  # (B, 3, S, S)
        difference = reconstruction(painted, images, settings.contrast)
        loss = settings.reconstruction_weight * difference
        logs = {"difference": difference.detach()}
        if self._perceptual is not None:
            with self._autocast():
                with torch.no_grad():
                    real = self._perceptual(images)
                fake = self._perceptual(painted)
            seen = feature_matching(_floats(fake), _floats(real))
            loss = loss + settings.perceptual_weight * seen
            logs["perceptual"] = seen.detach()
        if self.discriminator is not None and self.steps >= settings.adversarial_start:
            logs |= self._teach_discriminator(painted.detach(), images, cluster_ids, factor)
            adversarial, more = self._against_discriminator(painted, images, cluster_ids)
            loss = loss + adversarial
            logs |= more
        _descend(self.optimizer, loss, settings.lr * factor, self.sharing)
        self._finite &= torch.isfinite(loss.detach())
        self.steps += 1
        return logs

    def _teach_discriminator(
        self, painted: Tensor, images: Tensor, cluster_ids: Tensor, factor: float
    ) -> dict[str, Tensor]:
        assert self.discriminator is not None
        with self._autocast():
            real, fake = self.discriminator(images), self.discriminator(painted)
        hinge = hinge_discriminator(real.scores.float(), fake.scores.float())
        classes = cluster_classification(real.cluster_logits.float(), cluster_ids)
        lr = self.settings.discriminator_lr * factor
        _descend(self.discriminator_optimizer, hinge + classes, lr, self.sharing)
        return {"discriminator_hinge": hinge.detach(), "discriminator_classes": classes.detach()}

    def _against_discriminator(
        self, painted: Tensor, images: Tensor, cluster_ids: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.discriminator is not None
        with _frozen(self.discriminator), self._autocast():
            fake = self.discriminator(painted)
            with torch.no_grad():
                real = self.discriminator(images)
        hinge = hinge_generator(fake.scores.float())
        classes = cluster_classification(fake.cluster_logits.float(), cluster_ids)
        matching = feature_matching(_floats(fake.features), _floats(real.features))
        weights = self.settings
        loss = weights.adversarial_weight * (hinge + classes)
        loss = loss + weights.feature_matching_weight * matching
        logs = {"hinge": hinge, "classes": classes, "feature_matching": matching}
        return loss, {name: value.detach() for name, value in logs.items()}

    def _autocast(self) -> torch.autocast:
        # without the cache: spectral norm makes the weights anew in every forward pass
        return torch.autocast(
            self.codebook.device.type,
            torch.bfloat16,
            enabled=self.settings.precision == "bfloat16",
            cache_enabled=False,
        )

    def scalars(self, logs: Mapping[str, Tensor]) -> dict[str, float]:
        """The logs of a step as numbers, over all processes, each of which has to ask.

        Raises:
            UserError: some loss since the start was not finite.
        """
        values = torch.stack([(~self._finite).float(), *(v.float() for v in logs.values())])
        bad, *means = self.sharing.mean(values).tolist()
        if bad:
            raise UserError(
                f"image generator: the loss is no longer finite at step {self.steps}; lower "
                f"generator.lr (now {self.settings.lr})"
            )
        lr = self.settings.lr * learning_rate_factor(self.steps - 1, self.settings)
        return dict(zip(logs, means, strict=True)) | {"lr": lr}

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to resume: tensors, numbers and plain containers."""
        state = {
            "steps": self.steps,
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.discriminator is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["discriminator_optimizer"] = self.discriminator_optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that `state_dict` returned."""
        self.steps = state["steps"]
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])


def learning_rate_factor(step: int, settings: TrainSettings) -> float:
    """What the learning rates are multiplied with in step 0, 1, ...: warm-up, then cosine or 1."""
    warmup = max(1, round(WARMUP * settings.train_steps))
    factor = min(1.0, (step + 1) / warmup)
    if settings.cosine:
        factor *= 0.5 * (1 + math.cos(math.pi * step / settings.train_steps))
    return factor


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, lr: float, sharing: Sharing) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    if sharing.world_size > 1:
        _average_gradients(optimizer, sharing)
    optimizer.step()


def _average_gradients(optimizer: torch.optim.Optimizer, sharing: Sharing) -> None:
    """All at once: the networks are small, and all processes have gradients of the same weights."""
    found = [p.grad for group in optimizer.param_groups for p in group["params"]]
    gradients = [gradient for gradient in found if gradient is not None]
    mean = sharing.mean(torch.cat([gradient.flatten() for gradient in gradients]))
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, part in zip(gradients, mean.split(sizes), strict=True):
        gradient.copy_(part.view_as(gradient))


def _floats(features: Sequence[Tensor]) -> list[Tensor]:
    return [feature.float() for feature in features]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradients for the module's weights, though they flow through it."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
