"""The README.md of an exported model."""

from collections.abc import Mapping, Sequence
from string import Template

from generations.reporting.page import caption_of, number

CARD = Template("""# $name

A unified transformer that captions images and paints images from text, with all it needs: this
folder works alone. Made by `generations/export.py`; the figures are those of the run it came from.

| part | parameters |
| --- | ---: |
$counts

$total_mb MB in all. `model.safetensors` holds the codebook of grid features too, so that dense
features can be turned into clusters. A CLIP in this folder is one that `prepare.py clip` trained
on the same data; its image half is the evaluation network of `eval_protocol network`.

## Use

```bash
$commands
```

```python
from generations.checkpoint import from_pretrained

model, cfg = from_pretrained("$folder")
```

## Training

Iteration $iteration, last trained on $tasks. Its sizes are in `config.yaml`.

## Figures

On the test split of its dataset.

$figures

## Limits

It knows the words, things and drawing style of the data it was trained on and nothing else. A
model of the mini world is a toy for trying the code: what it says of photographs means nothing,
and words that it does not know are spelt letter by letter and mostly ignored. A CLIPScore by the
CLIP in this folder is on a scale of its own and cannot be compared with that of papers.

## Licence

MIT, as the code. Vocabularies are those of BERT (`bert-base-uncased`, Google, Apache 2.0), or
begin with its lines.

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
    table = ["| samples | figure | value |", "| --- | --- | ---: |", *rows]
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
