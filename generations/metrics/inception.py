"""The two Inception-v3 networks that image metrics are measured with.

Shape legend: B batch, C classes (1000 or 1008).
"""

import hashlib
import tempfile
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.hub import load_state_dict_from_url
from torch.nn import functional as F
from torchvision.models import Inception_V3_Weights, inception_v3

from generations.errors import UserError
from generations.libraries import library

fidelity = library("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity")

FEATURES = 2048
SIDE = 299  # of Inception's input


class TorchvisionInception(nn.Module):
    """torchvision's network, as the original used it.

    Pictures are enlarged to 299 x 299 (bilinear) and scaled to [-1, 1]; torchvision's own scaling
    (`transform_input`) is off.

    Args:
        state: weights as torchvision publishes them.

    Source: SPEC 10.
    """

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        # aux: a second classifier that only training needs
        kept = {key: value for key, value in state.items() if not key.startswith("AuxLogits.")}
        network = inception_v3(
            weights=None, aux_logits=False, init_weights=False, transform_input=False
        )
        network.load_state_dict(kept)
        self.classifier = network.fc
        network.fc = nn.Identity()  # type: ignore[assignment]
        self.network = network
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) uint8 -> pool3 features (B, 2048) and logits (B, 1000)."""
        inputs = F.interpolate(pixels.float() / 255, (SIDE, SIDE), mode="bilinear")
        features = self.network(2 * inputs - 1)
        return features, self.classifier(features)


class TfInception(nn.Module):
    """The network of the TensorFlow release, which most papers use.

    By torch-fidelity's port: TensorFlow 1's way of resizing, logits without bias.

    Args:
        state: weights as torch-fidelity and pytorch-fid publish them.
    """

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        with tempfile.TemporaryDirectory() as folder:
            # The port unpickles whatever its file holds: give it one that holds tensors alone.
            path = Path(folder) / "weights.pth"
            torch.save(state, path)
            self.network = fidelity.FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=str(path),
            )
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) uint8 -> pool3 features (B, 2048) and logits (B, 1008)."""
        features, logits = self.network(pixels)
        return features, logits


def load_inception(protocol: str, weights: str = "") -> tuple[nn.Module, str]:
    """Load one of the two networks.

    Args:
        protocol: torchvision or tf.
        weights: its file (.pth or .safetensors); "": the library's download or its cache.

    Returns:
        The network, in eval mode, and a SHA-256 of its weights.

    Raises:
        UserError: no such file, no download, or weights of something else.
    """
    state = _read(weights) if weights else _download(protocol)
    try:
        network = (TorchvisionInception if protocol == "torchvision" else TfInception)(state)
    except RuntimeError as error:
        raise UserError(
            f"eval_weights {weights or _url(protocol)} do not fit the {protocol} Inception "
            f"({' '.join(str(error).split())[:120]}); get {_url(protocol)}"
        ) from None
    return network, state_hash(state)


def is_at_hand(protocol: str, weights: str = "") -> bool:
    """Whether `load_inception` would find its weights without a download."""
    cached = Path(torch.hub.get_dir(), "checkpoints", _url(protocol).rsplit("/", 1)[1])
    return Path(weights).is_file() if weights else cached.is_file()


def _url(protocol: str) -> str:
    if protocol == "torchvision":
        return Inception_V3_Weights.IMAGENET1K_V1.url
    return fidelity.URL_INCEPTION_V3


def state_hash(state: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values: the same for the same weights in any file."""
    found = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _read(weights: str) -> dict[str, Tensor]:
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"eval_weights: {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"eval_weights: {path} cannot be read as weights ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"eval_weights: {path} must contain only a state dict of tensors")
    return state


def _download(protocol: str) -> dict[str, Tensor]:
    url = _url(protocol)
    try:
        return dict(
            load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
        )
    except (OSError, URLError, RuntimeError) as error:
        raise UserError(
            f"eval_protocol {protocol}: its Inception is not in the cache and cannot be downloaded "
            f"({' '.join(str(error).split())[:120]}); get {url} and set eval_weights "
            "/path/to/the/file, or set eval_protocol network (CLIP's image encoder), or eval_fid "
            "0 eval_is 0"
        ) from None
