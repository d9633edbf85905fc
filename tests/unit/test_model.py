"""The cheap paths through the network give what the whole forward gives."""

import dataclasses

import pytest
import torch

from generations.errors import UserError
from generations.modeling import ModelSize, UnifiedTransformer, set_codebook

SIZE = ModelSize(16, 2, 24, 2, 1, 2, 1100, 0.0, grid_size=3, feature_size=10, clusters=7)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = UnifiedTransformer(SIZE).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    text_ids = torch.randint(1, 1100, (4, 6), generator=generator)
    text_mask = (torch.arange(6) <= torch.tensor([5, 0, 2, 3])[:, None]).long()
    return text_ids, text_mask, torch.randn(4, 9, 10, generator=generator)


def test_reading_one_stream_equals_reading_both(model, inputs):
    text_ids, text_mask, features = inputs
    text_logits, image_logits = model(text_ids, text_mask, features=features)
    vision = model.encode_vision(features)
    text = model.encode_text(text_ids, text_mask)
    seen, _ = model.fuse(vision, text, text_mask, read="vision")
    torch.testing.assert_close(model.image_logits(seen), image_logits[:, :9])
    _, told = model.fuse(vision, text, text_mask, read="text")
    torch.testing.assert_close(model.text_logits(told), text_logits[:, 9:])
    positions = torch.tensor([[5, 1], [0, 0], [2, 1], [3, 0]])
    _, told = model.fuse(vision, text, text_mask, read="text", text_positions=positions)
    expected = text_logits[:, 9:].gather(1, positions[..., None].expand(-1, -1, 1100))
    torch.testing.assert_close(model.text_logits(told), expected)


def test_hidden_positions_may_be_left_out(model, inputs):
    text_ids, _, features = inputs
    vision = model.encode_vision(features)
    mask = (torch.arange(6) <= 2).expand(4, -1)
    _, whole = model.fuse(vision, model.encode_text(text_ids, mask), mask)
    _, short = model.fuse(vision, model.encode_text(text_ids[:, :3], None), None)
    torch.testing.assert_close(whole[:, :3], short)


def test_masked_cells_do_not_show_their_content(model, inputs):
    _, _, features = inputs
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[:, 4] = True
    other = features.clone()
    other[:, 4] += 100
    one, two = model.encode_vision(features, visual_mask=mask), model.encode_vision(other)
    assert not torch.allclose(one, two)
    torch.testing.assert_close(one, model.encode_vision(other, visual_mask=mask))


def test_row_0_of_the_tables_gets_no_gradient_through_the_embedding(model, inputs):
    text_ids, text_mask, features = inputs
    text_ids[:, 3] = 0
    model(text_ids, text_mask, features=features)[1].sum().backward()
    tables = model.embedding_layer
    for table in (tables.position_embeddings, tables.token_type_embeddings, tables.word_embeddings):
        assert table.weight.grad is not None
        assert not table.weight.grad[0].any()
    assert tables.position_embeddings.weight.grad[1].any()


def test_a_codebook_of_another_size_is_refused(model):
    with pytest.raises(UserError, match="grid_cluster_num"):
        set_codebook(model, torch.zeros(8, 10))


def test_mask_feat_starts_at_zero_unless_told_otherwise():
    assert not UnifiedTransformer(SIZE).mask_feat.any()
    wide = dataclasses.replace(SIZE, feature_size=4000, mask_feat_std=0.5, init_std=0.1)
    model = UnifiedTransformer(wide)
    assert model.mask_feat.std().item() == pytest.approx(0.5, rel=0.1)
    weight = model.img_classifier.linear_feat.weight
    assert weight.std().item() == pytest.approx(0.1, rel=0.1)
