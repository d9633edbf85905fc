import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from generations.datasets.mini_world import (
    BERT_VOCABULARY,
    CAPTIONS,
    MAX_WORDS,
    WORDS,
    Scene,
    Thing,
    all_words,
    alternatives,
    describe,
    layout,
    make_sample,
    render,
    sample_scene,
    write_vocabulary,
    write_world,
)
from generations.datasets.mini_world.captions import SIZE_WORDS, VERBS
from generations.datasets.mini_world.scenes import COLORS, NOUNS, NUMBERS, SIDED
from generations.errors import UserError
from generations.vocabulary import CLS, EOS, MASK, PAD, SEP, UNKNOWN

SEEDS = st.integers(0, 2**32 - 1)


def draw(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    return scene, render(scene, rng), describe(scene, rng)


def cells(picture):
    pixels = np.asarray(picture, dtype=np.int16)
    return pixels.reshape(8, 8, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(64, -1)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_the_same_seed_gives_the_same_sample(seed):
    scene, picture, captions = draw(seed)
    scene_again, picture_again, captions_again = draw(seed)
    assert (scene, captions) == (scene_again, captions_again)
    assert picture.tobytes() == picture_again.tobytes()


def test_another_seed_or_index_gives_another_sample():
    scenes = [make_sample(seed, "train", index)[0] for seed in (0, 1) for index in range(10)]
    assert len(set(scenes)) == len(scenes)


@given(SEEDS)
@settings(max_examples=200, deadline=None)
def test_captions_keep_the_budget_and_the_vocabulary(seed):
    _, _, captions = draw(seed)
    known = all_words() | {","}
    assert len(captions) == CAPTIONS == len({tuple(caption) for caption in captions})
    for caption in captions:
        assert 5 <= len(caption) <= MAX_WORDS
        assert set(caption) <= known
        assert caption[0] != "," != caption[-1]


@given(SEEDS)
@settings(max_examples=200, deadline=None)
def test_every_caption_names_all_that_the_scene_fixes_and_agrees_in_number(seed):
    scene, _, captions = draw(seed)
    things = [thing for thing in (scene.first, scene.second) if thing is not None]
    forms = [form for verb in VERBS[scene.verb] for form in verb if form]
    for caption in captions:
        text = f" {' '.join(caption)} "
        for thing in things:
            noun = thing.noun if thing.count == 1 else NOUNS[thing.noun]
            numbers = ("a", "one") if thing.count == 1 else (NUMBERS[thing.count - 1],)
            phrases = [
                f" {number} {size} {thing.color} {noun} "
                for number in numbers
                for size in SIZE_WORDS[thing.size]
            ]
            assert sum(phrase in text for phrase in phrases) == 1
        assert sum(word in forms for word in caption) == 1
        singular = scene.first.count == 1
        wrong = {"are"} if singular else {"is"}
        wrong |= {verb[1] if singular else verb[0] for verb in VERBS[scene.verb]}
        assert not wrong & set(caption)


def test_all_words_are_single_tokens_of_the_bert_vocabulary():
    bert = set(BERT_VOCABULARY.read_text(encoding="utf-8").splitlines())
    assert all_words() | {",", "."} <= bert
    # "a" must be right before whatever follows it
    assert not any(word[0] in "aeiou" for words in SIZE_WORDS.values() for word in words)


def structures():
    """Every scene that two given things can be in, and every row of each of them."""
    found = set()
    for seed in range(6000):
        scene = sample_scene(np.random.default_rng(seed))
        for (color, noun), other in itertools.permutations((("red", "cat"), ("blue", "car"))):
            first = Thing(scene.first.count, scene.first.size, color, noun)
            second = scene.second and Thing(1, scene.second.size, *other)
            found.add(Scene("field", scene.verb, first, scene.relation, second))
    return found


def test_scenes_that_differ_look_different():
    """Also from each other's mirror images."""
    scenes = structures()
    assert len(scenes) > 90
    looks = {}
    for scene in scenes:
        sides = (False,) if scene.relation in SIDED else (False, True)
        for arranged in (layout(replace(scene, mirrored=mirrored)) for mirrored in sides):
            look = (frozenset(arranged.things), frozenset(arranged.marks))
            assert looks.setdefault(look, scene) == scene


def test_scenes_without_sides_are_mirrored_half_of_the_time_and_not_told():
    scenes = [sample_scene(np.random.default_rng(seed)) for seed in range(400)]
    assert not any(scene.mirrored for scene in scenes if scene.relation in SIDED)
    others = [scene for scene in scenes if scene.relation not in SIDED]
    assert 0.4 < np.mean([scene.mirrored for scene in others]) < 0.6
    scene = replace(next(scene for scene in others if scene.mirrored), mirrored=False)
    told = [
        describe(replace(scene, mirrored=mirrored), np.random.default_rng(1))
        for mirrored in (False, True)
    ]
    assert told[0] == told[1]


def test_mirror_images_are_of_the_same_split():
    """Else the test split would hold scenes that were trained on."""
    trained = {replace(make_sample(0, "train", i)[0], mirrored=False) for i in range(300)}
    assert not any(
        replace(make_sample(0, "test", i)[0], mirrored=False) in trained for i in range(300)
    )


def test_things_and_signs_never_overlap():
    for scene in structures():
        taken = np.zeros((8, 8), dtype=int)
        for _, (left, top, right, bottom) in layout(scene).things + layout(scene).marks:
            assert 0 <= left < right <= 8
            assert 0 <= top < bottom <= 6
            taken[top:bottom, left:right] += 1
        assert taken.max() == 1


@given(SEEDS)
@settings(max_examples=50, deadline=None)
def test_jitter_stays_within_the_cells_of_a_thing(seed):
    scene, picture, _ = draw(seed)
    free = np.ones((8, 8), dtype=bool)
    for _, (left, top, right, bottom) in layout(scene).things:
        free[top:bottom, left:right] = False
    again = render(scene, np.random.default_rng(seed + 1))
    change = np.abs(cells(picture) - cells(again))
    assert not change[free.reshape(-1)].any()
    assert change.mean() < 4


def test_every_word_that_decides_shows_in_the_picture():
    def pixels(place="field", verb="stand", count=1, size="small", color="red", noun="cat"):
        scene = Scene(place, verb, Thing(count, size, color, noun))
        return render(scene, np.random.default_rng(0)).tobytes()

    assert len({pixels(noun=noun) for noun in NOUNS}) == len(NOUNS)
    assert len({pixels(color=color) for color in COLORS}) == len(COLORS)
    assert len({pixels(count=count) for count in (1, 2, 3, 4)}) == 4
    assert len({pixels(place=place) for place in ("beach", "field", "road", "sea", "snow")}) == 5
    verbs = ("stand", "jump", "sleep", "sing", "fly", "hang")
    assert len({pixels(verb=verb) for verb in verbs}) == len(verbs)
    assert pixels(size="big") != pixels()


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_a_swapped_word_is_wrong_for_the_scene(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    facts = {scene.first.color, NUMBERS[scene.first.count - 1]}
    facts |= {form for verb in VERBS[scene.verb] for form in verb}
    for caption in describe(scene, rng):
        for kind, words in WORDS.items():
            for word in words.intersection(caption):
                others = alternatives(word)
                assert word not in others
                assert set(others) <= words
                if kind in ("number", "verb"):
                    assert word in facts
                    assert not facts & set(others)
                assert others


def test_words_without_a_kind_have_no_alternatives():
    assert alternatives("the") == alternatives(",") == ()
    assert "sits" not in alternatives("stands")
    assert "sleeps" in alternatives("stands")
    assert "sleep" not in alternatives("stands")


def test_no_scene_is_in_two_splits():
    scenes = {
        split: {make_sample(3, split, index)[0] for index in range(200)}
        for split in ("train", "val", "test")
    }
    for one, other in itertools.combinations(scenes.values(), 2):
        assert not one & other


def test_world_has_the_karpathy_layout(tmp_path):
    path = write_world(tmp_path, seed=5, train=4, val=2, test=3)
    world = json.loads(path.read_text())
    assert path == tmp_path / "dataset_mini.json"
    assert world["dataset"] == "mini"
    images = world["images"]
    assert [image["split"] for image in images] == ["train"] * 4 + ["val"] * 2 + ["test"] * 3
    assert images[0]["filename"] == "mini_train_000000000001.png"
    assert images[-1]["filename"] == "mini_test_000000000009.png"
    assert [image["cocoid"] for image in images] == list(range(1, 10))
    for image in images:
        assert int(image["filename"].split("_")[-1].removesuffix(".png")) == image["cocoid"]
        with Image.open(tmp_path / image["filepath"] / image["filename"]) as picture:
            assert (picture.size, picture.mode, picture.format) == ((64, 64), "RGB", "PNG")
        assert len(image["sentences"]) == CAPTIONS
        for sentence in image["sentences"]:
            words = sentence["raw"].removesuffix(".").replace(",", " ,")
            assert words.split() == sentence["tokens"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["dataset_mini.json", "images"]


def test_a_sample_does_not_depend_on_the_sizes(tmp_path):
    write_world(tmp_path / "small", train=1, val=0, test=2)
    write_world(tmp_path / "large", train=3, val=1, test=2)
    small, large = (
        json.loads((tmp_path / name / "dataset_mini.json").read_text())["images"]
        for name in ("small", "large")
    )
    for one, other in ((small[0], large[0]), (small[1], large[4]), (small[2], large[5])):
        assert one["sentences"] == other["sentences"]
        first = tmp_path / "small/images" / one["filename"]
        assert first.read_bytes() == (tmp_path / "large/images" / other["filename"]).read_bytes()


def test_a_bad_size_is_refused_and_leaves_the_earlier_world(tmp_path):
    path = write_world(tmp_path, train=1, val=1, test=1)
    before = path.read_bytes()
    with pytest.raises(UserError, match="test must be 0 or more, not -1"):
        write_world(tmp_path, train=1, val=1, test=-1)
    assert path.read_bytes() == before


def test_vocabulary_keeps_berts_ids_and_adds_the_words(tmp_path):
    path = tmp_path / "vocab.txt"
    count = write_vocabulary(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    bert = BERT_VOCABULARY.read_text(encoding="utf-8").splitlines()
    assert count == len(lines) == len(set(lines))
    assert lines[:1996] == bert[:1996]
    special = {PAD: "[PAD]", UNKNOWN: "[UNK]", CLS: "[CLS]", SEP: "[SEP]", MASK: "[MASK]"}
    assert {index: lines[index] for index in special} == special
    assert lines[EOS] == "."
    assert lines[1996:2032] == [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    assert lines[2032:] == sorted(lines[2032:])
    assert all_words() <= set(lines)
    assert 2100 <= count <= 2200
