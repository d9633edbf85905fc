"""Feature maps of a trained network, for the perceptual loss.

Shape legend: B batch, S image side.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from generations.libraries import library

models = library("torchvision.models")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class StageFeatures(nn.Module):
    """The output of every stage of a network; weights fixed, gradients flow to the picture.

    Args:
        stages: run one after the other.
        mean: of the pixels in [0, 1] that the network was trained on, red, green, blue.
        std: their deviation.

    Source: X-LXMERT (Cho et al., EMNLP 2020), section 3.3; SPEC 9.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, stages: Iterable[nn.Module], mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Pictures (B, 3, S, S) in [-1, 1] -> a feature map of each stage."""
        x = ((images + 1) / 2 - self.mean) / self.std
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


def resnet50_features(state: dict[str, Tensor] | None = None, seed: int = 0) -> StageFeatures:
    """ResNet-50's stem and four layers.

    Args:
        state: weights as torchvision publishes them; None: random ones.
        seed: of the random ones.

    Raises:
        RuntimeError: weights of another network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = models.resnet50(weights=None)
    if state is not None:
        network.load_state_dict(state)
    stem = nn.Sequential(network.conv1, network.bn1, network.relu)
    first = nn.Sequential(network.maxpool, network.layer1)
    stages = [stem, first, network.layer2, network.layer3, network.layer4]
    return StageFeatures(stages, IMAGENET_MEAN, IMAGENET_STD)
