"""Hard captions: one word swapped for another of its kind."""

from hypothesis import given
from hypothesis import strategies as st

from generations.datasets.word_swaps import KINDS, find_words, hard_sets, swapped_captions
from generations.metrics.diversity import diversity

CAPTIONS = [
    "a man rides a red bus.",
    "a man is riding an orange elephant near a building.",
    "two women are walking on the beach with three dogs.",
    "the dogs , standing on a blue bus , see a man.",
    "two elephants standing near the building.",
    "a picture of three women walking.",
    "an elephant on the beach.",
]
WORDS = find_words(CAPTIONS)
SOME = ["a", "the", "red", "blue", "two", "man", "bus", "dogs", "women", "walking", "standing", ","]


def test_words_of_a_dataset_fall_into_their_kinds():
    found = {key: set(words) for key, words in WORDS.classes.items()}
    assert found["color", ""] == {"red", "orange", "blue"}
    assert found["number", ""] == {"two", "three"}
    assert found["verb", "ing"] == {"walking", "standing"}  # riding was seen once, building is none
    assert found["noun", "singular"] == {"man", "bus", "elephant", "building", "beach"}
    assert found["noun", "plural"] == {"dogs", "women"}


def test_the_article_follows_the_word():
    swapped = swapped_captions("An elephant by a man.", (), WORDS, "noun", 3)
    assert swapped
    for text in swapped:
        first, noun = text.split()[:2]
        if text.endswith("a man."):
            assert (first == "An") == (noun[0] in "aeiou"), text
        else:
            assert text.startswith("An elephant by a ")


@given(
    words=st.lists(
        st.sampled_from(SOME),
        min_size=1,
        max_size=9,
    ),
    seed=st.integers(0, 9),
    kind=st.sampled_from(KINDS),
)
def test_swapped_captions_differ_in_one_word_of_the_kind_and_its_form(words, seed, kind):
    caption = " ".join(words) + "."
    reference = "a blue man."
    swapped = swapped_captions(caption, [reference], WORDS, kind, seed)
    assert swapped == swapped_captions(caption, [reference], WORDS, kind, seed)
    assert len(set(swapped)) == len(swapped) <= 9
    for text in swapped:
        pairs = list(zip(caption[:-1].split(), text[:-1].split(), strict=True))
        changed = [(one, other) for one, other in pairs if one != other]
        articles = {("a", "an")}
        ((one, other),) = [pair for pair in changed if pair not in articles]
        assert WORDS.of[kind][one] == WORDS.of[kind][other]
        assert other not in words and other not in ("blue", "man")
    if not any(word in WORDS.of[kind] for word in words):
        assert swapped == []


def test_hard_sets_hold_the_captions_that_have_such_a_word():
    found = hard_sets(["a red bus.", "two dogs."], [(), ()], WORDS, 0)
    assert {kind: set(texts) for kind, texts in found.items()} == {
        "verb": set(), "color": {0}, "noun": {0, 1}, "number": {1}
    }  # fmt: skip


def test_diversity_by_hand():
    found = diversity(["a dog", "a dog runs", "a cat"], known=["a cat", "a bird"])
    assert found == {"distinct1": 4 / 7, "distinct2": 3 / 4, "vocabulary": 4, "novel": 2 / 3}
    assert "novel" not in diversity(["a dog"])
