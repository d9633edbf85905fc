"""The README.md of an exported model."""

from collections.abc import Mapping, Sequence
from string import Template

from generations.reporting.page import caption_of, number

CARD = Template("""# $name

A unified transformer that captions images and paints images from text. This folder contains
everything that the model needs. `generations/export.py` made it from a training run.

| part | parameters |
| --- | ---: |
$counts

$total_mb MB in all. `model.safetensors` includes the codebook, which maps dense grid features to
clusters. If the folder has a CLIP, `prepare.py clip` trained it on the same data;
`eval_protocol network` evaluates pictures with its image encoder.

## Use

```bash
$commands
```

```python
from generations.checkpoint import from_pretrained

model, cfg = from_pretrained("$folder")
```

## Training

Iteration $iteration, last trained on $tasks. `config.yaml` has its sizes.

## Metrics

Measured on the test split of its dataset.

$figures

## Limits

The model knows only the words, objects and style of its training data. A model of the mini world
is a toy for trying the code: its captions of photographs are meaningless, and it reads unknown
words letter by letter and mostly ignores them. CLIPScores by the CLIP in this folder have their
own scale; do not compare them with published ones.

## Licence

MIT, as the code. The vocabulary is that of BERT (`bert-base-uncased`, Google, Apache 2.0), or
begins with its lines.

## Files

| file | bytes |
| --- | ---: |
$files
""")


def model_card(
    name: str,
    config: str,
    counts: Mapping[str, int],
    iteration: int,
    tasks: Sequence[str],
    figures: Mapping[str, Mapping[str, float]],
    files: Mapping[str, int],
    caption: str,
    has_examples: bool,
) -> str:
    """The card, as markdown.

    Args:
        name: of the model.
        config: its config.yaml, as typed in commands.
        counts: part -> number of parameters.
        iteration: it was trained to; 0 if unknown.
        tasks: it was last trained on.
        figures: as of `read_figures`.
        files: file -> bytes.
        caption: to paint in the commands.
        has_examples: whether there is examples/1.png.
    """
    folder = config.rpartition("/")[0] or "."
    image = f"{folder}/examples/1.png" if has_examples else "picture.png"
    commands = [
        f"python generations/inference.py --config {config} --image {image}",
        f'python generations/sample_images.py --config {config} --caption "{caption}"',
        f"python generations/demo.py --config {config}",
    ]
    rows = [
        f"| {group} | {caption_of(figure)[0]} | {number(value)} |"
        for group, values in sorted(figures.items())
        for figure, value in values.items()
        if not figure.endswith("_std")
    ]
    table = ["| samples | metric | value |", "| --- | --- | ---: |", *rows]
    return CARD.substitute(
        name=name,
        folder=folder,
        counts="\n".join(f"| {part} | {count:,} |" for part, count in counts.items()),
        total_mb=f"{sum(files.values()) / 1e6:.1f}",
        commands="\n".join(commands),
        iteration=f"{iteration:,}" if iteration else "unknown",
        tasks=", ".join(f"`{task}`" for task in tasks),
        figures="\n".join(table) if rows else "None were measured (`generations/evaluate.py`).",
        files="\n".join(f"| `{file}` | {size:,} |" for file, size in files.items()),
    )
