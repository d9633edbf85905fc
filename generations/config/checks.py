"""Checks of the values of a configuration, for `load_config`."""

from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from generations.errors import UserError
from generations.vocabulary import EOS

TASKS = ("xe_i2t", "xe_t2i", "rl_i2t", "rl_t2i")
SPLITS = ("train", "restval", "trainrestval", "val", "test")
FEATURE_SUFFIXES = {"packed": ".packed", "hdf5": ".h5"}
# else clip.*, features.* and generator.* are names
CLIP_FILES = (".json", ".safetensors", ".pt", ".pth", ".bin")

# key -> what it may be; of a list, and of train_split, each part
CHOICES = {
    "iteration_tasks": TASKS,
    "train_split": SPLITS,
    "eval_protocol": ("torchvision", "tf", "network"),
    "captioning": ("paper", "causal"),
    "scheduler.method": ("WarmupCosineSchedule", "ConstantLRSchedule"),
    "solver.optimizer": ("adamw", "adamw_transformers"),
    "reward.baseline": ("greedy", "leave_one_out"),
    "reward.document_frequency": ("batch", "corpus"),
    "checkpoint_format": ("pth", "safetensors"),
    "decoding.method": ("greedy", "beam", "sample"),
    "painting.schedule": ("linear", "cosine"),
    "painting.order": ("confidence", "halton", "random"),
    "painting.guidance_schedule": ("constant", "growing"),
    "rerank": ("none", "clip"),
    "eval_resize": ("squash", "crop"),
    "clip.quick_gelu": ("auto", "0", "1"),
    "tracker": ("none", "wandb", "trackio"),
    "parallel": ("ddp", "fsdp"),
    "cpu_linear": ("auto", "torch", "onednn"),
    "compile": ("auto", "0", "1"),
    "channels_last": ("auto", "0", "1"),
    "features.store": tuple(FEATURE_SUFFIXES),
    "features.precision": ("float32", "bfloat16", "float16"),
    "generator.precision": ("float32", "bfloat16"),
    "features.dtype": ("float16", "bfloat16", "float32"),
}
FLAGS = (
    "distributed", "fp16", "cpu_bf16", "tf32", "deterministic",
    "load_model_only", "resume_from_latest", "restart_iteration",
    "use_mix_feature", "use_grid_cluster", "use_grid_feat", "xlxmert_zeroshot",
    "use_clip_score", "use_ema", "recompute", "activation_checkpointing", "graphs",
    "visual_mask_per_sample",
    "collapse_repeats", "test_val2014", "eval_skip_bad",
    "eval_fid", "eval_is", "eval_prc", "eval_clipscore", "eval_rprec", "eval_rprec_hard",
    "features.skip_bad", "generator.noise", "generator.cosine",
)  # fmt: skip
AT_LEAST = {
    "seed": 0, "samples_per_gpu": 1, "global_batch": 0, "gradient_accumulation_steps": 1,
    "num_workers": 0, "prefetch_factor": 1, "log_time": 1, "checkpoint_time": 1,
    "test_interval": 0, "keep_last": 0, "keep_best": 0, "max_skipped_updates": 1,
    "hang_timeout": 1, "profile_steps": 0,
    "text_length": 3, "grid_size": 1, "grid_feat_dim": 1, "grid_cluster_num": 1,
    "model.hidden_size": 1, "model.num_heads": 1, "model.intermediate_size": 1,
    "model.language_layers": 0, "model.visual_layers": 0, "model.cross_layers": 1,
    "init.std": 0, "init.mask_feat_std": 0,
    "mse_loss": 0, "label_smoothing_classes": 0, "captions_per_image": 1, "reward.samples": 1,
    "solver.lr": 0, "solver.weight_decay": 0, "solver.eps": 0, "solver.grad_clip": 0,
    "scheduler.warmup_steps": 0, "scheduler.max_steps": 1,
    "generator.batch_size": 1, "generator.train_steps": 1, "generator.report_every": 1,
    "generator.image_size": 1, "generator.channels": 1,
    "features.image_size": 1, "features.batch_size": 1,
    "clusters.iterations": 1, "clusters.max_points_per_centroid": 1,
    "clip.train_steps": 1, "clip.batch_size": 2, "clip.lr": 0,
    "clip.embed_dim": 1, "clip.text_width": 32, "clip.text_layers": 1, "clip.image_width": 1,
    "clip.context_length": 3, "clip.image_size": 0, "clip.dropout": 0,
    "decoding.beam_size": 1, "decoding.num_captions": 1, "decoding.temperature": 0,
    "decoding.top_k": 0, "painting.steps": 1, "painting.keep_steps": -1,
    "painting.order_noise": 0, "painting.guidance": 0, "num_samples": 1,
    "test_num": -1, "eval_image_size": 1, "eval_batch_size": 1,
}  # fmt: skip


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a key, nested ones with dots."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def check_choices(cfg: CfgNode) -> None:
    """Raise a UserError for an unknown choice, and for a flag that is not 0 or 1."""
    if not cfg.iteration_tasks:
        raise UserError("iteration_tasks is empty; set at least one of " + ", ".join(TASKS))
    for key, known in CHOICES.items():
        value = value_of(cfg, key)
        if key == "train_split":
            value = [part.strip() for part in cfg.train_split.split(",")]
        for part in value if isinstance(value, list) else [value]:
            if part not in known:
                raise UserError(f"{key} must be one of {', '.join(known)}, not {part!r:.80}")
    for key in FLAGS:
        if value_of(cfg, key) not in (0, 1):
            raise UserError(f"{key} must be 0 or 1, not {value_of(cfg, key)}")


