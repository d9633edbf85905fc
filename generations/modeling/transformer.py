"""The unified transformer: one LXMERT-shaped network that reads and writes images and text.

Shape legend: B batch, S text tokens (up to T = text_length + 1), N = G * G visual tokens,
H hidden size, D grid feature size, V text vocabulary, K clusters, P chosen positions.
Which text positions see which is told by masks; generations.modeling.visibility makes them.

Parameter names are those of the released checkpoints (and of X-LXMERT and transformers' LXMERT),
which is why some modules are called `self`, `att` or `visn_fc`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from generations.errors import UserError
from generations.modeling.dropout import Dropout, attention
from generations.modeling.linear import Linear, linear

HIDDEN_KEY = -10000.0  # additive score of a hidden text key; its attention weight underflows to 0
POSITIONS, TOKEN_TYPES, BOX_SIZE, NORM_EPS = 512, 2, 4, 1e-12
KeyValues = tuple[Tensor, Tensor]  # keys and values, each (B, heads, C, H / heads)


@dataclass(frozen=True)
class ModelSize:
    """Sizes of the network and of its initial weights.

    Defaults: LXMERT-base with the codebook of the paper. `init_std` is the standard deviation of
    weights, `mask_feat_std` that of the vector that stands for a masked cell. The paper's zero
    suits a start from a pretrained model: from random weights, the LayerNorm of an all but zero
    vector makes the gradients of the first steps a thousand times too large.
    """

    hidden_size: int = 768
    num_heads: int = 12
    intermediate_size: int = 3072
    language_layers: int = 9
    visual_layers: int = 5
    cross_layers: int = 5
    vocab_size: int = 30522
    dropout: float = 0.1
    grid_size: int = 8
    feature_size: int = 2048
    clusters: int = 10000
    init_std: float = 0.02
    mask_feat_std: float = 0.0


class UnifiedTransformer(nn.Module):
    """Visual and language streams, cross-modality layers, and one head for each direction.

    `forward` is the whole network (the paper's Figure 2). The methods beneath it let a caller pay
    only for what it reads: `encode_vision`, `encode_text`, `fuse`, `text_logits`, `image_logits`.

    Args:
        size: the sizes.
        zeroshot: see every text token that is not PAD, whatever `text_mask` says (X-LXMERT's
            captioning without fine-tuning).
        causal: captions are written and learned the causal way (SPEC 13), not the paper's.

    Attributes:
        recompute_layers: keep of a layer what goes in alone, and run it again in the backward pass.

    Source: paper sections 3.1 and 3.2, SPEC 2.
    """

    def __init__(self, size: ModelSize, zeroshot: bool = False, causal: bool = False):
        super().__init__()
        self.size = size
        self.zeroshot = zeroshot
        self.causal = causal
        self.recompute_layers = False
        self.mask_feat = nn.Parameter(torch.zeros(size.feature_size))
        self.embedding_layer = TextEmbedding(size)
        self.encoder = Encoder(size)
        self.pooler = Pooler(size)
        self.classifier = TextHeads(size, self.embedding_layer.word_embeddings.weight)
        self.img_classifier = ImageHead(size)
        self.cluster_codebook = nn.Embedding(size.clusters, size.feature_size)
        self.cluster_codebook.weight.requires_grad_(False)
        self.register_buffer("boxes", grid_boxes(size.grid_size), persistent=False)
        self.apply(lambda module: _initialise(module, size.init_std))
        if size.mask_feat_std:
            nn.init.normal_(self.mask_feat, std=size.mask_feat_std)

    def forward(
        self,
        text_ids: Tensor,
        text_mask: Tensor,
        features: Tensor | None = None,
        cluster_ids: Tensor | None = None,
        visual_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both heads at every position of [vision; text].

        Args:
            text_ids: (B, S) token ids.
            text_mask: (B, S), 1 where a token is visible as a key.
            features: (B, N, D) dense grid features; or
            cluster_ids: (B, N) ids that are looked up in the codebook.
            visual_mask: (B, N), 1 where the visual token is replaced by `mask_feat`.

        Returns:
            text logits (B, N+S, V) and image logits (B, N+S, K).
        """
        vision = self.encode_vision(features, cluster_ids, visual_mask)  # (B, N, H)
        seen = self.visible(text_ids, text_mask)
        text = self.encode_text(text_ids, seen)  # (B, S, H)
        vision, text = self.fuse(vision, text, seen)
        states = torch.cat([vision, text], 1)  # (B, N+S, H)
        return self.text_logits(states), self.image_logits(states)

    def visible(self, text_ids: Tensor, text_mask: Tensor | None) -> Tensor | None:
        """The text mask that attention uses: `text_mask`, or ids > 0 in the zero-shot setting."""
        return text_ids > 0 if self.zeroshot else text_mask

    def encode_vision(
        self,
        features: Tensor | None = None,
        cluster_ids: Tensor | None = None,
        visual_mask: Tensor | None = None,
    ) -> Tensor:
        """The visual stream after its own layers: (B, N, H). It does not depend on the text."""
        if (features is None) == (cluster_ids is None):
            raise ValueError("pass either dense features or cluster ids, not both or neither")
        content = self.cluster_codebook(cluster_ids) if features is None else features  # (B, N, D)
        if visual_mask is not None:
            # BEFORE the embedding: a masked token keeps its box and loses its content
            content = torch.where(visual_mask[..., None] > 0, self.mask_feat, content)
        states = self.encoder.visn_fc(content, self.boxes)  # (B, N, H)
        for layer in self.encoder.r_layers:
            states = self._through(layer, states)
        return states

    def encode_text(
        self, text_ids: Tensor, text_mask: Tensor | None, positions: Tensor | None = None
    ) -> Tensor:
        """The language stream after its own layers: (B, S, H). It does not depend on the image.

        Args:
            text_ids: (B, S); S may be shorter than T when the rest is hidden anyway.
            text_mask: (B, S), 1 for visible keys, or (1, S, S), a row for each position that
                looks; None: all are visible.
            positions: (S,) of the tokens in their captions; None: one after the other.
        """
        states = self.embedding_layer(text_ids, positions)
        bias = key_bias(text_mask, states)
        for layer in self.encoder.layer:
            states = self._through(layer, states, bias)
        return states

    def fuse(
        self,
        vision: Tensor,
        text: Tensor,
        text_mask: Tensor | None,
        read: Literal["both", "vision", "text"] = "both",
        text_positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The cross-modality layers.

        Args:
            vision: (B, N, H) from `encode_vision`.
            text: (B, S, H) from `encode_text`; with a mask that has rows, (B * C, S, H): the C
                captions of each image one after the other.
            text_mask: as of `encode_text`. With rows the image sees the first position alone.
            read: the stream the caller reads; the last layer computes only that one.
            text_positions: (B, P), with read "text": the positions that are read; (P,) for all
                captions where the mask has rows.

        Returns:
            vision (B, N, H) and text (B or B * C, S or P, H). A stream that is not read comes back
            as it entered the last layer.
        """
        bias = key_bias(text_mask, text)
        by_row = text_mask is not None and text_mask.ndim == 3
        to_image = None if by_row else bias

        def shown(text: Tensor) -> Tensor:
            # the first position, [CLS], is the same in all captions of an image
            return text[:: len(text) // len(vision), :1] if by_row else text

        *layers, last = cast(list[CrossLayer], list(self.encoder.x_layers))
        for layer in layers:
            seen = self._through(layer.see, vision, shown(text), to_image)
            vision, text = seen, self._through(layer.tell, vision, text, bias)
        seen = told = None
        if read != "text":
            seen = self._through(last.see, vision, shown(text), to_image)
        if read != "vision":
            told = self._through(last.tell, vision, text, bias, text_positions)
        return vision if seen is None else seen, text if told is None else told

    def _through(self, layer: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """A layer's, or half a cross layer's, output."""
        if self.recompute_layers and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(layer, *inputs, use_reentrant=False))
        return layer(*inputs)

    def text_logits(self, states: Tensor) -> Tensor:
        """Text head: (..., H) -> (..., V)."""
        return self.classifier.predictions(states)

    def image_logits(self, states: Tensor) -> Tensor:
        """Image head: (..., H) -> (..., K), in float32."""
        return self.img_classifier(states)


class TextEmbedding(nn.Module):
    """Word + position + token type 0, LayerNorm, dropout: (B, S) -> (B, S, H)."""

    def __init__(self, size: ModelSize):
        super().__init__()
        # padding_idx 0 in all three tables: their row 0 gets no gradient (SPEC 2)
        self.word_embeddings = nn.Embedding(size.vocab_size, size.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(POSITIONS, size.hidden_size, padding_idx=0)
        self.token_type_embeddings = nn.Embedding(TOKEN_TYPES, size.hidden_size, padding_idx=0)
        self.LayerNorm = nn.LayerNorm(size.hidden_size, NORM_EPS)
        self.dropout = Dropout(size.dropout)

    def forward(self, text_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        if positions is None:
            positions = torch.arange(text_ids.shape[1], device=text_ids.device)
        places = self.position_embeddings(positions)  # (S, H), the same for every caption
        places = places + self.token_type_embeddings(torch.zeros_like(positions))
        return self.dropout(self.LayerNorm(self.word_embeddings(text_ids) + places))


class Encoder(nn.Module):
    """The layers of both streams and of their crossing; `UnifiedTransformer` runs them."""

    def __init__(self, size: ModelSize):
        super().__init__()
        self.visn_fc = VisualEmbedding(size)
        self.layer = nn.ModuleList(Layer(size) for _ in range(size.language_layers))
        self.x_layers = nn.ModuleList(CrossLayer(size) for _ in range(size.cross_layers))
        self.r_layers = nn.ModuleList(Layer(size) for _ in range(size.visual_layers))


class VisualEmbedding(nn.Module):
    """Mean of the embedded feature and the embedded box: (B, N, D), (N, 4) -> (B, N, H)."""

    def __init__(self, size: ModelSize):
        super().__init__()
        self.visn_fc = Linear(size.feature_size, size.hidden_size)
        self.visn_layer_norm = nn.LayerNorm(size.hidden_size, NORM_EPS)
        self.box_fc = Linear(BOX_SIZE, size.hidden_size)
        self.box_layer_norm = nn.LayerNorm(size.hidden_size, NORM_EPS)
        self.dropout = Dropout(size.dropout)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        content = self.visn_layer_norm(self.visn_fc(features))  # (B, N, H)
        place = self.box_layer_norm(self.box_fc(boxes))  # (N, H), the same for every image
        return self.dropout((content + place) / 2)


class Layer(nn.Module):
    """Self-attention and feed-forward, post-norm: (B, S, H) -> (B, S, H)."""

    def __init__(self, size: ModelSize):
        super().__init__()
        self.attention = Attention(size, "self")
        self.intermediate = Widen(size)
        self.output = AddNorm(size, size.intermediate_size)

    def forward(
        self, states: Tensor, bias: Tensor | None = None, past: "Past | None" = None
    ) -> Tensor:
        states = self.attention(states, states, bias, past)
        return self.output(self.intermediate(states), states)


class CrossLayer(nn.Module):
    """One cross-modality layer.

    Both directions of cross-attention share `visual_attention` and read the layer's inputs, so
    each stream can be computed without the other.
    """

    def __init__(self, size: ModelSize):
        super().__init__()
        self.visual_attention = Attention(size, "att")
        self.lang_self_att = Attention(size, "self")
        self.visn_self_att = Attention(size, "self")
        self.lang_inter = Widen(size)
        self.lang_output = AddNorm(size, size.intermediate_size)
        self.visn_inter = Widen(size)
        self.visn_output = AddNorm(size, size.intermediate_size)

    def see(self, vision: Tensor, text: Tensor, bias: Tensor | None = None) -> Tensor:
        """The visual stream's next states, (B, N, H)."""
        vision = self.visual_attention(vision, text, bias)
        vision = self.visn_self_att(vision, vision)
        return self.visn_output(self.visn_inter(vision), vision)

    def tell(
        self,
        vision: Tensor | KeyValues,
        text: Tensor,
        bias: Tensor | None = None,
        positions: Tensor | None = None,
        past: "Past | None" = None,
    ) -> Tensor:
        """The language stream's next states, (B, S, H), or (B, P, H) at `positions`.

        Of (B * C, S, H), the captions of an image one after the other, it makes as many.
        """
        if isinstance(vision, Tensor) and len(text) > len(vision):
            together = text.unflatten(0, (len(vision), -1)).flatten(1, 2)  # (B, C * S, H)
            text = self.visual_attention(together, vision).reshape(text.shape)
        else:
            text = self.visual_attention(text, vision)
        asking = text
        if positions is not None and positions.ndim == 1:
            asking = text[:, positions]
            bias = None if bias is None else bias[..., positions, :]
        elif positions is not None:
            asking = text.gather(1, positions[..., None].expand(-1, -1, text.shape[-1]))
        text = self.lang_self_att(asking, text, bias, past)
        return self.lang_output(self.lang_inter(text), text)


class Attention(nn.Module):
    """Multi-head attention with output projection, residual and LayerNorm.

    The projections live in a child called "self" or "att", as in the released names.
    """

    def __init__(self, size: ModelSize, child: str):
        super().__init__()
        self.add_module(child, Projections(size))
        self.output = AddNorm(size, size.hidden_size)
        self.child = child

    @property
    def projections(self) -> "Projections":
        """Query, key and value."""
        return cast(Projections, self.get_submodule(self.child))

    def forward(
        self,
        states: Tensor,
        context: Tensor | KeyValues,
        bias: Tensor | None = None,
        past: "Past | None" = None,
    ) -> Tensor:
        return self.output(self.projections(states, context, bias, past), states)


class Past(NamedTuple):
    """The text so far: keys and values (B, heads, T, H / heads), and the slots of what comes now.

    What comes is written there, (Q,) slots for Q states, and all T slots are attended to.
    """

    keys: Tensor
    values: Tensor
    slots: Tensor


class Projections(nn.Module):
    """Scaled dot-product attention: states (B, Q, H) over context -> (B, Q, H).

    The context is states (B, C, H), or what `keys_values` made of them.
    """

    def __init__(self, size: ModelSize):
        super().__init__()
        self.heads = size.num_heads
        self.dropout = size.dropout
        self.query = Linear(size.hidden_size, size.hidden_size)
        self.key = Linear(size.hidden_size, size.hidden_size)
        self.value = Linear(size.hidden_size, size.hidden_size)

    def forward(
        self,
        states: Tensor,
        context: Tensor | KeyValues,
        bias: Tensor | None,
        past: Past | None = None,
    ) -> Tensor:
        shared = narrowed(states)
        if isinstance(context, tuple):
            keys, values = context
        else:
            keys, values = self.keys_values(shared if context is states else context)
        if past is not None:
            keys = past.keys.index_copy_(2, past.slots, keys)
            values = past.values.index_copy_(2, past.slots, values)
        attended = attention(
            self._split(self.query(shared)),  # (B, heads, Q, H / heads)
            keys,
            values,
            bias,  # (B, 1, 1, C), or (1, 1, Q, C)
            self.dropout if self.training else 0.0,
        )
        return attended.transpose(1, 2).flatten(2)  # (B, Q, H)

    def keys_values(self, context: Tensor) -> KeyValues:
        """Keys and values (B, heads, C, H / heads) of a context (B, C, H)."""
        context = narrowed(context)
        return self._split(self.key(context)), self._split(self.value(context))

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class AddNorm(nn.Module):
    """Projection to H, dropout, residual, LayerNorm."""

    def __init__(self, size: ModelSize, width: int):
        super().__init__()
        self.dense = Linear(width, size.hidden_size)
        self.LayerNorm = nn.LayerNorm(size.hidden_size, NORM_EPS)
        self.dropout = Dropout(size.dropout)

    def forward(self, states: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(states)) + residual)


class Widen(nn.Module):
    """First half of the feed-forward: exact GELU of a projection to the intermediate size."""

    def __init__(self, size: ModelSize):
        super().__init__()
        self.dense = Linear(size.hidden_size, size.intermediate_size)

    def forward(self, states: Tensor) -> Tensor:
        return F.gelu(self.dense(states))


class Transform(nn.Module):
    """H -> H, GELU, LayerNorm: the first part of either head."""

    def __init__(self, size: ModelSize):
        super().__init__()
        self.dense = Linear(size.hidden_size, size.hidden_size)
        self.LayerNorm = nn.LayerNorm(size.hidden_size, NORM_EPS)

    def forward(self, states: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(states)))


