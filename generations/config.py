"""Configuration: yacs defaults, then YAML files with `_BASE_` chains, then `key value` overrides.

The only file that sees yacs. The result is validated, has every path absolute, and is frozen.
"""

import ast
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from generations.errors import UserError
from generations.vocabulary import EOS

TASKS = ("xe_i2t", "xe_t2i", "rl_i2t", "rl_t2i")
SPLITS = ("train", "restval", "trainrestval", "val", "test")

# Files that are derived from data_dir when they are left empty: key -> file name.
DATA_FILES = {
    "clip.model": "clip.json",
    "clip.weights": "clip.safetensors",
    "dataset_coco": "dataset_coco.json",
    "grid_feat_path_train": "maskrcnn_train_grid8",  # and a suffix of FEATURE_SUFFIXES
    "grid_feat_path_valid": "maskrcnn_valid_grid8",
    "grid_cluster_id_path_train": "cluster_ids_train.pkl",
    "grid_cluster_id_path_valid": "cluster_ids_valid.pkl",
    "grid_cluster_centroids_path": "centroids.npy",
    "pretrained_generator": "generator.pth",
}
FEATURE_SUFFIXES = {"packed": ".packed", "hdf5": ".h5"}
# else clip.*, features.* and generator.* are names
CLIP_FILES = (".json", ".safetensors", ".pt", ".pth", ".bin")
PATHS = (
    *("data_dir", "save_dir", "img_save_dir", "images_dir", "captions_file", "vocab_file"),
    *("id2captions_test", "test_samples", "rprec_hard_samples_dir", "evaluate_images_dir"),
    *("gt_img_dir_val2014", "gt_img_dir_5k", "gt_img_dir_3w", "model_path", "pretrained_model"),
    "eval_weights",
    *("features.backbone", "features.weights"),
    "generator.perceptual_weights",
    *DATA_FILES,
)


