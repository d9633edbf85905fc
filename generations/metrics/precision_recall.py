"""Precision and recall of two sets of features, by torch-fidelity."""

import numpy as np
import torch

from generations.errors import UserError
from generations.libraries import library

metric_prc = library("torch_fidelity.metric_prc", "torch-fidelity")

NEIGHBOURS = 3


def precision_recall(generated: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Share of generated features among the real ones, and of real ones among the generated.

    A feature is among a set if it is as near to one of its members as that member's third nearest
    neighbour.

    Args:
        generated: (M, D).
        real: (M', D).

    Returns:
        precision, low where pictures look unreal; recall, low where they lack variety.

    Raises:
        UserError: fewer than four features on one side.

    Source: Kynkäänniemi et al. 2019.
    """
    if min(len(generated), len(real)) <= NEIGHBOURS:
        raise UserError(
            f"precision and recall need at least {NEIGHBOURS + 1} painted and as many real images; "
            f"there are {len(generated)} and {len(real)}"
        )
    found = metric_prc.prc_features_to_metric(
        *(torch.from_numpy(np.asarray(features, np.float64)) for features in (generated, real)),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=1000,
        save_cpu_ram=True,
        verbose=False,
    )
    return found["precision"], found["recall"]
