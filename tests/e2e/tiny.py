"""An untrained run with all its files, made in seconds, and the same exported as one folder."""

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from generations import export
from generations.clip import ClipTrainSettings, save_clip, train_clip
from generations.config import load_config
from generations.datasets import read_karpathy
from generations.datasets.mini_world import write_vocabulary, write_world
from generations.image_generator import build_generator
from generations.modeling import build_model

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "models" / "mini"


def tiny_run(folder: Path) -> list[str]:
    """Write data and a run called tiny below a folder; returns the command line that fits it."""
    data = folder / "data"
    write_world(data, train=24, val=1, test=8)
    write_vocabulary(data / "vocab.txt")
    arguments = [
        *("--config", str(ROOT / "configs/mini/stage1.yaml"), "exp_id", "tiny"),
        *("data_dir", str(data), "save_dir", str(folder / "models")),
        *("images_dir", str(data / "images"), "vocab_file", str(data / "vocab.txt")),
        *("dataset_coco", str(data / "dataset_mini.json"), "device", "cpu"),
        *("model.hidden_size", "32", "model.num_heads", "2", "model.intermediate_size", "48"),
        *("model.language_layers", "1", "model.cross_layers", "1", "grid_cluster_num", "24"),
        *("generator.channels", "8", "generator.bottleneck_channels", "16"),
        *("generator.style_channels", "8"),
    ]
    cfg = load_config(arguments[1:2], arguments[2:])
    torch.manual_seed(0)
    (folder / "models/tiny").mkdir(parents=True)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "models/tiny/model_0000006.pth")
    torch.save(build_generator(cfg).state_dict(), data / "generator.pth")
    records = [record for record in read_karpathy(cfg.dataset_coco) if record.split == "train"]
    pixels = np.stack([np.asarray(Image.open(data / r.path)) for r in records])
    settings = ClipTrainSettings(train_steps=4, batch_size=12, image_width=4, text_width=32)
    save_clip(train_clip(pixels, [list(r.captions) for r in records], settings, seed=0), data)
    return arguments


def export_tiny(folder: Path) -> Path:
    """A tiny run as one folder, by the entry; what it was made from is gone."""
    arguments = tiny_run(folder)
    export.main([*arguments, "--out", str(folder / "mini")])
    shutil.rmtree(folder / "data")
    shutil.rmtree(folder / "models")
    return folder / "mini"


def mini_folder(folder: Path) -> Path:
    """models/mini where it is committed, else the tiny run."""
    return COMMITTED if (COMMITTED / "model.safetensors").exists() else export_tiny(folder)
