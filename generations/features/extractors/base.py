"""What extractors with a network share: cells of a feature map, the hash of weights, running."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from generations.errors import UserError
from generations.features.extractors.registry import ExtractorSettings
from generations.libraries import library

ops = library("torchvision.ops")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CPU_IMAGES = 8  # at once: larger maps leave the caches, and take three times as long
AnyModule = TypeVar("AnyModule", bound=nn.Module)


class SquareExtractor(ABC):
    """A network that turns squares of pixels into a map, whose cells are pooled to the grid.

    Args:
        settings: sizes and names.
        network: the network; it is frozen, put into eval mode and moved to the device.
        device: where it runs.
        mean: of the three channels, in [0, 1], to subtract.
        std: of the three channels, to divide by.
        unused: outermost modules that the map does not depend on, such as a classifier.

    Raises:
        UserError: the network does not take squares of this size.
    """

    def __init__(
        self,
        settings: ExtractorSettings,
        network: nn.Module,
        device: torch.device,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        unused: Collection[str] = (),
    ):
        self.name = settings.name
        self.image_size: int | None = settings.side
        self.grid_size = settings.grid_size
        self._precision = settings.precision
        # pictures come with their channels last, and convolutions on CPUs are quicker so
        self.network = freeze(network).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        used = {n: t for n, t in network.state_dict().items() if n.split(".")[0] not in unused}
        self.weights_sha256 = tensors_sha256(used)
        self._device = device
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        side = settings.side
        try:
            self.dim = self(np.zeros((1, side, side, 3), np.uint8)).shape[-1]
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"features.extractor {settings.name} {settings.backbone} does not work with "
                f"features.image_size {side} ({reason})"
            ) from None

    @abstractmethod
    def feature_map(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32, normalised -> (B, D, h, w) float32."""

    @torch.no_grad()
    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """(B, S, S, 3) uint8 RGB -> (B, G, G, D) float32."""
        pixels = torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)
        at_once = CPU_IMAGES if self._device.type == "cpu" else len(pixels)
        cells = []
        for part in pixels.split(at_once):
            normal = (part.to(self._device) / 255 - self._mean) / self._std
            with autocast(self._device, self._precision):
                maps = self.feature_map(normal)
            cells.append(pool_cells(maps.float(), self.grid_size).cpu())
        return torch.cat(cells).numpy()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Within it, products are computed in float32, bfloat16 or float16."""
    dtype = getattr(torch, precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def freeze(network: AnyModule) -> AnyModule:
    """The network in eval mode, its weights without gradients."""
    return network.eval().requires_grad_(False)


def pool_cells(maps: Tensor, grid_size: int) -> Tensor:
    """ROI-align on the G x G boxes that a feature map is divided into.

    A map of G x G keeps its values; of a larger one, each cell is the mean of bilinear samples, as
    many along a side as it has points of the map, rounded up.

    Args:
        maps: (B, D, h, w) float.
        grid_size: G.

    Returns:
        (B, G, G, D).
    """
    batch, dim, height, width = maps.shape
    boxes = grid_boxes(grid_size, height / grid_size, width / grid_size).to(maps)
    # aligned: a point of the map stands for the middle of its cell
    pooled = ops.roi_align(maps, [boxes] * batch, output_size=1, sampling_ratio=-1, aligned=True)
    return pooled.reshape(batch, grid_size, grid_size, dim)


def grid_boxes(grid_size: int, height: float, width: float) -> Tensor:
    """Boxes (x0, y0, x1, y1) of the cells of a grid, row by row.

    Args:
        grid_size: G.
        height: of a cell.
        width: of a cell.

    Returns:
        (N, 4) float32.
    """
    rows, columns = torch.meshgrid(torch.arange(grid_size), torch.arange(grid_size), indexing="ij")
    left, top = columns.flatten(), rows.flatten()
    corners = (left * width, top * height, (left + 1) * width, (top + 1) * height)
    return torch.stack(corners, dim=1).float()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, whatever file they came from.

    The batch counts of norms, which older files lack, are left out.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if name.endswith("num_batches_tracked"):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def seeded(build: Callable[[], AnyModule], seed: int) -> AnyModule:
    """Build a network whose random weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
