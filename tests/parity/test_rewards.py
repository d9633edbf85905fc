"""CIDEr-D equals the original's rewards and pycocoevalcap's scorer."""

import goldens
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider

from generations.rewards import build_document_frequency, cider_d, self_critical_reward
from generations.vocabulary import EOS, PAD

GOLD = goldens.arrays("e_scst")


def words(ids: list[int]) -> str:
    """What the original scores: ids up to and with the first EOS, as a string."""
    return " ".join(map(str, ids[: ids.index(EOS) + 1] if EOS in ids else ids))


def oracle(hypotheses: list[list[int]], references: list[list[list[int]]]) -> np.ndarray:
    """pycocoevalcap's scores of hypothesis i against references[i]."""
    gts = {i: [words(row) for row in rows] for i, rows in enumerate(references)}
    res = {i: [words(row)] for i, row in enumerate(hypotheses)}
    return np.asarray(Cider().compute_score(gts, res)[1])


def test_scores_and_reward_equal_the_originals():
    both = np.concatenate([GOLD["sample_ids"], GOLD["greedy_ids"]])
    scores = cider_d(torch.from_numpy(both), torch.from_numpy(GOLD["gt_ids"]))
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores, GOLD["cider_scores"], rtol=1e-12)
    reward = self_critical_reward(
        torch.from_numpy(GOLD["sample_ids"]),
        torch.from_numpy(GOLD["greedy_ids"]),
        torch.from_numpy(GOLD["gt_ids"]),
    )
    np.testing.assert_allclose(reward, GOLD["reward"][:, 0], rtol=1e-12)


def test_lists_of_ids_score_as_padded_tensors_do():
    references = [[[i for i in row if i > 0] for row in rows] for rows in GOLD["gt_ids"].tolist()]
    reward = self_critical_reward(
        GOLD["sample_ids"].tolist(), GOLD["greedy_ids"].tolist(), references
    )
    np.testing.assert_allclose(reward, GOLD["reward"][:, 0], rtol=1e-12)


# few words, so that n-grams meet; EOS anywhere or nowhere, PAD inside
caption = st.lists(st.sampled_from([101, PAD, 7, 8, 9, 70000, EOS]), max_size=9)
reference = st.lists(st.sampled_from([101, 7, 8, 9, 70000, EOS]), min_size=1, max_size=9)
image = st.tuples(caption, caption, st.lists(reference, min_size=1, max_size=5))


@settings(max_examples=150, deadline=None)
@given(st.lists(image, min_size=1, max_size=5))
def test_equals_pycocoevalcap(images):
    samples, greedy, references = zip(*images, strict=True)
    expected = oracle([*samples, *greedy], [*references, *references])
    padded = np.full((len(images), 6, 11), PAD)  # one row more than any image has, all PAD
    for at, rows in enumerate(references):
        for place, row in enumerate(rows):
            padded[at, place, : len(row)] = row
    both = [*samples, *greedy]
    np.testing.assert_allclose(cider_d(both, list(references)), expected, atol=1e-9)
    np.testing.assert_allclose(cider_d(both, torch.from_numpy(padded)), expected, atol=1e-9)
    reward = self_critical_reward(list(samples), list(greedy), padded)
    np.testing.assert_allclose(reward, expected[: len(images)] - expected[len(images) :], atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(image, min_size=1, max_size=5))
def test_corpus_table_of_the_scored_references_changes_nothing(images):
    samples, _, references = zip(*images, strict=True)
    table = build_document_frequency(list(references))
    assert table.documents == len(images)
    np.testing.assert_allclose(
        cider_d(list(samples), list(references), document_frequency=table),
        oracle(list(samples), list(references)),
        atol=1e-9,
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(image, min_size=1, max_size=4), st.lists(image, min_size=1, max_size=4))
def test_corpus_table_weighs_by_the_corpus(corpus, images):
    """Scoring a batch with the table of corpus + batch equals its rows of one big batch."""
    everything = [references for _, _, references in [*corpus, *images]]
    samples = [sample for sample, _, _ in [*corpus, *images]]
    own = slice(len(corpus), None)
    np.testing.assert_allclose(
        cider_d(
            samples[own],
            everything[own],
            document_frequency=build_document_frequency(everything),
        ),
        oracle(samples, everything)[own],
        atol=1e-9,
    )
