"""transformers' LXMERT as the oracle of the network: same weights, same outputs."""

import pytest
import torch
from transformers import LxmertConfig, LxmertModel

from generations.modeling import ModelSize, UnifiedTransformer

SIZE = ModelSize(
    hidden_size=24,
    num_heads=3,
    intermediate_size=40,
    language_layers=2,
    visual_layers=1,
    cross_layers=2,
    vocab_size=1100,
    dropout=0.0,
    grid_size=3,
    feature_size=10,
    clusters=7,
)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    ours = UnifiedTransformer(SIZE).eval()
    for parameter in ours.parameters():
        # larger than the initial weights, so that a wrong wiring shows
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = LxmertModel(
        LxmertConfig(
            vocab_size=SIZE.vocab_size,
            hidden_size=SIZE.hidden_size,
            num_attention_heads=SIZE.num_heads,
            intermediate_size=SIZE.intermediate_size,
            l_layers=SIZE.language_layers,
            r_layers=SIZE.visual_layers,
            x_layers=SIZE.cross_layers,
            visual_feat_dim=SIZE.feature_size,
            visual_pos_dim=4,
        )
    ).eval()
    names = {
        name.replace("embedding_layer.", "embeddings."): value
        for name, value in ours.state_dict().items()
        if name.startswith(("embedding_layer.", "encoder.", "pooler."))
    }
    missing, unexpected = theirs.load_state_dict(names, strict=False)
    assert not unexpected and not missing
    return ours, theirs


@pytest.mark.parametrize("masked", [False, True])
def test_states_equal_those_of_transformers(pair, masked):
    ours, theirs = pair
    generator = torch.Generator().manual_seed(1)
    text_ids = torch.randint(1, 1100, (4, 6), generator=generator)
    text_mask = torch.ones(4, 6)
    if masked:
        text_mask[torch.arange(6) > torch.arange(4)[:, None]] = 0
    features = torch.randn(4, 9, 10, generator=generator)
    with torch.no_grad():
        text = ours.encode_text(text_ids, text_mask)
        vision, text = ours.fuse(ours.encode_vision(features), text, text_mask)
        expected = theirs(
            input_ids=text_ids,
            attention_mask=text_mask,
            visual_feats=features,
            visual_pos=ours.boxes.expand(4, -1, -1),
        )
    torch.testing.assert_close(text, expected.language_output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vision, expected.vision_output, rtol=1e-5, atol=1e-5)
