"""The CIDEr-D reward and FID's trace term, beside the common ways to compute them.

    python benchmarks/metrics.py [--repeats 5] [--features 2048] [--out FILE.json]

cider_d_reward: 160 captions of 80 images (samples and baselines) against pycocoevalcap.
fid_trace: the distance of two Gaussians against one with scipy's matrix square root.
Medians of seconds in one run; `equal` compares the figures (1e-6 relative).
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from pycocoevalcap.cider.cider import Cider

from generations.metrics.fid import frechet_distance
from generations.rewards import cider_d
from generations.vocabulary import EOS

IMAGES, CAPTIONS, WORDS = 80, 5, 16


def main() -> None:
    """Measure both and show the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="of the reward; the trace: once")
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [reward(arguments.repeats), trace(arguments.features)]
    for row in rows:
        line = "{name:16}{ours_s:>10.4f} s{naive_s:>10.4f} s{ratio:>7.1f}x  equal: {equal}\n"
        sys.stdout.write(line.format(**row))
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1))


def reward(repeats: int) -> dict[str, Any]:
    """CIDEr-D of 160 captions, document frequencies of the batch."""
    rng = np.random.default_rng(0)
    # words are as unevenly common as in captions
    references = 2000 + rng.zipf(1.4, (IMAGES, CAPTIONS, WORDS)).clip(max=9000)
    hypotheses = np.concatenate([references[:, 0], references[:, 1]])
    changed = rng.random(hypotheses.shape) < 0.3
    hypotheses[changed] = 2000 + rng.zipf(1.4, int(changed.sum())).clip(max=9000)
    references[:, :, -1] = hypotheses[:, -1] = EOS

    def text(row: np.ndarray) -> str:
        return " ".join(map(str, row.tolist()))

    def naive() -> np.ndarray:
        gts = {
            number: [text(row) for row in references[number % IMAGES]]
            for number in range(len(hypotheses))
        }
        res = {number: [text(row)] for number, row in enumerate(hypotheses)}
        return np.asarray(Cider().compute_score(gts, res)[1])

    tensors = torch.from_numpy(hypotheses), torch.from_numpy(references)
    return _compare("cider_d_reward", lambda: cider_d(*tensors).numpy(), naive, repeats)


def trace(size: int) -> dict[str, Any]:
    """FID of two made-up sets of feature statistics."""

    def statistics_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        mixing = rng.standard_normal((size, size)) * np.logspace(0, -2, size) / size**0.5
        samples = rng.standard_normal((2 * size, size)) @ mixing
        return samples.mean(0), np.cov(samples, rowvar=False)

    (mean1, cov1), (mean2, cov2) = statistics_of(1), statistics_of(2)

    def naive() -> np.ndarray:
        root = scipy.linalg.sqrtm(cov1 @ cov2)
        gap = mean1 - mean2
        distance = gap @ gap + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root).real
        return np.asarray(distance)

    return _compare(
        "fid_trace", lambda: np.asarray(frechet_distance(mean1, cov1, mean2, cov2)), naive, 1
    )


def _compare(
    name: str, ours: Callable[[], np.ndarray], naive: Callable[[], np.ndarray], repeats: int
) -> dict[str, Any]:
    equal = bool(np.allclose(ours(), naive(), rtol=1e-6, atol=1e-9))  # and warm
    seconds = [[_seconds(ours), _seconds(naive)] for _ in range(repeats)]
    ours_s, naive_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {
        "name": name,
        "ours_s": ours_s,
        "naive_s": naive_s,
        "ratio": naive_s / ours_s,
        "equal": equal,
    }


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
