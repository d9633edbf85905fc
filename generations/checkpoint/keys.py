"""Names of weights: which format a file is in, and what its names are called in our model.

Pure functions on names; no tensor is touched here.

Formats:
    released    this project's own files, the released checkpoints included
    xlxmert     X-LXMERT (`Epoch20_LXRT.pth`): `bert.*`, `cls.*`, `obj_predict_head.*`
    lxmert      LXMERT, of transformers (`lxmert.*`) or of its authors (`bert.*`): its image head
                predicts other things, so only that head's transform has a place here
    bert        BERT: the language layers alone
    generator   the image generator (`G_60.pth`)
A `module.` prefix (a checkpoint of a DistributedDataParallel wrapper) is allowed in all of them.
"""

import re
from collections.abc import Collection, Iterable
from typing import Literal

from generations.errors import UserError

Format = Literal["released", "xlxmert", "lxmert", "bert", "generator"]

CODEBOOK = "cluster_codebook.weight"
# Two names of one tensor: files may hold either or both. {second name: first name}
TIED = {"classifier.predictions.decoder.weight": "embedding_layer.word_embeddings.weight"}

_HEADS = {"cls.": "classifier.", "obj_predict_head.": "img_classifier."}
_TRANSFORM = {"cls.": "classifier.", "obj_predict_head.transform.": "img_classifier.transform."}


def _trunk(prefix: str) -> dict[str, str]:
    parts = {"embeddings.": "embedding_layer.", "encoder.": "encoder.", "pooler.": "pooler."}
    return {prefix + theirs: ours for theirs, ours in parts.items()}


# {format: {prefix in the file: prefix in our model}}
_PREFIXES: dict[Format, dict[str, str]] = {
    "released": {},
    "xlxmert": {**_trunk("bert."), **_HEADS},
    # transformers' LxmertForPreTraining, its authors' own files, and a bare LxmertModel
    "lxmert": {**_trunk("lxmert."), **_trunk("bert."), **_trunk(""), **_TRANSFORM},
    "bert": {**_trunk("bert."), **_trunk(""), "cls.": "classifier."},
    "generator": {},
}

# {format: beginnings of the names in our model that a file of this format should fill}
_EXPECTED: dict[Format, tuple[str, ...]] = {
    "released": ("",),
    "xlxmert": ("mask_feat", *("embedding_layer.", "encoder.", "pooler."), *_HEADS.values()),
    "lxmert": ("embedding_layer.", "encoder.", "pooler.", *_TRANSFORM.values()),
    "bert": ("embedding_layer.", "encoder.layer.", "classifier.predictions."),
    "generator": ("",),
}


def strip_module(name: str) -> str:
    """The name without the prefix that DistributedDataParallel puts before it."""
    return name.removeprefix("module.")


def detect_format(keys: Collection[str], source: str = "the file") -> Format:
    """Tell a file's format by the names in it.

    Args:
        keys: the names of its tensors.
        source: what to call the file in an error.

    Raises:
        UserError: no known format; a few of the names are shown.
    """
    names = {strip_module(key) for key in keys}

    def has(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    cross_modal = any("encoder.x_layers." in name for name in names)
    if has("embedding_layer.", "img_classifier.", CODEBOOK):
        return "released"
    if has("lxmert.", "obj_predict_head.decoder_dict.") or (cross_modal and has("embeddings.")):
        return "lxmert"
    if has("bert.") and (cross_modal or has("obj_predict_head.")):
        return "xlxmert"
    if has("bert.") or (has("embeddings.word_embeddings.") and has("encoder.layer.")):
        return "bert"
    if has("bottleneck_emb.", "resblocks."):
        return "generator"
    raise UserError(
        f"{source} has an unknown format, with the tensors {shown(sorted(keys))}; known formats "
        "are checkpoints of this project, the released checkpoints, X-LXMERT, LXMERT, BERT and "
        "the image generator"
    )


def rename_keys(keys: Collection[str], form: Format) -> dict[str, str]:
    """{name in the file: name in our model}; a name that has no place here keeps its own.

    Args:
        keys: all names in the file (a few rules depend on which others there are).
        form: its format.

    Source: SPEC 12 (`obj_predict_head.*` is renamed with and without `module.`).
    """
    if form in ("released", "generator"):
        return {key: strip_module(key) for key in keys}
    prefixes = dict(_PREFIXES[form])
    if "classifier.decoder.weight" in {strip_module(key) for key in keys}:
        # a BERT whose word head is called `classifier`; asked of the decoder, because the
        # `classifier` of a fine-tuned BERT is something else
        prefixes["classifier."] = "classifier.predictions."
    return {key: _rename(key, prefixes) for key in keys}


def _rename(key: str, prefixes: dict[str, str]) -> str:
    # files converted from TensorFlow call a LayerNorm's weight gamma and its bias beta
    name = re.sub(r"\.gamma$", ".weight", strip_module(key))
    name = re.sub(r"\.beta$", ".bias", name)
    for theirs, ours in prefixes.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name if name == "mask_feat" else key


def expected(form: Format, model_keys: Iterable[str]) -> list[str]:
    """The names of the model that a file of this format should fill."""
    return [key for key in model_keys if key.startswith(_EXPECTED[form])]


def shown(keys: Collection[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    first = ", ".join(list(keys)[:most])
    return first if len(keys) <= most else f"{first} and {len(keys) - most} more"
