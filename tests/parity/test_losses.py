"""Label smoothing and the self-critical loss of the original."""

import goldens
import numpy as np
import pytest
import torch

from generations.objectives import label_smoothing_loss, self_critical_loss


def test_label_smoothing_and_its_gradient():
    arrays = goldens.arrays("f_label_smoothing")
    logits = torch.from_numpy(arrays["logits"]).requires_grad_()
    targets = torch.from_numpy(arrays["targets"])
    loss = label_smoothing_loss(logits, targets)
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["loss"]), rel=1e-6)
    np.testing.assert_allclose(logits.grad, arrays["loss_grad"], atol=1e-7)
    plain = label_smoothing_loss(logits, targets, smoothing=0)
    assert plain.item() == pytest.approx(float(arrays["loss_smoothing0"]), rel=1e-6)
    weighted = label_smoothing_loss(logits, targets, weight=torch.from_numpy(arrays["weight"]))
    assert weighted.item() == pytest.approx(float(arrays["loss_weighted"]), rel=1e-6)


def test_self_critical_loss_and_its_gradient():
    arrays = goldens.arrays("e_scst")
    logprobs = torch.from_numpy(arrays["logprobs"]).requires_grad_()
    reward = torch.from_numpy(arrays["reward"]).float()
    loss = self_critical_loss(logprobs, torch.from_numpy(arrays["sample_ids"]), reward)
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["rl_loss"]), rel=1e-6)
    np.testing.assert_allclose(logprobs.grad, arrays["rl_loss_grad"], atol=1e-7)
