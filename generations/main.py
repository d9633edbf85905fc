"""Train: `python generations/main.py [--config FILE] exp_id X key value ...`"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the package's own folder must not shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging

import torch
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from generations import cli, runtime
from generations.checkpoint import load_weights
from generations.datasets import (
    CaptioningDataset,
    InfiniteSampler,
    TaskSampler,
    collate,
    read_split,
)
from generations.files import write_text
from generations.modeling import UnifiedTransformer, build_model
from generations.objectives import TaskContext, TaskStep, reads_dense
from generations.pipelines import assembly
from generations.pipelines.sequence import sequence_settings
from generations.pipelines.validation import Validation
from generations.training.checkpoint import resume, save_checkpoint
from generations.training.loop import LoopSettings, TrainingState, train
from generations.training.monitor import Monitor
from generations.training.optim import SolverSettings, build_optimizer, build_scheduler

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, build, train, close."""
    _, cfg = cli.parse(__doc__ or "", argv)
    with runtime.start(cfg.device, bool(cfg.distributed), bool(cfg.fp16)) as here:
        cli.quiet_unless(here.is_main)
        train_run(cfg, here)


def train_run(cfg: CfgNode, here: runtime.Runtime) -> None:
    """Train as the configuration says, from where it says."""
    folder = assembly.run_folder(cfg)
    dataset = _dataset(cfg)
    sequence = sequence_settings(cfg, dataset.references, folder, here)
    runtime.seed_everything(cfg.seed, 0)  # all ranks start from the same weights
    model = build_model(cfg).to(here.device)
    state = _state(cfg, model, here)
    if here.is_main:
        write_text(folder / "config.yaml", cfg.dump())
    settings = _loop_settings(cfg)
    loader = _loader(cfg, dataset, here, state.iteration)
    monitor = Monitor(folder, here, state.iteration + 1, settings.iterations, cfg.log_time)
    validation = Validation(cfg, model, here, monitor) if cfg.test_interval else None
    levels = assembly.feature_levels(cfg)

    def make_context(generator: torch.Generator) -> TaskContext:
        return TaskContext(
            generator,
            levels,
            cfg.label_smoothing,
            cfg.label_smoothing_classes or None,
            bool(cfg.visual_mask_per_sample),
            sequence,
        )

    def save(state: TrainingState) -> None:
        if here.is_main:
            save_checkpoint(folder, state, cfg.checkpoint_format)
        runtime.wait_for_all(here)

    try:
        train(
            runtime.data_parallel(TaskStep(model), here),
            state,
            iter(loader),
            make_context,
            settings,
            here,
            monitor,
            save,
            validation or (lambda iteration: None),
        )
    finally:
        monitor.close()


def _dataset(cfg: CfgNode) -> CaptioningDataset:
    records = read_split(cfg.dataset_coco, cfg.train_split)
    levels = assembly.feature_levels(cfg)
    return CaptioningDataset(
        records,
        assembly.open_tokenizer(cfg),
        assembly.open_clusters(cfg),
        assembly.open_features(cfg) if levels.any_dense else None,
        cfg.text_length,
        cfg.seed,
    )


def _loader(
    cfg: CfgNode, dataset: CaptioningDataset, here: runtime.Runtime, iteration: int
) -> DataLoader:
    sampler = InfiniteSampler(
        len(dataset), cfg.samples_per_gpu, here.rank, here.world_size, cfg.seed, iteration
    )
    levels = assembly.feature_levels(cfg)
    dense = [reads_dense(task, levels) for task in cfg.iteration_tasks]
    return DataLoader(
        dataset,
        batch_sampler=TaskSampler(sampler, dense, iteration),
        collate_fn=collate,
        num_workers=cfg.num_workers,
        pin_memory=here.device.type == "cuda",
        persistent_workers=cfg.num_workers > 0,
    )


def _state(cfg: CfgNode, model: UnifiedTransformer, here: runtime.Runtime) -> TrainingState:
    """Model, optimiser and schedule, loaded from the run's starting point."""
    solver = SolverSettings(
        **{name: value for name, value in cfg.solver.items()},
        schedule=cfg.scheduler.method,
        warmup_steps=cfg.scheduler.warmup_steps,
        max_steps=cfg.scheduler.max_steps,
    )
    optimizer = build_optimizer(model, solver)
    scheduler = build_scheduler(optimizer, solver)
    state = TrainingState(model, optimizer, scheduler, here.scaler(cfg.loss_scale), 0, set())
    start = assembly.choose_start(cfg)
    if start.kind == "resume":
        resume(Path(start.path), state)
        if cfg.restart_iteration:
            state.iteration = 0
        logger.info("resuming %s at iteration %d", start.path, state.iteration)
    else:
        assembly.load_codebook(cfg, model)
        if start.kind != "random":
            load_weights(model, start.path)
        logger.info("starting from %s", start.path or "random weights")
    return state


def _loop_settings(cfg: CfgNode) -> LoopSettings:
    return LoopSettings(
        tasks=cfg.iteration_tasks,
        # max_steps counts optimiser steps, iterations count batches
        iterations=cfg.scheduler.max_steps * cfg.gradient_accumulation_steps,
        accumulation=cfg.gradient_accumulation_steps,
        grad_clip=cfg.solver.grad_clip,
        checkpoint_every=cfg.checkpoint_time,
        test_every=cfg.test_interval,
        max_skipped=cfg.max_skipped_updates,
        seed=cfg.seed,
    )


if __name__ == "__main__":
    cli.run(main)