def default_config() -> CfgNode:
    """Fresh defaults: the full-size model on COCO (SPEC 4). Flags are 0/1."""
    cfg = CfgNode()
    # the run
    cfg.exp_id = ""
    cfg.seed = 123
    cfg.device = "auto"  # auto, cpu, cuda, cuda:1, mps
    cfg.distributed = 1  # join the process group when the launcher set one up
    cfg.fp16 = 1  # autocast on GPUs: bf16, else fp16 with loss scaling
    cfg.cpu_bf16 = 0  # autocast to bf16 on a CPU: faster if it has bf16 products, not as exact
    cfg.tf32 = 1  # products of float32 in TF32, on GPUs that have it
    cfg.compile = "0"  # torch.compile of the transformer's layers: 1, 0; auto: on GPUs
    cfg.channels_last = "auto"  # layout of the image generator when it paints; auto: on GPUs
    cfg.max_skipped_updates = 20  # in a row, for gradients that are not finite; then stop
    cfg.loss_scale = -1.0  # fp16 loss scale; -1: dynamic
    cfg.deterministic = 0  # 1: only algorithms that give the same numbers in every run
    cfg.cpu_linear = "auto"  # library of linear layers on a CPU: torch, onednn, or the faster one
    cfg.parallel = "ddp"  # of several processes; fsdp shards gradients and moments (FSDP2)
    cfg.global_batch = 0  # samples of all processes in an iteration; 0: samples_per_gpu each
    cfg.hang_timeout = 1800.0  # seconds without progress after which a process ends the run
    cfg.keep_last = 0  # newest checkpoints that stay; 0: all
    cfg.keep_best = 0  # checkpoints of the best test scores that stay beside them
    cfg.profile_steps = 0  # iterations whose costs are shown, with a trace for tensorboard
    cfg.log_time = 400
    cfg.checkpoint_time = 10000
    cfg.test_interval = 10000
    cfg.num_workers = 4
    cfg.prefetch_factor = 2  # batches that each worker reads ahead
    cfg.samples_per_gpu = 32
    cfg.gradient_accumulation_steps = 1
    # where things are; relative paths in files are under root_path (./ ones beside the file), typed
    # ones under the cwd
    cfg.root_path = ""  # '': the checkout
    cfg.save_dir = "models"
    cfg.img_save_dir = ""  # '': inside the run's folder
    cfg.data_dir = "data/coco"
    cfg.images_dir = ""
    cfg.captions_file = ""  # Karpathy's or COCO's .json, .csv, .tsv, or a folder of COCO's
    cfg.vocab_file = ""  # '': the bundled bert-base-uncased vocabulary
    for key in DATA_FILES:
        if "." not in key:
            cfg[key] = ""  # '': inside data_dir
    cfg.gt_img_dir_val2014 = ""
    cfg.gt_img_dir_5k = ""
    cfg.gt_img_dir_3w = ""
    cfg.id2captions_test = ""
    cfg.test_samples = ""
    cfg.rprec_hard_samples_dir = ""
    # starting point
    cfg.model_path = ""
    cfg.load_model_only = 0
    cfg.resume_from_latest = 1
    cfg.restart_iteration = 0  # 1: count from 0 after a resume, with optimiser and weights kept
    cfg.pretrained_model = ""
    cfg.checkpoint_format = "pth"  # pth: the released layout; safetensors: weights and state apart
    # data
    cfg.train_split = "train"
    cfg.text_length = 17
    cfg.grid_feat_dim = 2048
    cfg.grid_size = 8
    cfg.grid_cluster_num = 10000
    cfg.use_mix_feature = 1
    cfg.use_grid_cluster = 1
    cfg.use_grid_feat = 1
    # model
    cfg.model = CfgNode()
    cfg.model.hidden_size = 768
    cfg.model.num_heads = 12
    cfg.model.intermediate_size = 3072
    cfg.model.language_layers = 9
    cfg.model.visual_layers = 5
    cfg.model.cross_layers = 5
    cfg.model.vocab_size = 30522
    cfg.model.dropout = 0.1
    cfg.init = CfgNode()
    cfg.init.std = 0.02
    cfg.init.mask_feat_std = 0.0  # raise it to train from random weights (see ModelSize)
    cfg.xlxmert_zeroshot = 0
    # objectives
    cfg.iteration_tasks = ["xe_t2i", "xe_i2t"]
    cfg.label_smoothing = 0.2
    cfg.label_smoothing_classes = (
        30522  # words it is spread over, as in the original; 0: vocab_size
    )
    cfg.visual_mask_per_sample = 0  # 1: each sample draws its own xe_t2i mask
    cfg.mse_loss = 0.0
    cfg.use_clip_score = 1
    cfg.recompute = 1  # stage 2: run decoding steps again for gradients; 0: keep their activations
    cfg.reward = CfgNode()
    cfg.reward.baseline = "greedy"  # or leave_one_out: the image's other samples
    cfg.reward.samples = 1  # captions drawn per image; leave_one_out needs 2 or more
    cfg.reward.document_frequency = "batch"  # or corpus: counted once in the training captions
    # optimisation
    cfg.solver = CfgNode()
    cfg.solver.optimizer = "adamw"
    cfg.solver.lr = 5e-5
    cfg.solver.weight_decay = 1e-2
    cfg.solver.betas = [0.9, 0.999]
    cfg.solver.eps = 1e-6
    cfg.solver.grad_clip = 1.0
    cfg.scheduler = CfgNode()
    cfg.scheduler.method = "WarmupCosineSchedule"
    cfg.scheduler.warmup_steps = 10000
    cfg.scheduler.max_steps = 200000
    # image generator
    cfg.generator = CfgNode()
    cfg.generator.image_size = 256
    cfg.generator.channels = 32
    cfg.generator.bottleneck_channels = 256
    cfg.generator.style_channels = 128
    cfg.generator.noise = 0  # 1: noise injection when painting, as the original did
    cfg.generator.train_steps = 20000
    cfg.generator.batch_size = 32
    cfg.generator.lr = 4e-4
    cfg.generator.beta1 = 0.0  # Adam's
    cfg.generator.cosine = 0  # 1: the learning rates fall to 0 along a cosine
    cfg.generator.bottleneck_std = 0.0  # rescale the first layer's outputs to this; 0: do not
    cfg.generator.contrast = 0.0  # extra weight of pixels that stand out from around them
    cfg.generator.discriminator_channels = 64
    cfg.generator.discriminator_lr = 1e-4
    cfg.generator.adversarial_start = 0  # step at which the adversarial losses join
    cfg.generator.adversarial_weight = 1.0
    cfg.generator.feature_matching_weight = 10.0
    cfg.generator.reconstruction_weight = 10.0
    cfg.generator.perceptual = ""  # resnet50, efficientnet-lite0, or '': no perceptual loss
    # a file or random; resnet50: also torchvision's name, '': IMAGENET1K_V1; efficientnet-lite0:
    # '': those of the Python package
    cfg.generator.perceptual_weights = ""
    cfg.generator.perceptual_weight = 10.0
    cfg.generator.report_every = 1000  # steps between samples, figures and checkpoints
    # features and codebook (prepare.py)
    cfg.features = CfgNode()
    # patches, torchvision, open_clip, butd or efficientnet-lite0; see docs/data.md
    cfg.features.extractor = "patches"
    # torchvision: resnet50, fasterrcnn_resnet50_fpn, ...; open_clip: ViT-B-32, ... or a .json
    cfg.features.backbone = ""
    # torchvision: module or level whose output is pooled; efficientnet-lite0: first+last or
    # first2x2+last; '': the last map
    cfg.features.layer = ""
    # torchvision's name (IMAGENET1K_V2), open_clip's tag (openai), a file, or random (of the seed);
    # '': the extractor's own
    cfg.features.weights = ""
    # float32, bfloat16 or float16: of the extractor's products; the two are quicker and less exact
    cfg.features.precision = "float32"
    cfg.features.image_size = 256  # side of the square that images are resized to
    cfg.features.batch_size = 64
    cfg.features.store = "packed"  # one array file, or hdf5: the original's; see docs/data.md
    cfg.features.dtype = "float16"  # of a packed file: float16, bfloat16 or float32
    cfg.features.skip_bad = 0  # 1: leave out images that cannot be read, and count them
    cfg.clusters = CfgNode()
    cfg.clusters.iterations = 20
    cfg.clusters.max_points_per_centroid = 256
    # CLIP: the reward of rl_t2i and CLIPScore
    cfg.clip = CfgNode()
    # open_clip model name and tag, or a model config (.json) and a checkpoint file; both '': the
    # small CLIP that `prepare.py clip` trains, inside data_dir
    cfg.clip.model = "ViT-B-32"
    cfg.clip.weights = "openai"
    # activation that a local file wants: 1 (OpenAI's, MetaCLIP's), 0; auto: the file tells it
    cfg.clip.quick_gelu = "auto"
    cfg.clip.prompt = "A photo depicts "
    cfg.clip.train_steps = 400  # of the small one
    cfg.clip.batch_size = 128
    cfg.clip.lr = 3e-3
    # how captions are written (inference.py); see docs/decoding.md
    cfg.decoding = CfgNode()
    cfg.decoding.method = "greedy"  # or beam, or sample
    cfg.decoding.beam_size = 5
    cfg.decoding.length_penalty = 0.0  # rank by log-probability / length ** this; 0: as it is
    cfg.decoding.temperature = 1.0  # sample: of the logits; 0: greedy
    cfg.decoding.top_k = 0  # sample: among the k most likely words; 0: all
    cfg.decoding.top_p = 1.0  # sample: among the likeliest words that sum to this; 1: all
    cfg.decoding.num_captions = 1  # beam, sample: captions an image
    # how pictures are painted (sample_images.py)
    cfg.painting = CfgNode()
    cfg.painting.steps = 4
    cfg.painting.schedule = "linear"  # or cosine
    cfg.painting.temperature = -1.0  # of drawn tokens; 0: greedy; -1: 0, or 1 with num_samples > 1
    cfg.painting.keep_steps = -1  # captions whose steps are saved too; -1: 8 of the test captions
    cfg.num_samples = 1  # pictures a caption: the greedy one, the others drawn
    cfg.rerank = "none"  # clip: the picture of highest CLIPScore comes first
    # inference and evaluation
    cfg.test_num = 499  # images; -1: all
    cfg.test_val2014 = 1  # painting captions: first of each image, test + val + restval, to 30000
    cfg.collapse_repeats = 1  # "a a dog" -> "a dog" in written captions
    cfg.eval_fid = 1
    cfg.eval_is = 0
    cfg.eval_clipscore = 1
    cfg.eval_prc = 0  # precision and recall of the features that KID compares
    cfg.eval_rprec = 0
    cfg.eval_rprec_hard = 0
    cfg.evaluate_images_dir = ""
    # evaluation networks of FID, KID and IS
    cfg.eval_protocol = "torchvision"  # or tf: the field's Inception; network: CLIP's image half
    cfg.eval_weights = ""  # Inception's file; '': the library downloads it
    cfg.eval_resize = "squash"  # of real images: the whole one, or crop: its middle square
    cfg.eval_image_size = 256  # side of the square that real images are resized to
    cfg.eval_batch_size = 64
    cfg.eval_skip_bad = 0  # 1: leave out pictures that cannot be read, and count them
    return cfg


