"""Training: what main.py runs."""

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from generations import cli, runtime
from generations.batch import Batch
from generations.checkpoint import load_tensors, load_weights
from generations.config import PATHS
from generations.datasets import (
    CaptioningDataset,
    InfiniteSampler,
    TaskSampler,
    collate,
    cropped_captions,
    read_split,
)
from generations.errors import ProcessLostError, UserError
from generations.files import only_writer, write_text
from generations.modeling import UnifiedTransformer, build_model, compile_layers
from generations.modeling.work import stage1_operations
from generations.objectives import TaskContext, TaskStep, reads_dense, unread_parameters
from generations.pipelines import assembly
from generations.pipelines.captions import say_cropped
from generations.pipelines.extraction import remember_extractor
from generations.pipelines.sequence import sequence_settings
from generations.pipelines.validation import Validation
from generations.runtime.cards import card_name, peak_tflops
from generations.runtime.graphs import Graphs, at_once
from generations.training.average import AveragedWeights
from generations.training.checkpoint import Checkpoints, read_resumable, restore
from generations.training.loop import LoopSettings, TrainingState, train
from generations.training.monitor import Monitor, start_tracker
from generations.training.optim import SolverSettings, build_optimizer, build_scheduler
from generations.training.profiling import StepProfiler
from generations.training.speed import Speed

logger = logging.getLogger(__name__)


def run(cfg: CfgNode) -> None:
    """Build, train, close."""
    deterministic, timeout = bool(cfg.deterministic), cfg.hang_timeout
    with runtime.start(
        cfg.device, bool(cfg.distributed), assembly.precision(cfg), deterministic, timeout
    ) as here:
        cli.quiet_unless(here.is_main)
        folder = assembly.run_folder(cfg)
        alone = only_writer(folder) if here.is_main else nullcontext()
        with runtime.Watch(here, cfg.hang_timeout) as watch, alone:
            _check_agreement(cfg, here)
            train_run(cfg, here, watch)


def train_run(cfg: CfgNode, here: runtime.Runtime, watch: runtime.Watch) -> None:
    """Train with a configuration, from the starting point that it names."""
    folder = assembly.run_folder(cfg)
    checkpoints = Checkpoints(folder, here, cfg.checkpoint_format, cfg.keep_last, cfg.keep_best)
    dataset = _dataset(cfg)
    sequence = sequence_settings(cfg, dataset.references, folder, here)
    model, state, step = _state(cfg, len(dataset), here)
    if here.is_main:
        remember_extractor(cfg, folder, resumed=state.iteration > 0)
        write_text(folder / "config.yaml", cfg.dump())
    settings = _loop_settings(cfg)
    loader = _loader(cfg, dataset, here, state)
    tracker = None
    if here.is_main:
        tracker = start_tracker(cfg.tracker, cfg.exp_id, folder, yaml.safe_load(cfg.dump()))
    first, last = state.iteration + 1, settings.iterations
    monitor = Monitor(folder, here, first, last, cfg.log_time, tracker, _speed(cfg, model, here))
    validation = None
    if cfg.test_interval:
        validation = Validation(cfg, model, here, monitor, lambda: watch.heard)
    levels = assembly.feature_levels(cfg)
    on_one_gpu = here.device.type == "cuda" and here.world_size == 1
    run = Graphs() if cfg.graphs and on_one_gpu else at_once

    def make_context(generator: torch.Generator) -> TaskContext:
        return TaskContext(
            generator,
            levels,
            cfg.label_smoothing,
            cfg.label_smoothing_classes or None,
            bool(cfg.visual_mask_per_sample),
            sequence,
            here.rank,
            here.world_size,
            lambda number: runtime.mean_over_ranks(number, here),
            cfg.caption_dropout,
            bool(cfg.activation_checkpointing),
            run,
        )

    def test(iteration: int) -> None:
        if validation is not None:
            average = state.average if cfg.use_ema else None
            with average.in_use() if average else nullcontext(), runtime.whole_weights(step):
                score = validation(iteration)
            checkpoints.score(state, score)

    batches = _read(loader)
    profiler = StepProfiler(folder, cfg.profile_steps if here.is_main else 0, here.device)
    try:
        train(
            step, state, batches, make_context, settings, here, monitor, checkpoints.save, test,
            watch, profiler,
        )  # fmt: skip
    finally:
        profiler.close()
        checkpoints.close()
        monitor.close()


def _speed(cfg: CfgNode, model: UnifiedTransformer, here: runtime.Runtime) -> Speed:
    """How speed is told; says what the card can do."""
    name = card_name(here.device)
    half = here.device.type == "cuda" and here.autocast_dtype is not None
    peak = peak_tflops(name) if half else None
    if half:
        told = f"is {peak:g} TFLOP/s" if peak else "is unknown, so the log has no share of the peak"
        logger.info("the peak performance of %s %s", name, told)
    operations = stage1_operations(
        model.size, cfg.text_length, model.causal, cfg.captions_per_image
    )
    return Speed(operations, here.world_size, peak)


def _check_agreement(cfg: CfgNode, here: runtime.Runtime) -> None:
    """Raise a UserError unless all processes train the same; paths may differ between machines."""
    free = {*PATHS, "root_path", "device", "num_workers", "prefetch_factor"}
    values = {key: str(value) for key, value in sorted(cfg.items()) if key not in free}
    all_values = runtime.gather_lists([values], here)
    for rank, other in enumerate(all_values):
        for key in values.keys() & other.keys() - {"clip"}:
            if other[key] != all_values[0][key]:
                raise UserError(
                    f"{key} is {all_values[0][key]} in process 0 but {other[key]} in process "
                    f"{rank}: run the same command on all machines"
                )


