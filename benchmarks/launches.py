"""What a GPU would be asked for: operators, values read back, copies from the host.

    python benchmarks/launches.py [--out FILE.json] [--only NAME,NAME] [--fakes]

Counted without a GPU, of one iteration of each task, and of captioning and painting, in bf16.
Operators (`all`, and `kernels`: those that are not views) on the CPU, by a network with the layers
of the full size whose widths are small, which changes none of these numbers. Read-backs and copies
on fake CUDA tensors, which have shapes and devices and no values: a value that is read back is made
up (captions never end), and a mix-up of devices is an error. There is no backward pass on those,
so of a backward pass what reads a value is counted on the CPU.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":  # the checkout's package, wherever this is called from
    sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import measures
import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from generations.batch import Batch
from generations.decoding import (
    Guidance,
    Order,
    beam_captions,
    caption_tokens,
    image_tokens,
    sampled_captions,
)
from generations.modeling import ModelSize, UnifiedTransformer, choose_library
from generations.modeling.visibility import teacher_forcing
from generations.objectives import TASKS, SequenceSettings, TaskContext, replay
from generations.runtime import generator
from generations.training.optim import SolverSettings, build_optimizer
from generations.training.update import apply_gradients
from generations.vocabulary import EOS

# the layers of the full size; widths change no number of operators
NARROW = ModelSize(48, 12, 64, 9, 5, 5, 1200, 0.1, 8, 32, 80)
# what is waited for does not depend on the number of layers, and fakes take their time
SHALLOW = replace(NARROW, language_layers=2, visual_layers=1, cross_layers=2)
CUDA = torch.device("cuda")
BATCH, STAGE2_BATCH = 32, 20
TEXT = {"xe_i2t": 17, "xe_t2i": 17, "rl_i2t": 16, "rl_t2i": 16}
_READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal")
Row = dict[str, Any]


class Operators(TorchDispatchMode):
    """Counts operators by name.

    Attributes:
        names: of all; `reads` and `copies`: of those that wait for the device, and that bring
            something to it without waiting.
        answer: what is read back of fake tensors by an operator with its arguments.
    """

    def __init__(self, answer: Callable[[str, tuple], Any] | None = None):
        super().__init__()
        self.names: Counter[str] = Counter()
        self.kernels = 0
        self.reads: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.answer = answer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        tensors = [value for value in torch.utils._pytree.tree_leaves(args) if _is_tensor(value)]
        self.names[name] += 1
        self.kernels += not func.is_view and name not in ("detach", "lift_fresh")
        on_device = self.answer is None or any(t.device.type == "cuda" for t in tensors)
        if self._waits(name, args):
            self.reads[name] += on_device
            if self.answer is not None and not name.startswith("index_put"):
                return self.answer(name, args)
        moves = name in ("_to_copy", "copy_")
        if moves and self.answer is not None:
            target = kwargs.get("device") or tensors[0].device
            source = tensors[-1].device
            if (source.type, target.type) == ("cuda", "cpu"):
                self.reads[name] += 1
            elif (source.type, target.type) == ("cpu", "cuda"):
                quick = kwargs.get("non_blocking") or args[2:] == (True,)
                (self.copies if quick else self.reads)[name] += 1
        elif on_device and name.startswith("index") and self.answer is not None:
            # indices that the host holds are brought over
            self.reads[name] += any(t.device.type == "cpu" and t.ndim for t in tensors)
        return func(*args, **kwargs)

    @staticmethod
    def _waits(name: str, args: tuple) -> bool:
        if name in _READS:
            return True
        if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return False
        return any(_is_tensor(t) and t.dtype in (torch.bool, torch.uint8) for t in args[1])


class Lists(TorchFunctionMode):
    """Lists of fake tensors are zeros, and are counted."""

    def __init__(self, operators: Operators):
        super().__init__()
        self._operators = operators

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.tolist, Tensor.numpy):
            value = args[0]
            if value.device.type == "cuda":
                self._operators.reads["tolist"] += 1
            zeros = np.zeros(tuple(value.shape), str(value.dtype).removeprefix("torch."))
            return zeros if func is Tensor.numpy else zeros.tolist()
        if func is Tensor.pin_memory:
            return args[0]
        return func(*args, **(kwargs or {}))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def new_model(causal: bool = False) -> UnifiedTransformer:
    torch.manual_seed(0)
    model = UnifiedTransformer(NARROW, causal=causal).train()
    choose_library(model, "torch")  # oneDNN's product is a CPU's
    with torch.no_grad():
        model.classifier.predictions.bias[EOS] = -1e4  # no caption ends early
    return model


def context_of(recompute: bool = True) -> TaskContext:
    settings = SequenceSettings(16, recompute=recompute, mse_weight=1.0)
    return TaskContext(generator(1), measures.FeatureLevels(), sequence=settings)


def on_cpu(name: str, model: UnifiedTransformer, batch: Batch) -> Row:
    """Operators of one iteration, the second, when what stays has been made."""
    optimizer = build_optimizer(model, SolverSettings())
    joined: set[str] = set()
    parts: dict[str, Operators] = {}
    # as on a GPU with room for all
    all_rows = mock.patch.object(replay, "rows_at_once", lambda *_: 10**6)
    for _ in range(2):
        parts = {part: Operators() for part in ("forward", "backward", "update")}
        with parts["forward"], torch.autocast("cpu", torch.bfloat16):
            loss = TASKS[name](model, batch, context_of()).loss
        with parts["backward"], all_rows:
            loss.backward()
        with parts["update"]:
            apply_gradients(model, optimizer, joined, 1.0)
    row: Row = {"all": sum(sum(part.names.values()) for part in parts.values())}
    row["kernels"] = sum(part.kernels for part in parts.values())
    for part, operators in parts.items():
        row[f"kernels_{part}"] = operators.kernels
    row["reads_backward"] = sum(parts["backward"].reads.values())
    row["casts"] = sum(parts[part].names["_to_copy"] for part in ("forward", "backward"))
    return row


def decoded_on_cpu(run: Callable[[], None]) -> Row:
    operators = Operators()
    with operators, torch.autocast("cpu", torch.bfloat16):
        run()
    return {
        "all": sum(operators.names.values()),
        "kernels": operators.kernels,
        "casts": operators.names["_to_copy"],
    }


def on_fake_cuda(
    run: Callable[[UnifiedTransformer, Batch], Any], batch: Batch, causal: bool = False
) -> Row:
    """Read-backs and copies of a forward pass on fake CUDA tensors.

    The batch is there already: its own copies, one for each of its tensors, run beside the
    iteration before.
    """
    operators = Operators(made_up)
    teacher_forcing.cache_clear()  # of tensors that are no fakes
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        stack.callback(teacher_forcing.cache_clear)
        stack.enter_context(fake)
        with torch.device(CUDA):
            model = UnifiedTransformer(SHALLOW, causal=causal).train()
        moved = batch._map(lambda t: torch.empty(t.shape, dtype=t.dtype, device=CUDA))
        moved = replace(moved, references=batch.references)  # they stay on the host
        stack.enter_context(operators)
        stack.enter_context(Lists(operators))
        run(model, moved)
    return {
        "reads": sum(operators.reads.values()),
        "copies": sum(operators.copies.values()),
        "read_by": dict(+operators.reads),
        "copied_by": dict(+operators.copies),
    }


def made_up(name: str, args: tuple) -> Any:
    """What a fake tensor is said to hold: yes, everywhere, and a length that fits."""
    value = args[0]
    if name == "_local_scalar_dense":
        return True if value.dtype is torch.bool else 16
    if name == "nonzero":
        return value.new_empty((value.numel(), value.ndim), dtype=torch.long)
    if name == "index":
        (mask,) = args[1]
        return value.new_empty((mask.numel(), *value.shape[mask.ndim :]))
    if name == "unique_dim":
        counts = value.new_empty(len(value), dtype=torch.long)
        return torch.empty_like(value), counts, counts.clone()
    raise NotImplementedError(name)


def task_row(name: str, causal: bool, counted: bool) -> Row:
    size = BATCH if name.startswith("xe") else STAGE2_BATCH
    model = new_model(causal)
    batch = measures.random_batch(model, size, TEXT[name])
    row = on_cpu(name, model, batch) if counted else {}
    return row | on_fake_cuda(
        lambda fake, moved: TASKS[name](fake, moved, context_of()), batch, causal
    )


def greedily(model: UnifiedTransformer, batch: Batch) -> None:
    caption_tokens(model, batch.features, steps=16)


def by_beam(model: UnifiedTransformer, batch: Batch) -> None:
    beam_captions(model, batch.features, steps=16)


def by_chance(model: UnifiedTransformer, batch: Batch) -> None:
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        uniforms = torch.rand(BATCH, 2, 16)
    sampled_captions(model, uniforms, batch.features, top_p=0.9, length_penalty=0.7)


def paint(model: UnifiedTransformer, batch: Batch) -> None:
    image_tokens(model, batch.text_ids)


def paint_guided(model: UnifiedTransformer, batch: Batch) -> None:
    image_tokens(model, batch.text_ids, order=Order("halton"), guidance=Guidance(2.0))


def decoding_row(
    decode: Callable[[UnifiedTransformer, Batch], None], causal: bool, counted: bool
) -> Row:
    model = new_model(causal).eval()
    batch = measures.random_batch(model, BATCH, 17)
    row = decoded_on_cpu(lambda: decode(model, batch)) if counted else {}
    return row | on_fake_cuda(lambda fake, moved: decode(fake.eval(), moved), batch, causal)


ROWS: dict[str, Callable[[bool], Row]] = {
    **{name: partial(task_row, name, False) for name in TEXT},
    "captioning": partial(decoding_row, greedily, False),
    "captioning_beam": partial(decoding_row, by_beam, False),
    "captioning_sample": partial(decoding_row, by_chance, False),
    "painting": partial(decoding_row, paint, False),
    "painting_guided": partial(decoding_row, paint_guided, False),
    "xe_i2t_causal": partial(task_row, "xe_i2t", True),
    "rl_i2t_causal": partial(task_row, "rl_i2t", True),
    "captioning_causal": partial(decoding_row, greedily, True),
    "captioning_beam_causal": partial(decoding_row, by_beam, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default=",".join(ROWS), help="names with commas between them")
    parser.add_argument("--fakes", action="store_true", help="no operators, which take longer")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := set(names) - set(ROWS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(ROWS)}")
    rows = []
    for name in names:
        rows.append({"name": name, **ROWS[name](not arguments.fakes)})
        sys.stdout.write(", ".join(f"{key} {value}" for key, value in rows[-1].items()) + "\n")
        sys.stdout.flush()
        if arguments.out:
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
