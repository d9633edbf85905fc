"""CIDEr-D rewards: what they prefer, and odd input."""

import numpy as np
import pytest
import torch

from generations.errors import UserError
from generations.rewards import (
    DocumentFrequency,
    build_document_frequency,
    cider_d,
    self_critical_reward,
)
from generations.vocabulary import CLS, EOS, PAD

DOG = [CLS, 11, 12, 13, 14, EOS]
CAT = [CLS, 21, 22, 23, 24, EOS]
BUS = [CLS, 31, 32, 33, 34, EOS]
REFERENCES = [[DOG, [CLS, 11, 12, 15, EOS]], [CAT], [BUS]]


def test_own_reference_beats_another_images():
    right = cider_d([DOG, CAT, BUS], REFERENCES)
    wrong = cider_d([CAT, BUS, DOG], REFERENCES)
    assert torch.all(right > 1) and torch.all(wrong < 0.1)
    np.testing.assert_allclose(right[1:], 10)  # a perfect copy of an only reference


def test_ending_the_sentence_is_rewarded():
    """The end-of-sentence token takes part in the n-grams."""
    with_end, without = cider_d([DOG, DOG[:-1]], [[DOG], [DOG]], [0, 1], _table())
    assert with_end > without > 0


def test_ids_after_the_end_do_not_count():
    tail = [*DOG, 21, 22, PAD]
    assert torch.equal(cider_d([tail, CAT, BUS], REFERENCES), cider_d([DOG, CAT, BUS], REFERENCES))


def test_all_pad_and_empty_samples_score_zero():
    scores = cider_d([[PAD] * 5, [], BUS], REFERENCES)
    assert scores[:2].tolist() == [0, 0] and scores[2] == pytest.approx(10)
    assert cider_d(torch.zeros(3, 6, dtype=torch.long), REFERENCES).tolist() == [0, 0, 0]
    assert cider_d([], []).shape == (0,)


def test_image_without_references_scores_zero():
    assert cider_d([DOG, CAT, BUS], [[], [CAT], [BUS]]).tolist()[0] == 0
    nothing = torch.full((3, 2, 4), PAD)
    assert cider_d([DOG, CAT, BUS], nothing).tolist() == [0, 0, 0]


def test_images_with_fewer_captions_than_others_are_scored_on_theirs():
    padded = torch.full((3, 5, 6), PAD)
    for image, own in enumerate(REFERENCES):
        for row, caption in enumerate(own):
            padded[image, row, : len(caption)] = torch.tensor(caption)
    hypotheses = [[CLS, 11, 12, 13, 22, EOS], CAT, DOG]
    np.testing.assert_allclose(cider_d(hypotheses, padded), cider_d(hypotheses, REFERENCES))


def test_samples_of_one_image_side_by_side():
    """With `image_of`, two samples an image score as in two copies of the references."""
    scores = cider_d([DOG, CAT, CAT, DOG, BUS, DOG], REFERENCES, [0, 0, 1, 1, 2, 2])
    turned = cider_d([DOG, CAT, BUS, CAT, DOG, DOG], REFERENCES)
    np.testing.assert_allclose(scores, turned[[0, 3, 1, 4, 2, 5]])


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="not a multiple"):
        cider_d([DOG, CAT], REFERENCES)
    with pytest.raises(ValueError, match="image_of"):
        cider_d([DOG, CAT], REFERENCES, [0, 3])
    with pytest.raises(ValueError, match="baselines"):
        self_critical_reward([DOG], [CAT, BUS], REFERENCES)


def _table() -> DocumentFrequency:
    return build_document_frequency([*REFERENCES, [[CLS, 41, 42, EOS]]])


def test_table_survives_the_file(tmp_path):
    table = _table()
    table.save(tmp_path / "df.npz")
    loaded = DocumentFrequency.load(tmp_path / "df.npz")
    assert loaded.documents == 4
    scores = [
        cider_d([DOG, BUS, CAT], REFERENCES, None, frequency) for frequency in (table, loaded)
    ]
    assert torch.equal(*scores)
    # CLS is in all four documents: it weighs nothing; 11 is in one
    assert table.counts[0][table.keys[0] == CLS] == 4
    assert table.counts[0][table.keys[0] == 11] == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"no table"])
def test_broken_table_is_named(tmp_path, content):
    path = tmp_path / "df.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"df\.npz"):
        DocumentFrequency.load(path)
    with pytest.raises(UserError, match=r"absent\.npz"):
        DocumentFrequency.load(tmp_path / "absent.npz")
    np.savez(path.with_name("other.npz"), a=np.zeros(2))
    with pytest.raises(UserError, match=r"other\.npz"):
        DocumentFrequency.load(path.with_name("other.npz"))
