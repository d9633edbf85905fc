"""Export a run: copy it, and what it needs from its data folder, into one folder."""

import dataclasses
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from yacs.config import CfgNode

from generations.checkpoint import read_tensors, save_pretrained
from generations.clip import save_clip
from generations.config import PATHS, default_config
from generations.datasets import read_split
from generations.errors import UserError
from generations.files import atomic_path, write_json, write_text
from generations.pipelines import assembly
from generations.pipelines.clip import is_small_clip
from generations.pipelines.configured_clip import load_configured_clip
from generations.pipelines.demo import EXAMPLES, dataset_examples
from generations.pipelines.extraction import description_of
from generations.pipelines.manifest import MANIFEST
from generations.pipelines.model_card import model_card
from generations.reporting.results import read_figures
from generations.runtime import Runtime

logger = logging.getLogger(__name__)

CONFIG, CARD = "config.yaml", "README.md"
# Of training, and of the machine: the folder's configuration is for using the model.
LEFT_OUT = (
    *("exp_id", "seed", "device", "distributed", "fp16", "root_path", "log_time"),
    *("checkpoint_time", "test_interval", "test_num", "num_workers", "train_split", "init"),
    *("iteration_tasks", "solver", "scheduler", "reward", "clusters", "load_model_only"),
    *("resume_from_latest", "restart_iteration", "checkpoint_format", "mse_loss"),
    *("use_clip_score", "recompute", "gradient_accumulation_steps", "samples_per_gpu"),
    *("max_skipped_updates", "cpu_bf16", "tf32", "compile", "channels_last", "prefetch_factor"),
    *("deterministic", "parallel", "global_batch", "hang_timeout"),
    *("keep_last", "keep_best", "visual_mask_per_sample", "label_smoothing"),
    *("captions_per_image", "ema", "use_ema"),
    *("label_smoothing_classes", "decoding", "painting", "num_samples", "rerank"),
)
GENERATOR_SIZES = ("image_size", "channels", "bottleneck_channels", "style_channels", "noise")
CLIP_USE = ("prompt",)
HEADER = """\
# A trained model that works from this folder alone, made by generations/export.py. For example:
#   python generations/inference.py --config {config} --image {example}
#   python generations/sample_images.py --config {config} --caption "..."
#   python generations/demo.py --config {config}
# Paths that begin with ./ are in this folder. What the commands write goes to models/{exp_id}.
"""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written: file -> bytes."""

    folder: Path
    files: Mapping[str, int]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(self.files.values())


def export_run(cfg: CfgNode, here: Runtime, folder: Path, name: str, config: str) -> Exported:
    """Export a run into a folder. The weights are loaded first, which checks them.

    Args:
        cfg: the run's configuration.
        here: where to run.
        folder: made if it does not exist; files of the same names are replaced.
        name: exp_id of what is made with the exported model.
        config: how the card and the comments call the folder's config.yaml.

    Returns:
        The files: config.yaml, config.json and model.safetensors (for `from_pretrained`, codebook
        included), generator.safetensors, manifest.json (the extractor), vocab.txt, of a small CLIP
        clip.json and clip.safetensors, examples/, and the model card README.md.

    Raises:
        UserError: there is no checkpoint, or a file is missing or does not fit.
    """
    model, start = assembly.load_trained_model(cfg, here)
    generator = assembly.load_image_generator(cfg, here)
    assembly.open_tokenizer(cfg)
    small_clip = is_small_clip(cfg) and Path(cfg.clip.weights).is_file()
    clip = load_configured_clip(cfg) if small_clip else None
    if Path(start.path).resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"--out {folder} is the folder of the model's weights: choose another folder"
        )
    examples = _examples(cfg)

    folder.mkdir(parents=True, exist_ok=True)
    save_pretrained(model, cfg, folder)
    # as they are in the file: the generator's layers keep spectral norms beside their weights
    weights = {
        key: value.contiguous() for key, value in read_tensors(cfg.pretrained_generator).items()
    }
    with atomic_path(folder / "generator.safetensors") as temporary:
        save_file(weights, temporary, {"format": "pt"})
    files = ["config.json", "model.safetensors", "generator.safetensors"]
    values = _settings(cfg) | {
        "exp_id": name,
        "data_dir": "./",
        "resume_from_latest": 0,
        "load_model_only": 1,
        "model_path": "./model.safetensors",
        "pretrained_generator": "./generator.safetensors",
    }
    remembered = description_of(cfg)
    if remembered is not None:
        write_json(folder / MANIFEST, {"features": {"extractor": remembered}})
        files.append(MANIFEST)
    if cfg.vocab_file:
        shutil.copyfile(cfg.vocab_file, folder / "vocab.txt")
        values["vocab_file"] = "./vocab.txt"
        files.append("vocab.txt")
    if clip is not None:
        save_clip(clip, folder)
        values["clip"] |= {"model": "./clip.json", "weights": "./clip.safetensors"}
        files += ["clip.json", "clip.safetensors"]
    files += _write_examples(folder, examples)
    header = HEADER.format(
        config=config,
        exp_id=name,
        example=Path(config).with_name(EXAMPLES) / "1.png" if examples else "picture.png",
    )
    write_text(folder / CONFIG, header + yaml.safe_dump(values, sort_keys=False))
    counts = {
        "the transformer": sum(part.numel() for part in model.parameters()),
        "the image generator": sum(part.numel() for part in generator.parameters()),
    }
    if clip is not None:
        counts["the CLIP"] = sum(part.numel() for part in clip.parameters())
    card = model_card(
        name,
        config,
        counts,
        start.iteration,
        list(cfg.iteration_tasks),
        read_figures(assembly.run_folder(cfg)) if cfg.exp_id else {},
        {file: (folder / file).stat().st_size for file in files},
        caption=_typeable(examples[0][0]) if examples else "a red boat at sea",
        has_examples=bool(examples),
    )
    write_text(folder / CARD, card)
    sizes = {file: (folder / file).stat().st_size for file in [CONFIG, CARD, *files]}
    return Exported(folder, sizes)


def _settings(cfg: CfgNode) -> dict[str, Any]:
    """What differs from the defaults and is needed to use the model."""
    values: dict[str, Any] = {}
    for key, default in default_config().items():
        if key in LEFT_OUT or key in PATHS:
            continue
        if not isinstance(default, CfgNode):
            if cfg[key] != default:
                values[key] = cfg[key]
            continue
        wanted = {"generator": GENERATOR_SIZES, "clip": CLIP_USE}.get(key, tuple(default))
        changed = {part: cfg[key][part] for part in wanted if cfg[key][part] != default[part]}
        if changed:
            values[key] = changed
    return {**values, "clip": values.get("clip", {})}


def _examples(cfg: CfgNode) -> list[tuple[str, Path]]:
    """Some test captions with their images; none if they are not at hand."""
    try:
        records = read_split(cfg.dataset_coco, "test")
    except UserError as error:
        logger.warning("the export has no examples: %s", error)
        return []
    found = dataset_examples(records, cfg.images_dir)
    return [(example.caption, example.image) for example in found if example.image]


def _typeable(caption: str) -> str:
    """Without what would end the quotes of a command."""
    return "".join(letter for letter in caption if letter not in '"\\$`')


def _write_examples(folder: Path, examples: list[tuple[str, Path]]) -> list[str]:
    if not examples:
        return []
    (folder / EXAMPLES).mkdir(exist_ok=True)
    entries = []
    for number, (caption, image) in enumerate(examples, 1):
        name = f"{number}{image.suffix}"
        with atomic_path(folder / EXAMPLES / name) as temporary:
            temporary.write_bytes(image.read_bytes())
        entries.append({"caption": caption, "file": name})
    write_json(folder / EXAMPLES / "captions.json", entries)
    return [f"{EXAMPLES}/{entry['file']}" for entry in entries] + [f"{EXAMPLES}/captions.json"]
