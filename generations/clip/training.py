"""Training of a small CLIP: from random weights for the mini world, on a backbone for photographs.

Shape legend: M images, B batch, E embedding size, S image side, T context length; C channels and c
cells a side of what a backbone sees.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generations.clip.backbone import BackboneTower, build_network
from generations.clip.model import PREPROCESS, PROMPT, ClipModel, SmallTokenizer, used_tokens
from generations.efficientnet import MEAN, STD
from generations.errors import UserError
from generations.libraries import library
from generations.progress import progress_bar

open_clip = library("open_clip", "open_clip_torch")

WARMUP = 0.1  # share of the steps over which the learning rate rises
MAX_SCALE = math.log(100)  # of the similarities, as in the CLIP paper
IMAGE_STEP = 32  # the image network halves its input five times
IMAGES_AT_ONCE = 8  # by a backbone: more leave the caches of a CPU


@dataclass(frozen=True)
class ClipTrainSettings:
    """How a small CLIP is built and trained.

    Attributes:
        train_steps: number of steps.
        batch_size: pairs a step; each is the negative of all others.
        lr: highest learning rate of AdamW; it rises over WARMUP, then falls along a cosine.
        weight_decay: of matrices and filters.
        prompt: what stands before each caption, as when scoring.
        embed_dim: E.
        image_width: channels of the image network's first stage, it grows with their square; with
            a backbone the width of its head.
        text_width: hidden size of the text network.
        text_layers: layers of the text network.
        context_length: T; longer captions are cropped.
        backbone: '', or efficientnet-lite0: what the image half sees with, itself not trained.
        blocks: of the backbone; see `BackboneTower`.
        dropout: of the backbone's head.
        log_every: steps between two calls of `log`.
    """

    train_steps: int = 400
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.1
    prompt: str = PROMPT
    embed_dim: int = 64
    image_width: int = 8
    text_width: int = 64
    text_layers: int = 2
    context_length: int = 24
    backbone: str = ""
    blocks: tuple[int, ...] = ()
    dropout: float = 0.0
    log_every: int = 20


def train_clip(
    images: np.ndarray,
    captions: Sequence[Sequence[str]],
    settings: ClipTrainSettings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    log: Callable[[int, Mapping[str, float]], None] = lambda step, scalars: None,
) -> ClipModel:
    """Train a CLIP on pictures, each with one of its captions drawn at random every time.

    The image network is open_clip's ResNet: of the two kinds that open_clip has, it learns small
    drawings several times faster than a vision transformer does. With a backbone the pictures are
    seen once by it, and what it saw (M, C, c, c) is kept in float16 and mirrored half of the time.
    Of open_clip's 49,408 tokens only those are kept that the captions have.

    Args:
        images: (M, S, S, 3) uint8; S is a multiple of 32, M at least the batch size.
        captions: for each image at least one caption.
        settings: the recipe.
        seed: of the weights, the order of the images and the choice of captions.
        device: where to train; the model stays there.
        log: called with the step and scalars: "loss", "accuracy" (share of a batch's images whose
            own caption comes first), "scale" (of the similarities).

    Returns:
        The model, its weights rounded to float16, so that it equals what `save_clip` writes.

    Raises:
        UserError: images and captions that do not fit, or the training diverged.

    Source: Radford et al. 2021, section 2.3 (symmetric cross entropy over a batch's similarities).
    """
    _check(images, captions, settings)
    texts = [settings.prompt + caption for own in captions for caption in own]
    token_ids = used_tokens(texts)
    tokenize = SmallTokenizer(token_ids, settings.context_length)
    config = _config(images.shape[1], tokenize.vocab_size, settings)
    config["token_ids"] = token_ids
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(config["model_cfg"], settings.dropout)
    clip = ClipModel(network, tokenize, config).to(device)  # also normalises the pictures
    rng = np.random.default_rng(seed)
    encode = _cells_encoder(clip, images, rng) if settings.backbone else _encoder(clip, images)
    network.train().requires_grad_(True)
    tokens = tokenize(texts)  # of all captions of all images, one below the other
    counts = np.array([len(own) for own in captions])
    first = np.cumsum(counts) - counts  # row of an image's first caption
    optimizer = _optimizer(network, settings)
    batches = _batches(len(images), settings, rng)
    with progress_bar(settings.train_steps, "CLIP", "step") as bar:
        for step, chosen in enumerate(batches, 1):
            _set_lr(optimizer, step, settings)
            picked = first[chosen] + rng.integers(counts[chosen])
            logits = _similarities(network, encode(chosen), tokens[picked].to(device))
            loss = symmetric_cross_entropy(logits)
            _step(network, optimizer, loss, step)
            bar.update()
            if step % settings.log_every == 0 or step == settings.train_steps:
                own_first = logits.argmax(1) == torch.arange(len(logits), device=logits.device)
                scale = network.logit_scale.exp().item()
                accuracy = own_first.float().mean().item()
                log(step, {"loss": loss.item(), "accuracy": accuracy, "scale": scale})
    network.load_state_dict(
        {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    )
    return ClipModel(network, tokenize, config).to(device)


def symmetric_cross_entropy(logits: Tensor) -> Tensor:
    """Contrastive loss in both directions: each image against all captions, and the reverse.

    Args:
        logits: (B, B) similarities of images (rows) and captions, scaled.

    Returns:
        The scalar mean of both cross entropies.
    """
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def _check(
    images: np.ndarray, captions: Sequence[Sequence[str]], settings: ClipTrainSettings
) -> None:
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images must be (M, S, S, 3) uint8, not {images.shape} {images.dtype}")
    if images.shape[1] != images.shape[2] or images.shape[1] % IMAGE_STEP:
        raise UserError(
            f"CLIP: images have {images.shape[2]} x {images.shape[1]} pixels; resize them to "
            f"squares with a side that is a multiple of {IMAGE_STEP}"
        )
    if len(images) != len(captions):
        raise UserError(f"CLIP: there are {len(images)} images, but captions for {len(captions)}")
    for index, own in enumerate(captions):
        if not own:
            raise UserError(f"CLIP: image {index} (counted from 0) has no caption; leave it out")
    if not 2 <= settings.batch_size <= len(images):
        raise UserError(
            f"clip.batch_size must be from 2 to the number of images, {len(images)}, not "
            f"{settings.batch_size}"
        )


def _config(side: int, vocab_size: int, settings: ClipTrainSettings) -> dict[str, Any]:
    """The open_clip model config of a small CLIP for images of `side` pixels."""
    image_network: dict[str, Any] = {"image_size": side, "width": settings.image_width}
    preprocess = dict(PREPROCESS)
    if settings.backbone:
        image_network |= {"backbone": settings.backbone, "blocks": list(settings.blocks)}
        preprocess |= {"mean": MEAN, "std": STD, "resize_mode": "squash"}
    else:
        image_network |= {"layers": [1, 1, 1, 1], "head_width": 64}
    text_network = {
        "context_length": settings.context_length,
        "vocab_size": vocab_size,
        "width": settings.text_width,
        "heads": max(1, settings.text_width // 32),
        "layers": settings.text_layers,
        "mlp_ratio": 2.0,
    }
    model = {"embed_dim": settings.embed_dim, "vision_cfg": image_network, "text_cfg": text_network}
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def _optimizer(network: nn.Module, settings: ClipTrainSettings) -> torch.optim.AdamW:
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]  # biases, norms, the scale
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98))


def _set_lr(optimizer: torch.optim.Optimizer, step: int, settings: ClipTrainSettings) -> None:
    warmup = max(1, round(WARMUP * settings.train_steps))
    done = max(0, step - warmup) / max(1, settings.train_steps - warmup)
    rate = settings.lr * min(1.0, step / warmup) * (1 + math.cos(math.pi * done)) / 2
    for group in optimizer.param_groups:
        group["lr"] = rate


def _batches(
    count: int, settings: ClipTrainSettings, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """`train_steps` arrays of image indices: epoch after epoch, the incomplete rest left out."""
    steps = 0
    while True:
        order = rng.permutation(count)
        for start in range(0, count - settings.batch_size + 1, settings.batch_size):
            if steps == settings.train_steps:
                return
            yield order[start : start + settings.batch_size]
            steps += 1


def _encoder(clip: ClipModel, images: np.ndarray) -> Callable[[np.ndarray], Tensor]:
    """Indices (B,) -> (B, E), of pictures."""

    def encode(chosen: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(images[chosen]).to(clip.mean.device).permute(0, 3, 1, 2) / 255
        return cast(Any, clip.network).encode_image(clip.preprocess(pixels))

    return encode


def _cells_encoder(
    clip: ClipModel, images: np.ndarray, rng: np.random.Generator
) -> Callable[[np.ndarray], Tensor]:
    """The same with a backbone, which looks at each picture once, now."""
    tower, device = cast(BackboneTower, clip.network.visual), clip.mean.device
    parts = []
    with torch.no_grad(), progress_bar(len(images), "CLIP: pictures", "image") as bar:
        for start in range(0, len(images), IMAGES_AT_ONCE):
            part = torch.from_numpy(images[start : start + IMAGES_AT_ONCE]).to(device)
            pixels = clip.preprocess(part.permute(0, 3, 1, 2) / 255)
            parts.append(tower.cells(pixels).half().cpu())
            bar.update(len(part))
    cells = torch.cat(parts)  # (M, C, c, c)

    def encode(chosen: np.ndarray) -> Tensor:
        seen = cells[torch.from_numpy(chosen)].to(device).float()
        return tower.head(seen.flip(3) if rng.random() < 0.5 else seen)

    return encode


def _similarities(network: Any, images: Tensor, tokens: Tensor) -> Tensor:
    """Vectors of pictures (B, E) and token ids (B, T) -> (B, B) scaled cosines."""
    images = F.normalize(images, dim=-1)
    texts = network.encode_text(tokens, normalize=True)
    return network.logit_scale.exp() * images @ texts.T


def _step(network: Any, optimizer: torch.optim.Optimizer, loss: Tensor, step: int) -> None:
    if not torch.isfinite(loss):
        raise UserError(f"CLIP: the loss is {loss.item()} at step {step}; lower clip.lr")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        network.logit_scale.clamp_(0, MAX_SCALE)
