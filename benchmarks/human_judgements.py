"""How well the caption metrics agree with people's judgements of captions of Flickr8k.

    python benchmarks/human_judgements.py FLICKR8K [--metrics LIST] [--clip FOLDER --images FOLDER]
        [--out FILE.json]

FLICKR8K holds Flickr8k.token.txt, ExpertAnnotations.txt and CrowdFlowerAnnotations.txt. Experts:
Kendall's tau-c over 5,664 photographs with a caption of another one, each of the three experts'
scores a point, beside the figures published with CLIPScore (Hessel et al. 2021). Crowd: tau-b with
the share of people who said yes, without captions of the photograph itself, and with all, the
caption taken out of the references. In percent. With --clip (a folder of `prepare.py clip`) and
--images also by CLIPScore and RefCLIPScore.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from generations.clip import PROMPT, load_clip
from generations.metrics.captions import evaluate_captions
from generations.pipelines.clip_metrics import caption_clip_scores, embed, encode_texts
from generations.pipelines.pictures import PaintedPicture

CAPTIONS, EXPERTS, CROWD = FILES = (
    "Flickr8k.token.txt",
    "ExpertAnnotations.txt",
    "CrowdFlowerAnnotations.txt",
)
PUBLISHED = {  # with the experts
    "bleu1": 32.3, "bleu4": 30.8, "rouge_l": 32.3, "meteor": 41.8, "cider_d": 43.9, "spice": 44.9,
    "caption_clip_score": 51.2, "ref_clip_score": 53.0,
}  # fmt: skip
BATCH = 64
Captions = Mapping[str, Mapping[str, str]]  # photograph -> caption id -> text


@dataclass(frozen=True)
class Pair:
    """A photograph and a caption that people judged.

    Attributes:
        image: file name of the photograph.
        caption: id of the caption; the part before "#" is the photograph it was written for.
        judgements: what people said; higher is better.
    """

    image: str
    caption: str
    judgements: tuple[float, ...]

    @property
    def written_for(self) -> str:
        """The photograph that the caption was written for."""
        return self.caption.partition("#")[0]


def main() -> None:
    """Print how each metric agrees with the experts and with the crowd."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FLICKR8K")
    parser.add_argument("--metrics", default="bleu,rouge_l,meteor,cider_d", help="'': none")
    parser.add_argument("--clip", type=Path, metavar="FOLDER")
    parser.add_argument("--images", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    if bool(arguments.clip) != bool(arguments.images):
        parser.error("--clip and --images go together")
    missing = [name for name in FILES if not (arguments.folder / name).is_file()]
    if missing:
        sys.stdout.write(
            f"skipped: {arguments.folder} has no {', '.join(missing)}; docs/flickr8k.md says "
            "where they come from\n"
        )
        return
    captions = read_captions(arguments.folder / CAPTIONS)
    experts = [
        Pair(row[0], row[1], tuple(map(float, row[2:5])))
        for row in read_rows(arguments.folder / EXPERTS)
    ]
    crowd = [Pair(row[0], row[1], (float(row[2]),)) for row in read_rows(arguments.folder / CROWD)]
    subsets = (
        ("experts, tau-c", [pair for pair in experts if pair.written_for != pair.image], "c"),
        ("crowd without own captions, tau-b", [p for p in crowd if p.written_for != p.image], "b"),
        ("crowd, tau-b", crowd, "b"),
    )
    figures: dict[str, dict[str, float]] = {}
    for name, pairs, variant in subsets:
        metrics = [name for name in arguments.metrics.split(",") if name]
        scores = score_texts(pairs, captions, metrics) if metrics else {}
        if arguments.clip:
            scores |= score_by_clip(pairs, captions, arguments.clip, arguments.images)
        figures[name] = agreement(pairs, scores, variant)
        sys.stdout.write(f"{name}, {len(pairs)} pairs\n")
        for metric, tau in figures[name].items():
            published = PUBLISHED.get(metric) if variant == "c" else None
            beside = f"   published {published:.1f}" if published else ""
            sys.stdout.write(f"    {metric:20}{tau:6.2f}{beside}\n")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def read_rows(path: Path) -> list[list[str]]:
    """The tab-separated fields of each line."""
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]


def read_captions(path: Path) -> dict[str, dict[str, str]]:
    """{photograph: {caption id: text}}."""
    found: dict[str, dict[str, str]] = {}
    for caption, text in read_rows(path):
        found.setdefault(caption.partition("#")[0], {})[caption] = text
    return found


def references_of(pair: Pair, captions: Captions) -> list[str]:
    """What people wrote for the pair's photograph, without the caption itself."""
    return [text for caption, text in captions[pair.image].items() if caption != pair.caption]


def score_texts(
    pairs: Sequence[Pair], captions: Captions, metrics: Sequence[str]
) -> dict[str, Sequence[float]]:
    """{metric: score of each pair} of the metrics that read text alone."""
    hypotheses = {n: captions[pair.written_for][pair.caption] for n, pair in enumerate(pairs)}
    references = {n: references_of(pair, captions) for n, pair in enumerate(pairs)}
    items = evaluate_captions(hypotheses, references, metrics).per_item
    return {name: [items[n][name] for n in range(len(pairs))] for name in items[0]}


def score_by_clip(
    pairs: Sequence[Pair], captions: Captions, clip_folder: Path, images: Path
) -> dict[str, Sequence[float]]:
    """CLIPScore and RefCLIPScore of each pair."""
    clip = load_clip(str(clip_folder / "clip.json"), str(clip_folder / "clip.safetensors"))
    names = sorted({pair.image for pair in pairs})
    pictures = [PaintedPicture(images / name, "") for name in names]
    rows = {name: row for row, name in enumerate(names)}
    seen = embed(clip, pictures, PROMPT, BATCH).images[[rows[pair.image] for pair in pairs]]
    ids = sorted({key for p in pairs for key in (p.caption, *captions[p.image])})
    place = {key: number for number, key in enumerate(ids)}
    texts = encode_texts(clip, [captions[key.partition("#")[0]][key] for key in ids], PROMPT)
    judged = texts[[place[pair.caption] for pair in pairs]]
    others = [
        texts[[place[key] for key in captions[pair.image] if key != pair.caption]] for pair in pairs
    ]
    plain, with_references = caption_clip_scores(seen, judged, others)
    return {"caption_clip_score": plain.tolist(), "ref_clip_score": with_references.tolist()}


def agreement(
    pairs: Sequence[Pair], scores: Mapping[str, Sequence[float]], variant: str
) -> dict[str, float]:
    """Kendall's tau of each metric with the judgements, in percent; each judgement is a point."""
    judged = [judgement for pair in pairs for judgement in pair.judgements]
    counts = [len(pair.judgements) for pair in pairs]
    return {
        metric: 100 * float(kendalltau(np.repeat(values, counts), judged, variant=variant)[0])
        for metric, values in scores.items()
    }


if __name__ == "__main__":
    main()
