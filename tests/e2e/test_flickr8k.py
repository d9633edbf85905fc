"""The road of docs/flickr8k.md with 200 pictures: from unpacked folders to captions and pictures.

With FLICKR8K naming the folder of Flickr8k.token.txt, the split lists and the photographs (there or
in a folder below), they are real ones; without it, scenes of the mini world in the same layout.
"""

import json
import os
from pathlib import Path

import pytest
from commands import ROOT

from generations import evaluate, inference, main, prepare, sample_images
from generations.datasets.mini_world import make_sample

SPLITS = {"train": 160, "dev": 20, "test": 20}
LIST = "Flickr_8k.{}Images.txt"


def drawn(folder: Path) -> None:
    """Pictures, captions and lists as Flickr8k has them."""
    (folder / "images").mkdir()
    lines = []
    for split, count in SPLITS.items():
        names = [f"{split}_{number:03d}.jpg" for number in range(count)]
        for name in names:
            _, picture, captions = make_sample(0, "train", len(lines) // 5)
            picture.resize((224, 224)).save(folder / "images" / name, quality=80)
            lines += [f"{name}#{k}\t{' '.join(words)} ." for k, words in enumerate(captions)]
        (folder / LIST.format(split)).write_text("\n".join(names) + "\n")
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")


def taken(folder: Path, source: Path) -> None:
    """The first names of the official lists."""
    for split, count in SPLITS.items():
        names = (source / LIST.format(split)).read_text().split()[:count]
        (folder / LIST.format(split)).write_text("\n".join(names) + "\n")
    text = (source / "Flickr8k.token.txt").read_text(encoding="utf-8")
    (folder / "Flickr8k.token.txt").write_text(text, encoding="utf-8")
    (folder / "images").symlink_to(next(source.rglob("*.jpg")).parent)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("flickr8k")
    if "FLICKR8K" in os.environ:
        taken(folder, Path(os.environ["FLICKR8K"]))
    else:
        drawn(folder)
    return folder


def arguments(source: Path, *configs: str) -> list[str]:
    """The configurations of configs/flickr8k, small enough for seconds."""
    data = source / "data"
    files = [word for name in configs for word in ("--config", f"{ROOT}/configs/flickr8k/{name}")]
    return [
        *(*files, "data_dir", str(data), "images_dir", str(source / "images")),
        *("vocab_file", str(data / "vocab.txt"), "captions_file", str(source), "device", "cpu"),
        *("save_dir", str(source / "models"), "exp_id", "short", "grid_cluster_num", "32"),
        *("features.image_size", "128", "grid_size", "4", "generator.image_size", "32"),
        *("generator.channels", "8", "generator.bottleneck_channels", "16"),
        *("generator.style_channels", "8", "generator.train_steps", "3"),
        *("generator.batch_size", "4", "clip.train_steps", "3", "clip.batch_size", "16"),
        *("model.hidden_size", "32", "model.num_heads", "2", "model.intermediate_size", "48"),
        *("model.language_layers", "1", "model.cross_layers", "1", "samples_per_gpu", "4"),
        *("scheduler.max_steps", "3", "checkpoint_time", "3", "test_interval", "0"),
        *("log_time", "3", "test_num", "-1"),
    ]


def test_the_road_of_flickr8k(source):
    prepare.main(["all", *arguments(source, "base.yaml")])
    judge = source / "data" / "judge"
    clip = ("clip.model", str(judge / "clip.json"), "clip.weights", str(judge / "clip.safetensors"))
    prepare.main(["clip", *arguments(source, "base.yaml", "judge.yaml"), *clip])
    assert (judge / "clip.json").read_bytes() != (source / "data/clip.json").read_bytes()
    pieces = (source / "data/vocab.txt").read_text().splitlines()
    assert 1100 < len(pieces) < 7670
    main.main([*arguments(source, "stage1.yaml"), "scheduler.warmup_steps", "1"])
    run = source / "models" / "short"
    first = str(run / "model_0000003.pth")
    start = ("exp_id", "rl", "load_model_only", "1", "model_path", first)
    main.main([*arguments(source, "stage2.yaml"), *start, "reward.samples", "2"])
    assert (source / "models/rl/model_0000003.pth").exists()
    inference.main(arguments(source, "stage1.yaml"))
    captions = json.loads((run / "captions_test_0000003.json").read_text())
    assert len(captions) == SPLITS["test"]
    sample_images.main(arguments(source, "stage1.yaml"))
    evaluate.main([*arguments(source, "stage1.yaml", "judge.yaml"), *clip, "eval_rprec", "0"])
    figures = json.loads((run / "metrics_images_test_0000003.json").read_text())
    assert "fid_clip-judge" in json.dumps(figures)