class Pooler(nn.Module):
    """LXMERT's pooler: kept for the checkpoint, read by no loss."""

    def __init__(self, size: ModelSize):
        super().__init__()
        self.dense = Linear(size.hidden_size, size.hidden_size)


class TextHeads(nn.Module):
    """The word predictions, and LXMERT's matching head (kept for the checkpoint, never read)."""

    def __init__(self, size: ModelSize, word_embeddings: Tensor):
        super().__init__()
        self.predictions = TextHead(size, word_embeddings)
        self.seq_relationship = Linear(size.hidden_size, 2)


class TextHead(nn.Module):
    """Transform, then a decoder tied to the word embeddings, plus a bias: (..., H) -> (..., V)."""

    def __init__(self, size: ModelSize, word_embeddings: Tensor):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size.vocab_size))
        self.transform = Transform(size)
        # on "meta": the tied weight replaces this one, so it is never filled
        self.decoder = Linear(size.hidden_size, size.vocab_size, bias=False, device="meta")
        assert isinstance(word_embeddings, nn.Parameter)
        self.decoder.weight = word_embeddings

    def forward(self, states: Tensor) -> Tensor:
        return linear(self.transform(states), self.decoder.weight, self.bias, self.decoder.library)


class ImageHead(nn.Module):
    """Transform, H -> D, then D -> K with weights of its own: (..., H) -> (..., K) float32."""

    def __init__(self, size: ModelSize):
        super().__init__()
        self.transform = Transform(size)
        self.linear_feat = Linear(size.hidden_size, size.feature_size)
        self.out_cluster = Linear(size.feature_size, size.clusters)

    def forward(self, states: Tensor) -> Tensor:
        return self.out_cluster(self.linear_feat(self.transform(states))).float()


