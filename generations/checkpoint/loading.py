"""Load saved weights into a model, completely or with an error.

Everything is checked before the first tensor is copied, so a refused file leaves the model as it
was. What a file fills is decided by its format (see `keys`): this project's own and the released
checkpoints must fill the whole model and nothing else; X-LXMERT, LXMERT and BERT are starts that
fill a part of it.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from generations.checkpoint.files import PTH_SUFFIXES, WEIGHTS_FILE, read_tensors, same
from generations.checkpoint.keys import (
    TIED,
    Format,
    detect_format,
    expected,
    rename_keys,
    shown,
    strip_module,
)
from generations.checkpoint.training_state import STATE_FILE, read_training_checkpoint
from generations.errors import UserError
from generations.libraries import library

hub = library("huggingface_hub")
hub_errors = library("huggingface_hub.errors")

logger = logging.getLogger(__name__)

HUB = "hf:"
MINIMUM = 0.95  # of what a partial start should give: heads may be absent, layers may not
# The files that a folder or a hub repository may hold its weights in, the safest first.
WEIGHT_FILES = (WEIGHTS_FILE, "pytorch_model.bin")
# The configuration key that each dimension of these tensors comes from.
_SIZE_KEYS = {
    "mask_feat": ("grid_feat_dim",),
    "cluster_codebook.weight": ("grid_cluster_num", "grid_feat_dim"),
    "img_classifier.out_cluster.weight": ("grid_cluster_num", "grid_feat_dim"),
    "img_classifier.out_cluster.bias": ("grid_cluster_num",),
    "img_classifier.linear_feat.weight": ("grid_feat_dim", "model.hidden_size"),
    "encoder.visn_fc.visn_fc.weight": ("model.hidden_size", "grid_feat_dim"),
    "embedding_layer.word_embeddings.weight": ("model.vocab_size", "model.hidden_size"),
    "encoder.layer.0.intermediate.dense.weight": ("model.intermediate_size", "model.hidden_size"),
}


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        source: where the weights came from.
        form: the format they were in.
        taken: names in the model that were filled.
        missing: names in the model that keep what they had.
        left_over: names in the file that have no place in the model.
    """

    source: str
    form: Format
    taken: list[str]
    missing: list[str]
    left_over: list[str]

    def table(self) -> str:
        """The report as a short text table: a row for each part of the model."""
        taken, missing = Counter(map(_part, self.taken)), Counter(map(_part, self.missing))
        rows = [(part, taken[part], missing[part]) for part in dict.fromkeys([*taken, *missing])]
        rows.append(("all", len(self.taken), len(self.missing)))
        width = max(len(row[0]) for row in rows)
        lines = [
            f"weights from {self.source} ({self.form} format)",
            f"  {'part':{width}}  taken  missing",
            *(f"  {part:{width}}  {took:5}  {lacks:7}" for part, took, lacks in rows),
        ]
        if self.left_over:
            parts = Counter(_part(strip_module(name)) for name in self.left_over)
            groups = ", ".join(f"{part} {count}" for part, count in parts.items())
            lines.append(f"  not used in the file: {len(self.left_over)} ({groups})")
        return "\n".join(lines)


def load_weights(model: nn.Module, path: str | Path, *, minimum: float | None = None) -> LoadReport:
    """Load weights into the unified transformer.

    Args:
        model: the transformer of `build_model`, not wrapped.
        path: a .pth, .bin or .safetensors file; a folder with model.safetensors or
            pytorch_model.bin; or `hf:<repository id>`, which is downloaded once and then cached.
        minimum: the share, in [0, 1], of what a partial start (X-LXMERT, LXMERT, BERT) should
            give that must be there; None: 0.95. The released format is always complete.

    Returns:
        what was taken, what is missing, what was left over; its table is logged.

    Raises:
        UserError: unreadable or unknown file, wrong shapes, too few matches, or, in the released
            format, missing or left-over names. The model is then unchanged.

    Source: SPEC 2, 4, 12.
    """
    return load_tensors(model, read_tensors(find_weights(path)), str(path), minimum=minimum)


def load_averaged(model: nn.Module, path: str | Path) -> bool:
    """Load the averaged weights of a training checkpoint, if it holds any.

    Returns:
        whether it does; if not, the model is as it was.

    Raises:
        UserError: as `load_weights`.
    """
    path = Path(path)
    if path.suffix not in PTH_SUFFIXES and not (path / STATE_FILE).is_file():
        return False
    averaged = read_training_checkpoint(path).averaged()
    if averaged:
        load_tensors(model, averaged, f"{path} (averaged)")
    return bool(averaged)


def load_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str, *, minimum: float | None = None
) -> LoadReport:
    """`load_weights` for tensors that have been read already.

    Args:
        tensors: {name as in the file: tensor}.
        source: what to call their origin in the log and in errors.
    """
    form = detect_format(tensors, source)
    if form == "generator":
        raise UserError(
            f"{source} holds an image generator, not a transformer: set pretrained_generator to it "
            "instead"
        )
    filling, report = _match(model.state_dict(), tensors, source, form)
    if form == "released":
        _check_complete(report)
    else:
        _check_enough(model, report, MINIMUM if minimum is None else minimum)
    _fill(model, filling)
    logger.info("%s", report.table())
    return report


