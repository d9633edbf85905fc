"""The paper's captioning and the causal one, from the same seeds, by time and by words.

    python benchmarks/ways.py --config configs/mini/stage1.yaml --seeds 1,2,3
        [--runs paper:3,causal:3,causal:words] [--paper "key value ..."] [--causal "key value ..."]
        [--target CIDER_D] [--out FILE.json] [--picture FILE.png] [key value ...]
    python benchmarks/ways.py --redraw FILE.json --picture FILE.png

Trains xe_i2t alone in both ways. A short run tells how long an iteration of each takes, then each
gets as many iterations as fit into its minutes, its whole schedule in them, and is tested on the
val split on the way. The seconds of a point are iterations times seconds an iteration, so tests do
not count, nor does what else the machine did later. `causal:words` trains on as many words as the
paper's run of the first minutes. Needs a prepared data_dir, and an idle machine for its first
minute.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("paper", "causal")
POINTS = 12  # tests in a run
PROBE = 30  # iterations of the short run, of which the second half counts


def main() -> None:
    """Train, read the curves, write and draw them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--config")
    parser.add_argument("--redraw", type=Path, help="draw an earlier --out, and train nothing")
    parser.add_argument("--runs", default="paper:3,causal:3,causal:words", help="way:minutes")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--paper", default="", help="keys of this way alone")
    parser.add_argument("--causal", default="captions_per_image 5")
    parser.add_argument("--target", type=float, help="CIDEr-D whose time is wanted")
    parser.add_argument("--out", type=Path, default=Path("ways.json"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("keys", nargs="*")
    arguments = parser.parse_args()
    if arguments.redraw:
        draw(json.loads(arguments.redraw.read_text())["runs"], arguments.picture)
        return
    if not arguments.config:
        parser.error("--config names the data set and the model")
    plan = [run.split(":") for run in arguments.runs.split(",")]
    if plan[0][-1] == "words":
        parser.error("--runs: words are those of the paper's run, which has to come before")
    own = {"paper": arguments.paper.split(), "causal": arguments.causal.split()}
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        train = Trainer(arguments.config, Path(folder), arguments.keys, own)
        ways = [way for way in WAYS if any(way == planned for planned, _ in plan)]
        pace = {way: train.pace(way) for way in ways}
        words = {way: train.words(way) for way in ways}
        for seed in map(int, arguments.seeds.split(",")):
            paper_words = 0.0
            for way, length in plan:
                equal = "words" if length == "words" else "time"
                if equal == "words":
                    count = round(paper_words / words[way])
                else:
                    count = int(60 * float(length) / pace[way])
                count = max(POINTS, count)
                if way == "paper" and not paper_words:
                    paper_words = count * words[way]
                run = {"way": way, "seed": seed, "equal": equal, "iterations": count}
                run |= train.run(way, seed, count)
                run["seconds"] = [step * pace[way] for step in run["steps"]]
                run["words"] = [step * words[way] for step in run["steps"]]
                runs.append(run)
                about = {"seconds_an_iteration": pace, "words_an_iteration": words}
                about |= {"keys": arguments.keys, "own": own, "config": arguments.config}
                arguments.out.write_text(json.dumps({**about, "runs": runs}, indent=1) + "\n")
                sys.stdout.write(line(run, arguments.target))
                sys.stdout.flush()
    if arguments.picture:
        draw(runs, arguments.picture)


class Trainer:
    """Runs main.py and reads what it logged."""

    def __init__(self, config: str, folder: Path, keys: list[str], own: dict[str, list[str]]):
        self.config, self.folder, self.keys, self.own = config, folder, keys, own

    def run(self, way: str, seed: int, iterations: int, tests: bool = True) -> dict[str, Any]:
        """Train; the curve of the val split and of the loss."""
        name = f"{way}_{seed}_{iterations}"
        every = max(1, iterations // POINTS)
        keys = {
            "exp_id": name, "save_dir": str(self.folder), "seed": seed, "captioning": way,
            "iteration_tasks": "['xe_i2t']", "test_interval": every if tests else 0,
            "log_time": every if tests else PROBE // 2, "checkpoint_time": 10**9,
            "scheduler.max_steps": iterations,
            "scheduler.warmup_steps": max(1, iterations // 20),
        }  # fmt: skip
        flat = [str(part) for pair in keys.items() for part in pair]
        command = [sys.executable, str(ROOT / "generations" / "main.py"), "--config", self.config]
        done = subprocess.run(
            [*command, *flat, *self.keys, *self.own[way]],
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        logged = EventAccumulator(str(self.folder / name)).Reload()
        curve = {"steps": [], "cider_d": [], "losses": [], "loss_steps": []}
        if tests:
            points = logged.Scalars("val/cider_d")
            curve["steps"] = [point.step for point in points]
            curve["cider_d"] = [point.value for point in points]
        losses = logged.Scalars("loss/xe_i2t")
        curve["losses"] = [point.value for point in losses]
        curve["loss_steps"] = [point.step for point in losses]
        rates = [point.value for point in logged.Scalars("samples_per_second")]
        return curve | {"samples_per_second": rates}

    def pace(self, way: str) -> float:
        """Seconds an iteration."""
        rate = self.run(way, 0, PROBE, tests=False)["samples_per_second"][-1]
        return self.samples(way) / rate

    def samples(self, way: str) -> int:
        """Images in an iteration."""
        return int(self._setting(way, "samples_per_gpu"))

    def words(self, way: str) -> float:
        """Supervised words in an iteration, in the mean."""
        if way == "paper":
            return float(self.samples(way))
        from generations.config import load_config
        from generations.datasets import CaptionTokenizer, read_split

        cfg = load_config([self.config], ["captioning", way, *self.keys, *self.own[way]])
        tokenizer = CaptionTokenizer(cfg.vocab_file or None)
        records = read_split(cfg.dataset_coco, cfg.train_split)[:500]
        rows = [ids for record in records for ids in tokenizer.encode_batch(list(record.captions))]
        length = statistics.mean(min(len(ids), cfg.text_length) for ids in rows)
        captions = min(int(self._setting(way, "captions_per_image")), 5)
        return self.samples(way) * captions * length

    def _setting(self, way: str, key: str) -> str:
        config = (self.folder / f"{way}_0_{PROBE}" / "config.yaml").read_text()
        found = re.search(rf"^{key}: (\S+)$", config, re.M)
        assert found is not None
        return found[1]


def reached(run: dict[str, Any], target: float) -> float | None:
    """Seconds to a CIDEr-D, between the two points around it; None: never."""
    before = (0.0, 0.0)
    for seconds, value in zip(run["seconds"], run["cider_d"], strict=True):
        if value >= target:
            share = (target - before[1]) / (value - before[1])
            return before[0] + share * (seconds - before[0])
        before = (seconds, value)
    return None


def line(run: dict[str, Any], target: float | None) -> str:
    """A run as text."""
    text = f"{run['way']:7} seed {run['seed']}, equal {run['equal']}: {run['seconds'][-1]:.0f} s, "
    text += f"{run['words'][-1]:,.0f} words, CIDEr-D {run['cider_d'][-1]:.3f}"
    if target is not None:
        seconds = reached(run, target)
        text += f", {target} " + ("never" if seconds is None else f"after {seconds:.0f} s")
    return f"{time.strftime('%H:%M:%S')} {text}\n"


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """CIDEr-D over seconds and over words, and the loss over seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.4), constrained_layout=True)
    colours = {"paper": "tab:orange", "causal": "tab:blue"}
    labelled: set[str] = set()
    for run in runs:
        label = run["way"] if run["way"] not in labelled else None
        labelled.add(run["way"])
        style = {"color": colours[run["way"]], "alpha": 0.8, "label": label}
        if run["equal"] == "time":
            axes[0].plot(run["seconds"], run["cider_d"], marker=".", **style)
            seconds = run["seconds"][-1] / run["steps"][-1]
            axes[2].plot([seconds * step for step in run["loss_steps"]], run["losses"], **style)
        if run["way"] == "paper" or run["equal"] == "words":
            axes[1].plot(run["words"], run["cider_d"], marker=".", **style)
    titles = ("equal time", "equal number of words", "equal time")
    for axis, title, across, up in zip(
        axes, titles, ("seconds", "supervised words", "seconds"),
        ("CIDEr-D, val", "CIDEr-D, val", "training loss"), strict=True,
    ):  # fmt: skip
        axis.set(title=title, xlabel=across, ylabel=up)
        axis.grid(alpha=0.3)
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