def narrowed(states: Tensor) -> Tensor:
    """States in the type that autocast computes in; it would convert them for each product anew."""
    device = states.device.type
    if states.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return states
    return states.to(torch.get_autocast_dtype(device))


def key_bias(mask: Tensor | None, states: Tensor) -> Tensor | None:
    """Additive attention bias of a mask that is 1 for visible keys, in the type of the scores.

    (B, S) -> (B, 1, 1, S); with a row for each position that looks, (1, Q, S) -> (1, 1, Q, S).
    """
    if mask is None:
        return None
    bias = narrowed(torch.zeros(mask.shape, dtype=states.dtype, device=mask.device))
    bias.masked_fill_(mask == 0, HIDDEN_KEY)
    return bias[:, None] if mask.ndim == 3 else bias[:, None, None]


def grid_boxes(grid_size: int) -> Tensor:
    """Boxes (x1, y1, x2, y2) in [0, 1] of the cells, row by row: (N, 4). Source: SPEC 2."""
    row, column = torch.meshgrid(torch.arange(grid_size), torch.arange(grid_size), indexing="ij")
    corners = torch.stack([column, row, column + 1, row + 1], -1).flatten(0, 1)
    return corners.float() / grid_size


def _initialise(module: nn.Module, std: float) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def set_codebook(model: UnifiedTransformer, centroids: np.ndarray | Tensor) -> None:
    """Copy the k-means centroids (K, D) into the frozen codebook.

    Raises:
        UserError: the shape is not the model's.
    """
    weight = model.cluster_codebook.weight
    if tuple(centroids.shape) != tuple(weight.shape):
        raise UserError(
            f"centroids have the shape {tuple(centroids.shape)}, but the model needs "
            f"{tuple(weight.shape)}: set grid_cluster_num and grid_feat_dim to match the codebook, "
            "or make it again with `python generations/prepare.py clusters`"
        )
    with torch.no_grad():
        weight.copy_(torch.as_tensor(np.asarray(centroids)))