def _dataset(cfg: CfgNode) -> CaptioningDataset:
    records = read_split(cfg.dataset_coco, cfg.train_split)
    levels = assembly.feature_levels(cfg)
    tokenizer = assembly.open_tokenizer(cfg)
    cropped, captions = cropped_captions(records, tokenizer, cfg.text_length)
    if cropped:
        logger.warning("%s: %s", cfg.train_split, say_cropped(cropped, captions, cfg.text_length))
    return CaptioningDataset(
        records,
        tokenizer,
        assembly.open_clusters(cfg),
        assembly.open_features(cfg) if levels.any_dense else None,
        cfg.text_length,
        cfg.seed,
        cfg.captions_per_image,
    )


def _samples_per_process(cfg: CfgNode, here: runtime.Runtime) -> int:
    if not cfg.global_batch:
        return cfg.samples_per_gpu
    if cfg.global_batch % here.world_size:
        raise UserError(
            f"global_batch {cfg.global_batch} is not a multiple of the number of processes, "
            f"{here.world_size}; change one of them"
        )
    return cfg.global_batch // here.world_size


def _loader(
    cfg: CfgNode, dataset: CaptioningDataset, here: runtime.Runtime, state: TrainingState
) -> DataLoader:
    batch_size = _samples_per_process(cfg, here)
    sampler = InfiniteSampler(
        len(dataset), batch_size, here.rank, here.world_size, cfg.seed, state.samples
    )
    runtime.warn_of_little_shared_memory(cfg.num_workers)
    levels = assembly.feature_levels(cfg)
    dense = [reads_dense(task, levels) for task in cfg.iteration_tasks]
    return DataLoader(
        dataset,
        batch_sampler=TaskSampler(sampler, dense, state.iteration),
        collate_fn=collate,
        num_workers=cfg.num_workers,
        pin_memory=here.device.type == "cuda",
        persistent_workers=cfg.num_workers > 0,
        worker_init_fn=runtime.ignore_stop_signals,
        prefetch_factor=cfg.prefetch_factor if cfg.num_workers else None,
    )


def _read(loader: DataLoader) -> Iterator[Batch]:
    """The loader's batches; a reading process that is gone shows in many ways."""
    try:
        yield from loader
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        raise ProcessLostError(
            f"lost a data-loading process ({error}); give the same command again to continue from "
            "the newest checkpoint"
        ) from error


def _state(
    cfg: CfgNode, images: int, here: runtime.Runtime
) -> tuple[UnifiedTransformer, TrainingState, nn.Module]:
    """The model, the run at its starting point, and the model's training step."""
    runtime.seed_everything(cfg.seed, 0)  # all ranks start from the same weights
    model = build_model(cfg).to(here.device)
    # chosen by one process: another might see a folder of the network as it was a moment ago
    chosen = [assembly.choose_start(cfg)] if here.is_main else []
    start = runtime.gather_lists(chosen, here)[0]
    saved = None
    if start.kind == "resume":
        saved = read_resumable(Path(start.path))
        load_tensors(model, saved.weights, start.path)
    else:
        assembly.load_codebook(cfg, model)
        if start.kind != "random":
            load_weights(model, start.path)
            assembly.warn_of_other_captioning(cfg, start)
    compile_layers(model, cfg.compile, here.device)
    unread = None
    if cfg.gradient_accumulation_steps == 1:  # else a step has gradients of several tasks
        unread = {
            task: {f"model.{name}" for name in unread_parameters(model, task)}
            for task in sorted(set(cfg.iteration_tasks))
        }
    step = runtime.data_parallel(TaskStep(model), here, cfg.parallel, unread)
    # only now: sharding puts other parameters in the place of the model's
    solver = SolverSettings(
        **{name: value for name, value in cfg.solver.items()},
        schedule=cfg.scheduler.method,
        warmup_steps=cfg.scheduler.warmup_steps,
        max_steps=cfg.scheduler.max_steps,
    )
    optimizer = build_optimizer(model, solver)
    scheduler = build_scheduler(optimizer, solver)
    state = TrainingState(model, optimizer, scheduler, here.scaler(cfg.loss_scale), 0, set())
    state.order = {"seed": cfg.seed, "images": images}
    if cfg.ema:
        state.average = AveragedWeights(model, cfg.ema)
    if saved is None:
        logger.info("initial weights: %s", start.path or "random weights")
        if start.kind == "random":
            _warn_of_plateau(cfg)
        return model, state, step
    restore(saved, state, Path(start.path))
    # seals are no part of what all have read
    state.best, state.tested = runtime.gather_lists([(state.best, state.tested)], here)[0]
    if state.samples < 0:  # not in checkpoints of the original
        state.samples = state.iteration * _samples_per_process(cfg, here) * here.world_size
    if cfg.restart_iteration:
        state.iteration, state.samples, state.best, state.tested = 0, 0, None, 0
    logger.info("resuming from %s at iteration %d", start.path, state.iteration)
    return model, state, step


def _warn_of_plateau(cfg: CfgNode) -> None:
    if "xe_t2i" in cfg.iteration_tasks and not cfg.init.mask_feat_std:
        logger.warning(
            "training starts from random weights with init.mask_feat_std 0, which makes the first "
            "gradients of xe_t2i a thousand times too large (docs/LOG.md); set init.mask_feat_std "
            "0.5 or pretrained_model"
        )


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