def load_generator_weights(generator: nn.Module, path: str | Path) -> LoadReport:
    """Load all of the image generator's weights (`G_60.pth`), with or without `module.` prefixes.

    Args:
        generator: the module of `build_generator`.
        path: a .pth or .safetensors file.

    Raises:
        UserError: as `load_weights` for the released format.

    Source: SPEC 9, 12.
    """
    tensors = read_tensors(path)
    form = detect_format(tensors, str(path))
    if form != "generator":
        raise UserError(
            f"{path} holds a transformer ({form} format), not an image generator; give the file "
            "that `prepare.py generator` wrote, or G_60.pth"
        )
    filling, report = _match(generator.state_dict(), tensors, str(path), form)
    _check_complete(report)
    _fill(generator, filling)
    logger.info("%s", report.table())
    return report


# --- finding the file ----------------------------------------------------------------------------


def find_weights(source: str | Path) -> Path:
    """The file that holds the weights of `source` (see `load_weights`).

    Raises:
        UserError: there is none; or the hub cannot be reached.
    """
    if str(source).startswith(HUB):
        return hub_file(str(source), WEIGHT_FILES)
    path = Path(source).expanduser()
    if not path.is_dir():
        return path
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"folder {path} contains neither {' nor '.join(WEIGHT_FILES)}: give a file, or a folder "
        "that save_pretrained wrote"
    )


def hub_file(source: str, names: Sequence[str]) -> Path:
    """The first of `names` in a hub repository: from the cache if it is there, else downloaded.

    Args:
        source: `hf:<repository id>`.

    Raises:
        UserError: no such repository, none of the files in it, or no way to reach the hub.
    """
    repository = source.removeprefix(HUB)
    try:
        for name in names:
            cached = hub.try_to_load_from_cache(repository, name)
            if isinstance(cached, str):
                return Path(cached)
        for name in names:
            try:
                return Path(hub.hf_hub_download(repository, name))
            except hub_errors.LocalEntryNotFoundError:  # an EntryNotFoundError: "no network"
                raise
            except hub_errors.EntryNotFoundError:
                continue
    except Exception as error:  # the network can fail in any way, and the answer is the same
        raise UserError(
            f"{source} cannot be downloaded ({(str(error) or 'no answer').splitlines()[0][:120]}): "
            f"check the id and the network, or copy the repository's config.json and {names[0]} "
            f"into a folder and give that folder's path in place of {source}"
        ) from error
    raise UserError(f"{source} contains neither {' nor '.join(names)}")


# --- matching and checking -----------------------------------------------------------------------


def _match(
    state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str, form: Format
) -> tuple[dict[str, Tensor], LoadReport]:
    """Pair the file's tensors with the model's, and check every shape."""
    wanted = set(expected(form, state))
    filling: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    left_over: list[str] = []
    for theirs, ours in rename_keys(tensors, form).items():
        if ours in wanted and ours not in filling:
            filling[ours], origin[ours] = tensors[theirs], theirs
        else:
            left_over.append(theirs)
    _check_shapes(state, filling, origin, source)
    taken = set(filling)
    for second, first in TIED.items():
        if second in filling and first in filling:
            value = filling.pop(second)
            if not same(value, filling[first]):
                taken.remove(second)
                left_over.append(origin[second])
        if second in state and taken & {first, second}:
            taken |= {first, second} & wanted
    report = LoadReport(
        source=source,
        form=form,
        taken=[name for name in state if name in taken],
        missing=[name for name in state if name not in taken],
        left_over=left_over,
    )
    return filling, report


def _check_shapes(
    state: Mapping[str, Tensor],
    filling: Mapping[str, Tensor],
    origin: Mapping[str, str],
    source: str,
) -> None:
    wrong: list[str] = []
    fixes: dict[str, int] = {}
    for name, tensor in filling.items():
        found, needed = tuple(tensor.shape), tuple(state[name].shape)
        if found != needed:
            wrong.append(f"{origin[name]} is {found}, the model needs {needed}")
            if len(found) == len(needed):
                sizes = zip(_SIZE_KEYS.get(name, ()), found, needed, strict=False)
                fixes.update({key: size for key, size, own in sizes if size != own})
        elif tensor.is_floating_point() != state[name].is_floating_point():
            wrong.append(f"{origin[name]} is {tensor.dtype}, the model needs {state[name].dtype}")
    if wrong:
        flags = " ".join(f"{key} {size}" for key, size in fixes.items())
        hint = f"set {flags}" if flags else "set the sizes it was trained with"
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"{source} belongs to another model: {'; '.join(wrong[:5])}{more}: {hint}, or give "
            "another file"
        )


def _check_complete(report: LoadReport) -> None:
    problems = []
    if report.missing:
        problems.append(f"{len(report.missing)} missing ({shown(report.missing)})")
    if report.left_over:
        problems.append(f"{len(report.left_over)} not used ({shown(report.left_over)})")
    if problems:
        raise UserError(
            f"{report.source} does not match this model: {' and '.join(problems)}. Set the sizes "
            "and layers that it was trained with, or give another file"
        )


def _check_enough(model: nn.Module, report: LoadReport, minimum: float) -> None:
    wanted = expected(report.form, model.state_dict())
    absent = [name for name in wanted if name in set(report.missing)]
    needed = minimum * len(wanted)
    if len(wanted) - len(absent) < needed:
        raise UserError(
            f"{report.source} has {len(wanted) - len(absent)} of the {len(wanted)} tensors that a "
            f"file of the {report.form} format should have (at least {needed:.0f} are needed). "
            f"Missing: {shown(absent)}. Not used: {shown(report.left_over) or 'none'}"
        )


@torch.no_grad()
def _fill(model: nn.Module, filling: Mapping[str, Tensor]) -> None:
    state = model.state_dict()
    for name, tensor in filling.items():
        state[name].copy_(tensor)


def _part(name: str) -> str:
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first in ("encoder", "bert", "lxmert", "cls") else first
