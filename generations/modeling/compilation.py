"""torch.compile of the layers of the transformer.

Layers are compiled one by one and in place: those of a kind share their code, which takes seconds
where the whole network takes minutes; the names of weights stay as they are; and decoding, whose
steps differ in length, needs nothing new, as no size of batch or text is written into the code.
"""

import importlib.util
import logging

import torch

from generations.modeling.transformer import CrossLayer, Layer, UnifiedTransformer

logger = logging.getLogger(__name__)

_VARIANTS = 64  # of a layer: with and without gradients, mask, dropout; one sample, or several


def compile_layers(
    model: UnifiedTransformer, choice: str, device: torch.device, backend: str = "inductor"
) -> bool:
    """Let the layers be compiled when they first run.

    Args:
        model: on its device; changed in place. A layer that is no single graph is an error.
        choice: 1, 0, or auto: on GPUs that Triton writes code for.
        device: where it will run.
        backend: of torch.compile.

    Returns:
        whether they will be.
    """
    if choice == "0" or (choice == "auto" and not pays_off(device)):
        return False
    torch._dynamo.config.recompile_limit = max(_VARIANTS, torch._dynamo.config.recompile_limit)
    for module in model.modules():
        if isinstance(module, Layer):
            module.compile(backend=backend, dynamic=True, fullgraph=True)
        elif isinstance(module, CrossLayer):
            # the two halves are what is called; set so, they are no part of the weights
            for half in ("see", "tell"):
                written = getattr(module, half)
                compiled = torch.compile(written, backend=backend, dynamic=True, fullgraph=True)
                setattr(module, half, compiled)
    logger.info("compiling layers when they first run")
    return True


def pays_off(device: torch.device) -> bool:
    """What auto stands for: see docs/performance.md."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (7, 0)
        and importlib.util.find_spec("triton") is not None
    )
