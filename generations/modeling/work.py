"""How much is computed, by the shapes alone: operations in matrix products, forward and backward.

A multiplication and an addition are two operations. What is computed again in a backward pass
(`activation_checkpointing`) does not count.

Shape legend as in generations.modeling.transformer.
"""

from dataclasses import dataclass

from generations.modeling.transformer import ModelSize


@dataclass(frozen=True)
class Work:
    """Operations of one sample in a forward pass.

    Args:
        size: of the network.
    """

    size: ModelSize

    @property
    def cells(self) -> int:
        """N."""
        return self.size.grid_size**2

    def attention(self, asking: int, context: int) -> int:
        """One attention with its projections."""
        hidden = self.size.hidden_size
        return 4 * hidden * hidden * (asking + context) + 4 * asking * context * hidden

    def feed_forward(self, tokens: int) -> int:
        """Both products of a feed-forward."""
        return 4 * tokens * self.size.hidden_size * self.size.intermediate_size

    def layers(self, count: int, tokens: int) -> int:
        """Layers of one stream."""
        return count * (self.attention(tokens, tokens) + self.feed_forward(tokens))

    def vision(self) -> int:
        """`encode_vision`."""
        embedding = 2 * self.cells * self.size.feature_size * self.size.hidden_size
        return embedding + self.layers(self.size.visual_layers, self.cells)

    def text(self, tokens: int) -> int:
        """`encode_text`."""
        return self.layers(self.size.language_layers, tokens)

    def see(self, tokens: int) -> int:
        """The visual half of a cross layer."""
        cells = self.cells
        own = self.attention(cells, cells) + self.feed_forward(cells)
        return self.attention(cells, tokens) + own

    def tell(self, tokens: int, asking: int) -> int:
        """The textual half of a cross layer, of which some positions are read."""
        own = self.attention(asking, tokens) + self.feed_forward(asking)
        return self.attention(tokens, self.cells) + own

    def text_head(self, positions: int) -> int:
        """`text_logits`."""
        hidden = self.size.hidden_size
        return 2 * positions * hidden * (hidden + self.size.vocab_size)

    def image_head(self, positions: int) -> int:
        """`image_logits`."""
        hidden, feature = self.size.hidden_size, self.size.feature_size
        return 2 * positions * (hidden * (hidden + feature) + feature * self.size.clusters)


def stage1_operations(
    size: ModelSize, text_length: int, causal: bool = False, captions: int = 1
) -> dict[str, float]:
    """Operations of one sample in an iteration of the tasks of stage 1, backward pass included.

    Args:
        size: of the network.
        text_length: L.
        causal: the way of captioning.
        captions: of an image that xe_i2t learns from.

    Returns:
        xe_i2t and xe_t2i -> operations; of xe_t2i with the mean number of masked cells. What stage
        2 computes depends on what it writes, and is left out.
    """
    work = Work(size)
    tokens = text_length + 1
    between = size.cross_layers - 1
    masked = (max(1, int(0.1 * work.cells)) + work.cells) / 2
    image = work.vision() + work.text(tokens)
    image += between * (work.see(tokens) + work.tell(tokens, tokens)) + work.see(tokens)
    head = work.image_head(1) * masked
    predicted, shown = 1, tokens
    words = tokens
    if causal:
        predicted, shown = captions * text_length, 1
        words = 1 + captions * (2 * text_length - 1)
    caption = work.vision() + work.text(words)
    caption += between * (work.see(shown) + work.tell(words, words)) + work.tell(words, predicted)
    caption += work.text_head(predicted)
    # twice as much for gradients, but for those of the features, which nobody wants
    unwanted = 2 * work.cells * size.feature_size * size.hidden_size
    return {"xe_i2t": 3.0 * caption - unwanted, "xe_t2i": 3.0 * (image + head)}
