"""The road of docs/flickr8k.md with 200 pictures: from a folder of them to captions and pictures.

With FLICKR8K naming the folder of Flickr8k.token.txt, the split lists and the photographs (there or
in a folder below), they are real ones; without it, scenes of the mini world.
"""

import json
import os
from itertools import accumulate
from pathlib import Path

import pytest
from commands import ROOT

from generations import evaluate, inference, main, prepare, sample_images
from generations.datasets.mini_world import make_sample

SPLITS = {"train": 160, "val": 20, "test": 20}
UNTIL = dict(zip(SPLITS, accumulate(SPLITS.values()), strict=True))


def drawn(folder: Path) -> list[tuple[str, str, list[str]]]:
    """Name, split and captions of scenes that are painted into a folder."""
    found = []
    for number in range(sum(SPLITS.values())):
        split = next(name for name, until in UNTIL.items() if number < until)
        _, picture, captions = make_sample(0, "train", number)
        picture.resize((224, 224)).save(folder / f"{number:03d}.jpg", quality=80)
        found.append((f"{number:03d}.jpg", split, [" ".join(words) for words in captions]))
    return found


def taken(folder: Path, source: Path) -> list[tuple[str, str, list[str]]]:
    """The same of the first names of the official lists."""
    captions: dict[str, list[str]] = {}
    for line in (source / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines():
        key, text = line.split("\t")
        captions.setdefault(key.partition("#")[0], []).append(text.lower().rstrip(" ."))
    places = {path.name: path for path in source.rglob("*.jpg")}
    found = []
    for split, count in SPLITS.items():
        official = "dev" if split == "val" else split
        for name in (source / f"Flickr_8k.{official}Images.txt").read_text().split()[:count]:
            (folder / name).symlink_to(places[name])
            found.append((name, split, captions[name]))
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("flickr8k")
    images = folder / "images"
    images.mkdir()
    if "FLICKR8K" in os.environ:
        found = taken(images, Path(os.environ["FLICKR8K"]))
    else:
        found = drawn(images)
    entries = [
        {"filename": n, "split": s, "sentences": [{"tokens": text.split()} for text in texts]}
        for n, s, texts in found
    ]
    (folder / "captions.json").write_text(json.dumps({"images": entries}))
    return folder


def arguments(source: Path, *configs: str) -> list[str]:
    """The configurations of configs/flickr8k, small enough for seconds."""
    data = source / "data"
    files = [word for name in configs for word in ("--config", f"{ROOT}/configs/flickr8k/{name}")]
    return [
        *(*files, "data_dir", str(data), "images_dir", str(source / "images")),
        *(
            "vocab_file",
            str(data / "vocab.txt"),
            "captions_file",
            str(source / "captions.json"),
            "device",
            "cpu",
        ),
        *("save_dir", str(source / "models"), "exp_id", "short", "grid_cluster_num", "32"),
        *("features.image_size", "128", "grid_size", "4", "generator.image_size", "32"),
        *("generator.channels", "8", "generator.bottleneck_channels", "16"),
        *("generator.style_channels", "8", "generator.train_steps", "3"),
        *("generator.batch_size", "4", "clip.train_steps", "3", "clip.batch_size", "16"),
        *("model.hidden_size", "32", "model.num_heads", "2", "model.intermediate_size", "48"),
        *("model.language_layers", "1", "model.cross_layers", "1", "samples_per_gpu", "4"),
        *(
            "scheduler.max_steps",
            "3",
            "scheduler.warmup_steps",
            "1",
            "checkpoint_time",
            "3",
            "test_interval",
            "0",
        ),
        *("log_time", "3", "test_num", "-1"),
    ]


def test_the_road_of_flickr8k(source):
    prepare.main(["all", *arguments(source, "base.yaml")])
    judge = source / "data" / "judge"
    clip = ("clip.model", str(judge / "clip.json"), "clip.weights", str(judge / "clip.safetensors"))
    prepare.main(["clip", *arguments(source, "base.yaml", "judge.yaml"), *clip])
    assert (judge / "clip.json").read_bytes() != (source / "data/clip.json").read_bytes()
    assert {"clip", "clip_judge"} <= json.loads((source / "data/manifest.json").read_text()).keys()
    pieces = (source / "data/vocab.txt").read_text().splitlines()
    assert 1100 < len(pieces) < 7670
    main.main(arguments(source, "stage1.yaml"))
    run = source / "models" / "short"
    first = str(run / "model_0000003.pth")
    start = ("exp_id", "rl", "load_model_only", "1", "model_path", first)
    main.main([*arguments(source, "stage2.yaml"), *start, "reward.samples", "2"])
    assert (source / "models/rl/model_0000003.pth").exists()
    inference.main(arguments(source, "stage1.yaml"))
    captions = json.loads((run / "captions_test_0000003.json").read_text())
    assert len(captions) == SPLITS["test"]
    sample_images.main(arguments(source, "stage1.yaml"))
    judging = [*arguments(source, "stage1.yaml", "judge.yaml"), *clip, "eval_rprec", "0"]
    evaluate.main([*judging, "--caption-metrics", "bleu"])
    figures = json.loads((run / "metrics_images_test_0000003.json").read_text())
    assert "fid_clip-judge" in json.dumps(figures)