def validate(cfg: CfgNode) -> None:
    """Raise a UserError for numbers out of range and for values that contradict each other."""
    _check_ranges(cfg)
    _check_decoding(cfg)
    _check_graphs(cfg)
    dense, discrete = cfg.use_grid_feat, cfg.use_grid_cluster
    if cfg.use_mix_feature and not (dense and discrete):
        off = "use_grid_feat" if not dense else "use_grid_cluster"
        raise UserError(
            f"use_mix_feature 1 needs dense features and cluster ids, but {off} is 0; set {off} 1, "
            "or set use_mix_feature 0 for an ablation with one kind"
        )
    if not cfg.use_mix_feature and bool(dense) == bool(discrete):
        raise UserError(
            "with use_mix_feature 0 exactly one of use_grid_feat (dense) and use_grid_cluster "
            f"(discrete) must be 1; both are {dense}"
        )
    if cfg.model.hidden_size % cfg.model.num_heads:
        raise UserError(
            f"model.hidden_size {cfg.model.hidden_size} must be a multiple of model.num_heads "
            f"{cfg.model.num_heads}"
        )
    if cfg.captioning == "causal" and cfg.xlxmert_zeroshot:
        raise UserError(
            "xlxmert_zeroshot 1 does not work with captioning causal: set captioning paper"
        )
    if cfg.captioning == "paper" and cfg.captions_per_image != 1:
        raise UserError(
            f"captions_per_image {cfg.captions_per_image} needs captioning causal; with captioning "
            "paper set captions_per_image 1"
        )
    if cfg.reward.baseline == "leave_one_out" and cfg.reward.samples < 2:
        raise UserError("reward.baseline leave_one_out needs reward.samples 2 or more, such as 5")
    if cfg.reward.baseline == "greedy" and cfg.reward.samples != 1:
        raise UserError(
            f"reward.samples {cfg.reward.samples} needs reward.baseline leave_one_out; with greedy "
            "set reward.samples 1"
        )
    if Path(cfg.clip.model).suffix == ".json" and Path(cfg.clip.weights).suffix not in CLIP_FILES:
        raise UserError(
            f"clip.model {cfg.clip.model} is a file, so clip.weights must be one too "
            f"({', '.join(CLIP_FILES[1:])}), not {cfg.clip.weights!r}"
        )
    if "rl_t2i" in cfg.iteration_tasks and not (cfg.mse_loss or cfg.use_clip_score):
        raise UserError("rl_t2i has no loss: set use_clip_score 1, mse_loss 1 or both")
    cosine = cfg.scheduler.method == "WarmupCosineSchedule"
    if cosine and cfg.scheduler.warmup_steps > cfg.scheduler.max_steps:
        raise UserError(
            f"scheduler.warmup_steps {cfg.scheduler.warmup_steps} must not be more than "
            f"scheduler.max_steps {cfg.scheduler.max_steps}"
        )
    if cfg.keep_best and not cfg.keep_last:
        raise UserError(
            "keep_best has no effect while all checkpoints are kept: also set keep_last 2"
        )
    if len(cfg.solver.betas) != 2 or not all(0 <= beta < 1 for beta in cfg.solver.betas):
        raise UserError(f"solver.betas must be two numbers in [0, 1), not {cfg.solver.betas}")


def _check_graphs(cfg: CfgNode) -> None:
    if cfg.graphs and cfg.activation_checkpointing:
        raise UserError(
            "graphs 1 and activation_checkpointing 1 do not work together; set one of them to 0"
        )


def _check_decoding(cfg: CfgNode) -> None:
    how = cfg.decoding
    if not 0 < how.top_p <= 1:
        raise UserError(f"decoding.top_p must be in (0, 1], not {how.top_p}")
    if how.method == "greedy" and how.num_captions > 1:
        raise UserError(
            f"decoding.num_captions {how.num_captions}: greedy decoding writes one caption; set "
            "decoding.method beam or sample"
        )
    if how.method == "beam" and how.num_captions > how.beam_size:
        raise UserError(
            f"decoding.num_captions {how.num_captions} is more than decoding.beam_size "
            f"{how.beam_size}; raise decoding.beam_size to {how.num_captions}"
        )
    if cfg.painting.temperature < 0 and cfg.painting.temperature != -1:
        raise UserError(
            f"painting.temperature must be -1, or 0 or more, not {cfg.painting.temperature}"
        )
    noise, order = cfg.painting.order_noise, cfg.painting.order
    if noise and order != "confidence":
        raise UserError(
            f"painting.order_noise {noise} needs painting.order confidence, not {order}: change "
            "one of them"
        )
    same = cfg.painting.temperature == 0 and not (noise or order == "random")
    if same and cfg.num_samples > 1:
        raise UserError(
            f"with painting.temperature 0 all {cfg.num_samples} pictures of a caption are equal; "
            "set a higher temperature, such as 1, or num_samples 1"
        )
    if cfg.rerank == "clip" and cfg.num_samples == 1:
        raise UserError(
            "rerank clip needs several pictures a caption; set num_samples, for example to 8"
        )


def _check_ranges(cfg: CfgNode) -> None:
    for key, low in AT_LEAST.items():
        if value_of(cfg, key) < low:
            raise UserError(f"{key} must be at least {low}, not {value_of(cfg, key)}")
    if cfg.text_length > 511:
        raise UserError(
            f"text_length must be at most 511, the last position, not {cfg.text_length}"
        )
    if cfg.model.vocab_size <= EOS:
        raise UserError(
            f"model.vocab_size must be more than {EOS}, the largest special id (the full stop), "
            f"not {cfg.model.vocab_size}"
        )
    for key in ("model.dropout", "label_smoothing", "caption_dropout", "ema"):
        value = value_of(cfg, key)
        if not 0 <= value < 1:
            raise UserError(f"{key} must be in [0, 1), not {value}")
