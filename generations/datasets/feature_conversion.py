"""Dense features from one file format into another."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from generations.datasets.feature_parts import signature_of
from generations.datasets.feature_writers import open_feature_writer
from generations.datasets.packed import PackedFeatures
from generations.datasets.packed_writer import CONVERTED
from generations.datasets.stores import FEATURE_FORMATS, FeatureFile, open_feature_store
from generations.errors import UserError
from generations.progress import progress_bar


def convert_features(source: str | Path, target: str | Path, dtype: str = "float16") -> int:
    """Write the features of a file into another; the suffixes say what each of them is.

    A killed conversion goes on where it was. Features that prepare.py made keep their signature,
    so that prepare.py takes the new file for its own.

    Args:
        source: .h5 (the original's layout) or .packed.
        target: .packed or .h5.
        dtype: of a packed target; see `packed.encode` for what it costs.

    Returns:
        The number of images.

    Raises:
        UserError: no such source, images in it that are not of one shape or not finite, an unknown
            suffix, or a target in the way.
    """
    source, target = Path(source), Path(target)
    if source.absolute() == target.absolute():
        raise UserError(
            f"features {source}: source and target are the same file; choose another target"
        )
    if source.suffix not in FEATURE_FORMATS or not source.is_file():
        known = ", ".join(FEATURE_FORMATS)
        raise UserError(
            f"features {source}: the file does not exist, or its suffix is not one of {known}"
        )
    file = FEATURE_FORMATS[source.suffix](source)
    names = list(file.names())
    shape = _shape(file, names)
    store = open_feature_store([source], shape[0], shape[2])
    writer = open_feature_writer(target, _signature(source, file), names, shape, dtype)
    with progress_bar(len(names), target.name, "image", writer.done) as bar:
        for name in writer.missing:
            writer.add(name, store.read(name).reshape(shape))
            bar.update()
    writer.finish()
    return len(names)


def _shape(file: FeatureFile, names: list[str]) -> tuple[int, int, int]:
    if not names:
        raise UserError(f"features {file.path}: the file has no images")
    first = file.read(names[0])
    if first is None or first.ndim != 3 or first.shape[0] != first.shape[1]:
        found = None if first is None else first.shape
        raise UserError(f"features {file.path}: {names[0]} has the shape {found} and not (G, G, D)")
    return first.shape


def _signature(source: Path, file: FeatureFile) -> str:
    made: Callable[[], str | None] = (
        (lambda: file.header.signature)
        if isinstance(file, PackedFeatures)
        else (lambda: signature_of(source))
    )
    try:
        signature = made()
    except UserError:  # not made by prepare.py: the original's
        signature = None
    if signature:
        return signature
    status = source.stat()
    facts = f"{source.name} {status.st_size} {status.st_mtime_ns}"
    return CONVERTED + hashlib.sha256(facts.encode()).hexdigest()
