"""The arrays measured on the original code, and the weights formula they were made with."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from generations.config import load_config
from generations.modeling import UnifiedTransformer, build_model

FOLDER = Path(__file__).parent / "goldens"
TINY = (
    *("model.hidden_size", "48", "model.num_heads", "4", "model.intermediate_size", "96"),
    *("model.language_layers", "3", "model.visual_layers", "2", "model.cross_layers", "2"),
    *("model.vocab_size", "1100", "model.dropout", "0", "grid_size", "4", "grid_feat_dim", "24"),
    *("grid_cluster_num", "50", "text_length", "9"),
)


def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of goldens/<name>.npz."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def keys(name: str) -> dict[str, list]:
    """{parameter name: [shape, dtype]} of goldens/<name>_keys.json."""
    return json.loads((FOLDER / f"{name}_keys.json").read_text())


def formula(key: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """The weight that the goldens were made with (GOLDENS.md)."""
    generator = np.random.default_rng(zlib.crc32(key.encode()) + seed)
    values = generator.standard_normal(shape).astype(np.float32)
    norm = key.endswith("LayerNorm.weight") or ("layer_norm" in key and key.endswith(".weight"))
    if key == "cluster_codebook.weight":
        return torch.from_numpy(values)
    values = np.float32(0.05) * values
    return torch.from_numpy(np.float32(1) + values if norm else values)


def fill(model: torch.nn.Module, seed: int = 0) -> None:
    """Set every weight of the model by the formula."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key != "classifier.predictions.decoder.weight":
                value.copy_(formula(key, tuple(value.shape), seed))


def tiny(*overrides: str) -> UnifiedTransformer:
    """The model of the goldens, with their weights."""
    model = build_model(load_config(overrides=(*TINY, *overrides)))
    fill(model)
    return model
