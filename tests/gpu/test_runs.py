"""Whole runs on a GPU: the mini world in both stages, resume, DDP over NCCL."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_numbers import new_batch
from torch import distributed

from generations import inference, main, prepare, sample_images
from generations.checkpoint import read_training_checkpoint
from generations.config import load_config
from generations.datasets import open_feature_store, write_array_pickle
from generations.datasets.mini_world import write_vocabulary, write_world
from generations.modeling import FeatureLevels, ModelSize, UnifiedTransformer
from generations.objectives import TaskContext, TaskStep, unread_parameters
from generations.runtime import Runtime, data_parallel, generator, seed_everything

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
ITERATIONS = 50


@pytest.fixture(scope="session")
def world(tmp_path_factory, device) -> list[str]:
    """A prepared mini world, without faiss and open_clip; the arguments that all commands take.

    On a GPU the model is the mini one, on a CPU a smaller one.
    """
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, train=120, val=12, test=12)
    write_vocabulary(folder / "vocab.txt")
    arguments = [
        *("--config", str(ROOT / "configs/mini/stage1.yaml"), "device", str(device)),
        *("data_dir", str(folder), "images_dir", str(folder / "images")),
        *("captions_file", str(folder / "dataset_mini.json")),
        *("vocab_file", str(folder / "vocab.txt"), "save_dir", str(folder / "models")),
        *("grid_cluster_num", "64", "generator.train_steps", "4", "log_time", "10"),
        *("checkpoint_time", "1000", "test_interval", "0", "samples_per_gpu", "16"),
    ]
    if device.type == "cpu":
        arguments += [
            *("model.hidden_size", "32", "model.num_heads", "2", "samples_per_gpu", "4"),
            *("model.intermediate_size", "48", "generator.channels", "8"),
            *("generator.bottleneck_channels", "16", "generator.style_channels", "8"),
        ]
    prepare.main(["captions", *arguments])
    prepare.main(["features", *arguments])
    code_book(arguments)
    prepare.main(["generator", *arguments])
    return arguments


def code_book(arguments: list[str]) -> None:
    """Cells drawn at random in the place of k-means, and the nearest of them for every cell."""
    cfg = load_config(arguments[1:2], arguments[2:])
    stores = [
        open_feature_store([path], cfg.grid_size, cfg.grid_feat_dim)
        for path in (cfg.grid_feat_path_train, cfg.grid_feat_path_valid)
    ]
    cells = np.concatenate([stores[0].read(name) for name in stores[0].names()])
    different = np.unique(cells, axis=0)
    drawn = np.random.default_rng(0).permutation(len(different))[: cfg.grid_cluster_num]
    centroids = different[drawn].astype(np.float32)
    np.save(cfg.grid_cluster_centroids_path, centroids)
    paths = (cfg.grid_cluster_id_path_train, cfg.grid_cluster_id_path_valid)
    for store, path in zip(stores, paths, strict=True):
        ids = {}
        for name in store.names():
            grid = torch.from_numpy(np.asarray(store.read(name), np.float32))
            nearest = torch.cdist(grid, torch.from_numpy(centroids)).argmin(1)
            ids[name] = nearest.numpy().astype(np.int32)
        write_array_pickle(path, ids)


def iterations(device: torch.device) -> int:
    return ITERATIONS if device.type == "cuda" else 4


def weights(world: list[str], exp_id: str) -> dict[str, torch.Tensor]:
    folder = Path(world[world.index("save_dir") + 1]) / exp_id
    return read_training_checkpoint(sorted(folder.glob("model_*.pth"))[-1]).weights


def test_both_stages_of_the_mini_world(world, device, caplog):
    last = iterations(device)
    steps = ("scheduler.max_steps", str(last), "scheduler.warmup_steps", "2")
    main.main([*world, *steps, "exp_id", "one"])
    folder = Path(world[world.index("save_dir") + 1])
    stage2 = [
        *world, "exp_id", "two", "load_model_only", "1", "text_length", "16",
        "model_path", str(folder / f"one/model_{last:07d}.pth"), *steps,
        "iteration_tasks", "rl_i2t,rl_t2i,xe_t2i", "use_clip_score", "0", "mse_loss", "1",
        "scheduler.method", "ConstantLRSchedule", "solver.lr", "1e-5",
    ]  # fmt: skip
    main.main(stage2)
    assert "not finite" not in caplog.text
    assert all(value.isfinite().all() for value in weights(world, "two").values())
    inference.main([*stage2, "test_num", "6"])
    sample_images.main([*stage2, "test_num", "6", "test_val2014", "0"])
    captions = json.loads(next(folder.glob("two/captions_*.json")).read_text())
    assert captions
    assert len(list(folder.glob("two/images_*/*.png"))) >= 6


@pytest.mark.parametrize("deterministic", ["0", "1"])
def test_a_resumed_run_ends_where_the_whole_one_does(world, deterministic):
    common = (*world, "deterministic", deterministic, "scheduler.warmup_steps", "2")
    whole, cut = f"whole{deterministic}", f"cut{deterministic}"
    main.main([*common, "exp_id", whole, "scheduler.max_steps", "6", "checkpoint_time", "3"])
    source = Path(world[world.index("save_dir") + 1])
    (source / cut).mkdir()
    for path in (source / whole).glob("model_0000003*"):
        (source / cut / path.name).write_bytes(path.read_bytes())
    main.main([*common, "exp_id", cut, "scheduler.max_steps", "6"])
    one, other = weights(world, whole), weights(world, cut)
    for name, value in one.items():
        if deterministic == "1":
            assert torch.equal(value, other[name]), name
        else:
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=2e-4)


def test_ddp_of_one_process_has_the_gradients_of_none(device):
    """Over NCCL; the wrapper is the one that several processes get."""
    size = ModelSize(32, 2, 48, 1, 1, 2, 1100, 0.0, grid_size=4, feature_size=20, clusters=24)
    seed_everything(1)
    step = TaskStep(UnifiedTransformer(size)).to(device)
    batch = new_batch().to(device)
    batch = replace(batch, features=batch.features[..., :20], cluster_ids=batch.cluster_ids % 24)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(0)
        device = torch.device("cuda", 0)
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        unread = {
            task: {f"model.{name}" for name in unread_parameters(step.model, task)}
            for task in ("xe_i2t", "xe_t2i")
        }
        wrapped = data_parallel(step, Runtime(device, 0, 2), unread=unread)
        assert wrapped is not step
        for task in ("xe_i2t", "xe_t2i", "xe_i2t"):
            found = []
            for module in (step, wrapped):
                step.zero_grad()
                context = TaskContext(generator(4), FeatureLevels())
                module(task, batch, context).loss.backward()
                found.append(
                    {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}
                )
            for name, gradient in found[0].items():
                torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)
    finally:
        distributed.destroy_process_group()