def load_config(files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> CfgNode:
    """Merge defaults, YAML files in order, then `key value` pairs; validate, derive and freeze.

    Args:
        files: YAML files; a `_BASE_` key in one names the file (relative to it) it builds on.
        overrides: flat sequence "key", "value", ...; nested keys with dots ("solver.lr").

    Raises:
        UserError: unknown key (the nearest known one is named), wrong type, unreadable file or
            flags that contradict each other.

    Source: SPEC 4.
    """
    cfg = default_config()
    explicit: set[str] = set()
    for file in files:
        for source, values in _read_chain(Path(file), ()):
            for key, value in _flatten(values):
                _set(cfg, key, _beside(source, key, value), str(source))
                explicit.add(key)
    for key, value in _pairs(overrides):
        _set(cfg, key, _under_cwd(key, value), "command line")
        explicit.add(key)
    _check_choices(cfg)
    _resolve_paths(cfg, "features.store" in explicit)
    _validate(cfg)
    cfg.freeze()
    return cfg


def known_keys() -> set[str]:
    """Every key that can be set, nested ones with dots."""
    return set(_keys(default_config()))


def checkout_root() -> Path:
    """The folder that holds the package: the checkout of an editable install."""
    return Path(__file__).resolve().parents[1]


# --- reading -------------------------------------------------------------------------------------


def _read_chain(path: Path, seen: tuple[Path, ...]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    path = path.expanduser().resolve()
    if path in seen:
        raise UserError(f"config {path}: its _BASE_ chain leads back to itself")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except FileNotFoundError:
        raise UserError(f"config {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"config {path} is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(values, dict):
        raise UserError(
            f"config {path} must hold `key: value` lines, not a {type(values).__name__}"
        )
    base = values.pop("_BASE_", None)
    if base is not None:
        if not isinstance(base, str) or "\0" in base:
            raise UserError(f"config {path}: _BASE_ takes the name of a file, not {base!r:.60}")
        yield from _read_chain(path.parent / base, (*seen, path))
    yield path, values


class _Loader(yaml.SafeLoader):
    """Plain values only, each written out: a few lines of aliases can stand for billions."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        names = [key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise yaml.YAMLError(f"{sorted(twice)[0]} stands there twice; leave one of them")
        return super().construct_mapping(node, deep)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    if len(overrides) % 2:
        raise UserError(
            f"overrides come as `key value` pairs, but {overrides[-1]!r} at the end has no "
            "partner; lists are written without spaces: iteration_tasks xe_i2t,xe_t2i"
        )
    return zip(overrides[::2], overrides[1::2], strict=True)


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _set(cfg: CfgNode, key: str, value: Any, source: str) -> None:
    known = list(_keys(cfg))
    if key not in known:
        # a bare `lr` should find solver.lr, so compare with the last part too
        close = difflib.get_close_matches(key, known, 1, 0.6) or [
            name for name in known if name.split(".")[-1] == key.split(".")[-1]
        ]
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{source}: unknown key {key!r}{hint}")
    node, last = _parent(cfg, key)
    node[last] = _coerce(key, value, node[last], source)


def _parent(cfg: CfgNode, key: str) -> tuple[CfgNode, str]:
    """The node that holds a key, and the key's last part."""
    *parents, last = key.split(".")
    for parent in parents:
        cfg = cfg[parent]
    return cfg, last


def _coerce(key: str, value: Any, default: Any, source: str) -> Any:
    """Read `value` (text, or what YAML made of it) as the type of the default."""
    kind = type(default)
    try:
        if kind is list:
            item = float if default and isinstance(default[0], float) else str
            return [item(part) for part in _as_list(value)]
        if kind is str:
            if isinstance(value, (list, Mapping)):
                raise ValueError
            return "" if value is None else str(value).strip("'\"")
        if isinstance(value, str):
            value = {"true": "1", "false": "0"}.get(value.lower(), value)
        if isinstance(value, (list, type(None))) or (
            kind is int and float(value) != int(float(value))
        ):
            raise ValueError
        return kind(float(value))
    except (ValueError, TypeError, OverflowError):
        names = {int: "a whole number", float: "a number", str: "text", list: "a list"}
        raise UserError(
            f"{source}: {key} takes {names[kind]} such as {default!r}, not {value!r:.80}"
        ) from None


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    text = str(value).strip()
    try:
        parsed = ast.literal_eval(text)
        if isinstance(parsed, (list, tuple)):
            return list(parsed)
    except (ValueError, SyntaxError):
        pass  # a shell ate the quotes: [xe_i2t,xe_t2i] or xe_i2t,xe_t2i
    parts = [part.strip().strip("'\"") for part in text.strip("[]()").split(",")]
    return [part for part in parts if part]


# --- paths ---------------------------------------------------------------------------------------


def _under_cwd(key: str, value: str) -> str:
    """A path typed on the command line is meant from where it was typed."""
    if key == "root_path" or (key in PATHS and _is_path(key, value)):
        return str(Path(value).expanduser().absolute()) if value else value
    return value


def _beside(source: Path, key: str, value: Any) -> Any:
    """A path that begins with ./ in a file is meant from that file's folder."""
    if key in PATHS and isinstance(value, str) and value.startswith("./"):
        return str(source.parent / value)
    return value


def _is_path(key: str, value: str) -> bool:
    """Not so: empty, a repository of the hub, or the name of a network and not its file."""
    named = (
        key.startswith(("clip.", "features.", "generator."))
        and Path(value).suffix not in CLIP_FILES
    )
    return bool(value) and not value.startswith("hf:") and not named


def _resolve_paths(cfg: CfgNode, store_is_asked_for: bool) -> None:
    root = Path(cfg.root_path or checkout_root()).expanduser().absolute()
    cfg.root_path = str(root)
    for key in PATHS:
        node, last = _parent(cfg, key)
        if _is_path(key, node[last]):
            node[last] = str(root / Path(node[last]).expanduser())
    for key, name in DATA_FILES.items():
        node, last = _parent(cfg, key)
        file = str(Path(cfg.data_dir) / name)
        if key.startswith("grid_feat_path"):
            file = _feature_file(file, cfg.features.store, store_is_asked_for)
        node[last] = node[last] or file


def _feature_file(stem: str, store: str, asked_for: bool) -> str:
    """A file of features by its format; unless that was asked for, the format that is there."""
    wanted = stem + FEATURE_SUFFIXES[store]
    if not asked_for and not Path(wanted).exists():
        for suffix in FEATURE_SUFFIXES.values():
            if Path(stem + suffix).exists():
                return stem + suffix
    return wanted


# --- validation ----------------------------------------------------------------------------------


def _validate(cfg: CfgNode) -> None:
    _check_ranges(cfg)
    _check_decoding(cfg)
    dense, discrete = cfg.use_grid_feat, cfg.use_grid_cluster
    if cfg.use_mix_feature and not (dense and discrete):
        off = "use_grid_feat" if not dense else "use_grid_cluster"
        raise UserError(
            f"use_mix_feature 1 reads dense features and cluster ids, but {off} is 0; set {off} 1, "
            "or use_mix_feature 0 for the one-level ablations"
        )
    if not cfg.use_mix_feature and bool(dense) == bool(discrete):
        raise UserError(
            f"use_mix_feature 0 needs exactly one of use_grid_feat (dense) and use_grid_cluster "
            f"(discrete) set to 1; both are {dense}"
        )
    if cfg.model.hidden_size % cfg.model.num_heads:
        raise UserError(
            f"model.hidden_size {cfg.model.hidden_size} is not a multiple of model.num_heads "
            f"{cfg.model.num_heads}"
        )
    if cfg.reward.baseline == "leave_one_out" and cfg.reward.samples < 2:
        raise UserError("reward.baseline leave_one_out needs reward.samples 2 or more, such as 5")
    if cfg.reward.baseline == "greedy" and cfg.reward.samples != 1:
        raise UserError("reward.samples is for reward.baseline leave_one_out; greedy draws 1")
    if Path(cfg.clip.model).suffix == ".json" and Path(cfg.clip.weights).suffix not in CLIP_FILES:
        raise UserError(
            f"clip.model {cfg.clip.model} is a file, so clip.weights must be one too "
            f"({', '.join(CLIP_FILES[1:])}), not {cfg.clip.weights!r}"
        )
    if "rl_t2i" in cfg.iteration_tasks and not (cfg.mse_loss or cfg.use_clip_score):
        raise UserError("rl_t2i has no loss: set use_clip_score 1 or mse_loss 1")
    cosine = cfg.scheduler.method == "WarmupCosineSchedule"
    if cosine and cfg.scheduler.warmup_steps > cfg.scheduler.max_steps:
        raise UserError(
            f"scheduler.warmup_steps {cfg.scheduler.warmup_steps} is more than scheduler.max_steps "
            f"{cfg.scheduler.max_steps}; lower the warm-up or train longer"
        )
    if cfg.keep_best and not cfg.keep_last:
        raise UserError("keep_best is for runs that remove checkpoints: set keep_last 2 as well")
    if len(cfg.solver.betas) != 2 or not all(0 <= beta < 1 for beta in cfg.solver.betas):
        raise UserError(f"solver.betas takes two numbers in [0, 1), not {cfg.solver.betas}")


def _check_choices(cfg: CfgNode) -> None:
    if not cfg.iteration_tasks:
        raise UserError("iteration_tasks is empty; name at least one of " + ", ".join(TASKS))
    splits = [part.strip() for part in cfg.train_split.split(",")]
    choices = [
        *(("iteration_tasks", task, TASKS) for task in cfg.iteration_tasks),
        *(("train_split", split, SPLITS) for split in splits),
        ("eval_protocol", cfg.eval_protocol, ("torchvision", "tf", "network")),
        ("scheduler.method", cfg.scheduler.method, ("WarmupCosineSchedule", "ConstantLRSchedule")),
        ("solver.optimizer", cfg.solver.optimizer, ("adamw", "adamw_transformers")),
        ("reward.baseline", cfg.reward.baseline, ("greedy", "leave_one_out")),
        ("reward.document_frequency", cfg.reward.document_frequency, ("batch", "corpus")),
        ("checkpoint_format", cfg.checkpoint_format, ("pth", "safetensors")),
        ("decoding.method", cfg.decoding.method, ("greedy", "beam", "sample")),
        ("painting.schedule", cfg.painting.schedule, ("linear", "cosine")),
        ("eval_resize", cfg.eval_resize, ("squash", "crop")),
        ("clip.quick_gelu", cfg.clip.quick_gelu, ("auto", "0", "1")),
        ("rerank", cfg.rerank, ("none", "clip")),
        ("parallel", cfg.parallel, ("ddp", "fsdp")),
        ("cpu_linear", cfg.cpu_linear, ("auto", "torch", "onednn")),
        ("compile", cfg.compile, ("auto", "0", "1")),
        ("channels_last", cfg.channels_last, ("auto", "0", "1")),
        ("features.store", cfg.features.store, tuple(FEATURE_SUFFIXES)),
        ("features.precision", cfg.features.precision, ("float32", "bfloat16", "float16")),
        ("features.dtype", cfg.features.dtype, ("float16", "bfloat16", "float32")),
    ]
    for key, value, known in choices:
        if value not in known:
            raise UserError(f"{key}: {value!r:.80} is none of {', '.join(known)}")
    flags = ("distributed", "fp16", "load_model_only", "resume_from_latest", "use_mix_feature")
    flags += ("use_grid_cluster", "use_grid_feat", "xlxmert_zeroshot", "test_val2014")
    flags += ("eval_skip_bad",)
    flags += ("deterministic", "cpu_bf16", "tf32")
    flags += (
        "use_clip_score",
        "recompute",
        "visual_mask_per_sample",
        "collapse_repeats",
        "eval_fid",
        "eval_prc",
        "eval_is",
    )
    flags += ("restart_iteration", "eval_clipscore", "eval_rprec", "eval_rprec_hard")
    for key in flags:
        if cfg[key] not in (0, 1):
            raise UserError(f"{key} is a flag, 0 or 1, not {cfg[key]}")


def _check_decoding(cfg: CfgNode) -> None:
    how = cfg.decoding
    if not 0 < how.top_p <= 1:
        raise UserError(f"decoding.top_p must lie in (0, 1], not {how.top_p}")
    if how.method == "greedy" and how.num_captions > 1:
        raise UserError(
            f"decoding.num_captions {how.num_captions}: greedy writes one caption; set "
            "decoding.method beam or sample"
        )
    if how.method == "beam" and how.num_captions > how.beam_size:
        raise UserError(
            f"decoding.num_captions {how.num_captions} is more than decoding.beam_size "
            f"{how.beam_size}; raise decoding.beam_size to {how.num_captions}"
        )
    if cfg.painting.temperature < 0 and cfg.painting.temperature != -1:
        raise UserError(
            f"painting.temperature must be 0 or more (or -1), not {cfg.painting.temperature}"
        )
    if cfg.painting.temperature == 0 and cfg.num_samples > 1:
        raise UserError(
            f"painting.temperature 0 makes all {cfg.num_samples} pictures of a caption the same; "
            "raise it, for example to 1, or set num_samples 1"
        )
    if cfg.rerank == "clip" and cfg.num_samples == 1:
        raise UserError("rerank clip has one picture to choose from; set num_samples 8, or so")


def _check_ranges(cfg: CfgNode) -> None:
    at_least = {
        "samples_per_gpu": 1, "gradient_accumulation_steps": 1, "grid_size": 1, "grid_feat_dim": 1,
        "grid_cluster_num": 1, "text_length": 3, "num_workers": 0, "log_time": 1, "test_num": -1,
        "checkpoint_time": 1, "test_interval": 0, "mse_loss": 0,
        "seed": 0, "label_smoothing_classes": 0,
        "model.hidden_size": 1, "model.num_heads": 1, "model.intermediate_size": 1,
        "eval_image_size": 1, "eval_batch_size": 1,
        "model.language_layers": 0, "model.visual_layers": 0, "model.cross_layers": 1,
        "solver.lr": 0, "solver.weight_decay": 0, "solver.eps": 0, "solver.grad_clip": 0,
        "max_skipped_updates": 1, "prefetch_factor": 1,
        "global_batch": 0, "hang_timeout": 1, "profile_steps": 0, "keep_last": 0, "keep_best": 0,
        "scheduler.warmup_steps": 0, "scheduler.max_steps": 1, "clusters.iterations": 1,
        "clusters.max_points_per_centroid": 1,
        "generator.batch_size": 1, "generator.train_steps": 1, "generator.report_every": 1,
        "generator.image_size": 1, "generator.channels": 1, "features.image_size": 1,
        "features.batch_size": 1,
        "clip.train_steps": 1, "clip.batch_size": 2, "clip.lr": 0, "reward.samples": 1,
        "init.std": 0, "init.mask_feat_std": 0,
        "decoding.beam_size": 1, "decoding.num_captions": 1, "decoding.temperature": 0,
        "decoding.top_k": 0, "painting.steps": 1, "num_samples": 1,
        "painting.keep_steps": -1,
    }  # fmt: skip
    for key, low in at_least.items():
        node, last = _parent(cfg, key)
        value = node[last]
        if value < low:
            raise UserError(f"{key} must be at least {low}, not {value}")
    if cfg.text_length > 511:
        raise UserError(f"text_length {cfg.text_length}: the position table ends at 511")
    if cfg.model.vocab_size <= EOS:
        raise UserError(
            f"model.vocab_size {cfg.model.vocab_size}: the special ids reach {EOS} (the full stop)"
        )
    for key in ("model.dropout", "label_smoothing"):
        value = cfg.model.dropout if key == "model.dropout" else cfg.label_smoothing
        if not 0 <= value < 1:
            raise UserError(f"{key} must lie in [0, 1), not {value}")
