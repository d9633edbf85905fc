"""Linear layers by oneDNN: the numbers are those of torch's."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generations.config import load_config
from generations.errors import UserError
from generations.modeling import choose_library
from generations.modeling import linear as module
from generations.modeling.linear import Linear, has_onednn, linear

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")
WIDE = 256  # 256 x 256 is large enough to be worth it


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).norm() <= 2e-6 * theirs.norm())


@needs_onednn
@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 3, 4), (1, 1)])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    states = torch.randn(*shape, WIDE, requires_grad=True)
    weight = torch.randn(WIDE + 32, WIDE, requires_grad=True)
    bias = torch.randn(WIDE + 32, requires_grad=True) if biased else None
    inputs = [states, weight] + ([bias] if bias is not None else [])
    wanted = F.linear(states, weight, bias)
    pull = torch.randn_like(wanted)
    found = linear(states, weight, bias, "onednn")
    assert type(found.grad_fn).__name__ == "_OneDnnBackward"  # it was oneDNN indeed
    assert found.shape == wanted.shape
    assert close(found, wanted)
    ours = torch.autograd.grad(found, inputs, pull)
    theirs = torch.autograd.grad(wanted, inputs, pull)
    assert all(map(close, ours, theirs))


@needs_onednn
def test_any_strides_and_only_the_gradients_that_are_asked_for() -> None:
    torch.manual_seed(0)
    states = torch.randn(WIDE, 7).t()
    weight = torch.randn(WIDE, WIDE).t().requires_grad_()
    found = linear(states, weight, None, "onednn")
    assert close(found, F.linear(states, weight))
    found.sum().backward()
    assert weight.grad is not None
    assert close(weight.grad, states.sum(0).expand(WIDE, -1))


@needs_onednn
def test_repeated_calls_agree_to_the_bit() -> None:
    layer = Linear(WIDE, WIDE)
    layer.library = "onednn"
    states = torch.randn(11, WIDE)
    assert torch.equal(layer(states), layer(states))


def test_what_onednn_does_not_fit_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("oneDNN was called")

    monkeypatch.setattr(module, "_product", refuse)
    large, small = torch.randn(WIDE, WIDE), torch.randn(8, 8)
    linear(torch.randn(2, 8), small, None, "onednn")
    linear(torch.randn(2, WIDE).double(), large.double(), None, "onednn")
    assert linear(torch.randn(0, WIDE), large, None, "onednn").shape == (0, WIDE)
    linear(torch.randn(2, WIDE), large, None, "torch")
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(2, WIDE), large, None, "onednn").dtype == torch.bfloat16


def test_the_choice_reaches_all_layers_of_a_model() -> None:
    model = nn.Sequential(Linear(4, 4), nn.Sequential(Linear(4, 4)))
    choose_library(model, "onednn")
    assert [layer.library for layer in model.modules() if isinstance(layer, Linear)] == [
        "onednn",
        "onednn",
    ]
    with pytest.raises(ValueError, match="mkl"):
        choose_library(model, "mkl")
    with pytest.raises(UserError, match="cpu_linear"):
        load_config(overrides=("cpu_linear", "mkl"))
