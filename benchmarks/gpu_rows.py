"""The rows of benchmarks/gpu.py: what is run, beside the original's amount of work."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import measures
import naive
import numpy as np
import torch
from torch import Tensor, nn

from generations.batch import Batch
from generations.decoding import caption_tokens, image_tokens
from generations.features import ExtractorSettings, build_extractor
from generations.image_generator import build_generator
from generations.image_generator.trainer import GeneratorTrainer, TrainSettings
from generations.modeling import UnifiedTransformer
from generations.objectives import TASKS, SequenceSettings, TaskContext, xe_i2t_loss, xe_t2i_loss
from generations.objectives.token import Run
from generations.runtime import Runtime
from generations.runtime.graphs import at_once
from generations.training.optim import AdamWTransformers, SolverSettings, build_optimizer
from generations.training.update import apply_gradients
from generations.vocabulary import EOS


@dataclass(frozen=True)
class Case:
    """A row: two ways to the same numbers.

    Attributes:
        name: of the row.
        samples: images, captions or pictures in one call.
        ours: one call.
        naive: one call of the original's amount of work; None: there is no other way.
        equal: how far the results of the two are apart; None: not compared here.
        compiled: whether compiled layers are in it.
    """

    name: str
    samples: int
    ours: Callable[[], Any]
    naive: Callable[[], Any] | None = None
    equal: Callable[[], float] | None = None
    compiled: bool = True


class Bench:
    """The model that all rows share, and what they need.

    Args:
        device: where to run.
        size: full or mini.
        batch: of all rows; 0: each row's own.
    """

    def __init__(self, device: torch.device, size: str, batch: int = 0):
        self.device, self.size, self.batch = device, size, batch
        self.configuration = measures.configuration(size)
        torch.manual_seed(0)
        self.model: UnifiedTransformer = measures.new_model(size).to(device)
        some = batch or 32
        self.some = measures.random_batch(self.model, some, 17).to(device)
        self.shorter = measures.random_batch(self.model, some, 16).to(device)
        self.runtime = Runtime(device, autocast_dtype=torch.bfloat16)
        solver = SolverSettings(lr=1e-6)
        self.optimizer = build_optimizer(self.model, solver)
        # of the original; one parameter after the other
        self.original = AdamWTransformers(self.model.parameters(), lr=1e-6, weight_decay=1e-2)
        self.joined: set[str] = set()
        self.run: Run = at_once  # how stage 1 runs

    def rows(self, count: int, whole: Batch | None = None) -> Batch:
        """A batch of so many samples, those of `some` again and again; references stay as few."""
        whole = whole or self.some
        places = torch.arange(count, device=self.device) % len(whole)
        names = [whole.image_ids[place % len(whole)] for place in range(count)]
        rows = whole._map(lambda tensor: tensor[places])
        return Batch(names, ["a dog."] * count, *list(vars(rows).values())[2:])

    def training(
        self,
        name: str,
        batch: Batch,
        ours: Callable[[], Tensor],
        theirs: Callable[[], Tensor] | None,
        compiled: bool = True,
        compare: bool = True,
    ) -> Case:
        """Forward, backward and update."""

        def our_step() -> None:
            self.model.train()
            with self.runtime.autocast():
                loss = ours()
            loss.backward()
            apply_gradients(self.model, self.optimizer, self.joined, 1.0)

        def naive_step() -> None:
            assert theirs is not None
            self.model.train()
            with self.runtime.autocast():
                loss = theirs()
            loss.backward()
            present = [p for p in self.model.parameters() if p.grad is not None]
            nn.utils.clip_grad_norm_(present, 1.0)
            self.original.step()
            self.original.zero_grad()

        def apart() -> float:
            assert theirs is not None
            measures.set_dropout(self.model, 0.0)
            try:
                with torch.no_grad(), self.runtime.autocast():
                    found = [loss().detach() for loss in (ours, theirs)]
            finally:
                measures.set_dropout(self.model, 0.1)
            return measures.apart(*found)

        if theirs is None:
            return Case(name, len(batch), our_step, compiled=compiled)
        return Case(
            name, len(batch), our_step, naive_step, apart if compare else None, compiled=compiled
        )


def xe_i2t(bench: Bench, batch_size: int) -> Case:
    batch = bench.rows(batch_size)
    return bench.training(
        f"xe_i2t, batch {batch_size}",
        batch,
        lambda: xe_i2t_loss(bench.model, batch, run=bench.run),
        lambda: naive.xe_i2t_loss(bench.model, batch),
    )


def xe_t2i(bench: Bench, batch_size: int) -> Case:
    """The mean number of masked cells, 35 of 64."""
    batch = bench.rows(batch_size)
    cells = bench.model.size.grid_size**2
    order = torch.randperm(cells, generator=torch.Generator().manual_seed(1))
    masked = order[: (max(1, cells // 10) + cells) // 2]
    positions = masked.to(bench.device)
    return bench.training(
        f"xe_t2i, batch {batch_size}",
        batch,
        lambda: xe_t2i_loss(bench.model, batch, masked, run=bench.run),
        lambda: naive.xe_t2i_loss(bench.model, batch, positions),
    )


def sequence_context(recompute: bool) -> TaskContext:
    settings = SequenceSettings(16, recompute=recompute, mse_weight=1.0)
    return TaskContext(torch.Generator(), measures.FeatureLevels(), sequence=settings)


def rl_i2t(bench: Bench, batch_size: int, recompute: bool = True) -> Case:
    """15 words for each image, greedily and drawn; no caption ends early."""
    batch = bench.rows(batch_size, bench.shorter)
    words = torch.arange(measures.FIRST_WORD, measures.FIRST_WORD + 40, device=bench.device)
    context = sequence_context(recompute)

    def ours() -> Tensor:
        measures.favour(bench.model, words)
        return TASKS["rl_i2t"](bench.model, batch, context).loss

    def theirs() -> Tensor:
        measures.favour(bench.model, words)
        return naive.rl_i2t_loss(bench.model, batch, 16)

    name = f"rl_i2t, batch {batch_size}" + ("" if recompute else ", recompute 0")
    # what is drawn differs: tests/gpu compares the two
    return bench.training(
        name, batch, ours, theirs if recompute else None, compiled=not recompute, compare=False
    )


def rl_t2i(bench: Bench, batch_size: int, recompute: bool = False) -> Case:
    """Squared distance alone: generator and CLIP are left out on both sides."""
    batch = bench.rows(batch_size, bench.shorter)
    context = sequence_context(recompute)
    name = f"rl_t2i, batch {batch_size}" + (", recompute 1" if recompute else "")
    return bench.training(
        name,
        batch,
        lambda: TASKS["rl_t2i"](bench.model, batch, context).loss,
        None if recompute else lambda: naive.rl_t2i_loss(bench.model, batch),
        compare=False,
    )


def captioning(bench: Bench, batch_size: int) -> Case:
    """Greedy captions of 17 words; the model cannot write EOS."""
    features = bench.rows(batch_size).features
    assert features is not None
    length = 17

    def ready() -> UnifiedTransformer:
        with torch.no_grad():
            bench.model.classifier.predictions.bias[EOS] = -1e4
        return bench.model.eval()

    @torch.no_grad()
    def ours() -> Tensor:
        with bench.runtime.autocast():
            return caption_tokens(ready(), features, text_length=length)

    @torch.no_grad()
    def theirs() -> Tensor:
        with bench.runtime.autocast():
            return naive.write(ready(), features, length, length, naive.likeliest)[0]

    return Case(
        f"captioning {batch_size}",
        batch_size,
        ours,
        theirs,
        lambda: measures.other_ids(ours(), theirs()),
    )


def painting(bench: Bench, batch_size: int) -> Case:
    """Cluster ids in 4 steps; the original keeps the graph."""
    text_ids = bench.rows(batch_size).text_ids

    def ours() -> Tensor:
        with bench.runtime.autocast():
            return image_tokens(bench.model.eval(), text_ids)

    def theirs() -> Tensor:
        with torch.no_grad(), bench.runtime.autocast():
            return naive.paint(bench.model.eval(), text_ids)[0]

    return Case(
        f"painting {batch_size}",
        batch_size,
        ours,
        theirs,
        lambda: measures.other_ids(ours(), theirs()),
    )


def generator_forward(bench: Bench, batch_size: int) -> Case:
    generator = build_generator(bench.configuration).to(bench.device)
    plain = build_generator(bench.configuration).to(bench.device)
    generator.to(memory_format=torch.channels_last)  # as pictures are painted on GPUs
    size = generator.size
    cells = torch.rand(batch_size, size.grid_size, size.grid_size, size.feature_size)
    features = cells.to(bench.device).permute(0, 3, 1, 2)

    @torch.no_grad()
    def ours() -> Tensor:
        with bench.runtime.autocast():
            return generator(features)

    def theirs() -> Tensor:
        with bench.runtime.autocast():
            return plain(features).detach()

    return Case(
        f"image generator, {batch_size} pictures",
        batch_size,
        ours,
        theirs,
        lambda: measures.apart(ours(), theirs()),
        compiled=False,
    )


def generator_training(bench: Bench, batch_size: int) -> Case:
    """A step of the whole recipe but the perceptual loss, whose weights are not at hand."""
    generator = build_generator(bench.configuration).to(bench.device)
    size = generator.size
    clusters = bench.model.size.clusters
    codebook = torch.rand(clusters, size.feature_size, device=bench.device)
    trainer = GeneratorTrainer(generator, codebook, TrainSettings(), seed=0)
    ids = torch.randint(clusters, (batch_size, size.grid_size**2), device=bench.device)
    pictures = torch.rand(batch_size, 3, size.image_size, size.image_size, device=bench.device)
    return Case(
        f"generator training, batch {batch_size}",
        batch_size,
        lambda: trainer.step(ids, pictures * 2 - 1),
        compiled=False,
    )


def extraction(bench: Bench, batch_size: int) -> Case:
    """ResNet-50's features of pictures in memory, with the way to the card and back."""
    side = 256 if bench.size == "full" else 64
    settings = ExtractorSettings(
        "torchvision", side, 8 if side == 256 else 2, 2048, "resnet50", weights="random",
        precision="bfloat16",
    )  # fmt: skip
    extractor = build_extractor(settings, bench.device)
    pictures = np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), np.uint8)
    return Case(
        f"extraction, {batch_size} pictures",
        batch_size,
        lambda: extractor(pictures),
        compiled=False,
    )


# those that matter most come first
CASES: dict[str, tuple[Callable[[Bench, int], Case], int]] = {
    "xe_i2t_256": (xe_i2t, 256),
    "xe_t2i_256": (xe_t2i, 256),
    "xe_i2t_32": (xe_i2t, 32),
    "xe_t2i_32": (xe_t2i, 32),
    "rl_i2t": (rl_i2t, 20),
    "rl_t2i": (rl_t2i, 20),
    "captioning": (captioning, 256),
    "painting": (painting, 256),
    "generator_forward": (generator_forward, 64),
    "generator_training": (generator_training, 32),
    "extraction": (extraction, 64),
    "rl_i2t_kept": (lambda bench, size: rl_i2t(bench, size, recompute=False), 20),
    "rl_t2i_recompute": (lambda bench, size: rl_t2i(bench, size, recompute=True), 20),
}
