"""Optimiser states by parameter name, which do not depend on the order of the parameters."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from generations.checkpoint.keys import shown
from generations.errors import UserError


def optimizer_state_by_name(state: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """An optimiser's state_dict with parameters called by name, whatever their order was.

    Args:
        state: torch's layout, {"state": {index: ...}, "param_groups": [{"params": [index]}]}.
        names: the parameters' names in the order the optimiser was given them. Of a released
            checkpoint that is the order of `model.named_parameters()`: all of them, the frozen
            codebook included, tied ones once.

    Returns:
        the same with names in place of indices.

    Raises:
        UserError: it holds another number of parameters.
    """
    names = list(names)
    indices = list(chain.from_iterable(group["params"] for group in state["param_groups"]))
    if len(indices) != len(names) or len(set(indices)) != len(indices):
        raise UserError(
            f"the optimiser state has {len(set(indices))} parameters, but the model has "
            f"{len(names)}; set load_model_only 1 to load only the weights"
        )
    name_of = dict(zip(indices, names, strict=True))
    groups = [
        {**group, "params": [name_of[index] for index in group["params"]]}
        for group in state["param_groups"]
    ]
    return {
        "state": {name_of[index]: value for index, value in state["state"].items()},
        "param_groups": groups,
    }


def optimizer_state_by_index(state: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The inverse of `optimizer_state_by_name`, for an optimiser with its own order.

    Args:
        state: the layout by name.
        names: the parameters' names in the order of the optimiser that is to load it.

    Returns:
        torch's layout. A parameter that the state knows nothing of has none (it starts afresh).

    Raises:
        UserError: the names are not those of the state (ones without moments may be absent).
    """
    index_of = {name: index for index, name in enumerate(names)}
    known = set(chain.from_iterable(group["params"] for group in state["param_groups"]))
    strangers = [*(index_of.keys() - known), *(state["state"].keys() - index_of.keys())]
    if strangers:
        raise UserError(
            "the optimiser state and the model have different parameters: "
            f"{shown(sorted(strangers))}; set load_model_only 1 to load only the weights"
        )
    groups = [
        {**group, "params": sorted(index_of[name] for name in group["params"] if name in index_of)}
        for group in state["param_groups"]
    ]
    return {
        "state": {index_of[name]: value for name, value in state["state"].items()},
        "param_groups": groups,
    }


def load_optimizer_state(
    optimizer: Optimizer, state: Mapping[str, Any], model: nn.Module, source: str
) -> None:
    """Load a state_dict that was made over all of the model's parameters, matched by name.

    Args:
        optimizer: over all or some of the model's parameters, in any order.
        state: torch's layout, of the original or of ours.
        model: gives the names.
        source: what to call its origin in errors.

    Raises:
        UserError: another number of parameters, or moments of another shape; nothing is loaded.
    """
    parameters = dict(model.named_parameters())
    try:
        named = optimizer_state_by_name(state, parameters)
        for name, moments in named["state"].items():
            for key, value in moments.items():
                if (
                    isinstance(value, Tensor)
                    and value.ndim
                    and value.shape != parameters[name].shape
                ):
                    raise UserError(
                        f"the optimiser's {key} of {name} has the shape {tuple(value.shape)}, but "
                        f"the parameter has {tuple(parameters[name].shape)}; set load_model_only 1 "
                        "to load only the weights"
                    )
        name_of = {id(parameter): name for name, parameter in parameters.items()}
        own = [group["params"] for group in optimizer.param_groups]
        indexed = optimizer_state_by_index(named, [name_of[id(p)] for p in chain(*own)])
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    # how torch computes the update belongs to this machine, not to the run
    ways = ("fused", "foreach", "capturable", "differentiable")
    for group, own_group in zip(indexed["param_groups"], optimizer.param_groups, strict=True):
        group.update({key: own_group[key] for key in ways if key in own_group})
    # a copy: torch would go on in the caller's tensors, or in the mapped file's
    indexed["state"] = {index: _copy(moments) for index, moments in indexed["state"].items()}
    optimizer.load_state_dict(indexed)


def _copy(moments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.clone() if isinstance(value, Tensor) else value for key, value in moments.items()
    }
