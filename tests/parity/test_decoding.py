"""Captions and grid tokens of the original."""

import goldens
import numpy as np
import pytest
import torch

from generations.decoding import caption_tokens, cut_after_eos, image_tokens, painting_steps
from generations.vocabulary import EOS


@pytest.mark.parametrize("variant", ["", "v0_", "v1_", "v2_"])
def test_greedy_captions(variant):
    arrays = goldens.arrays("d_captions")
    model = goldens.tiny().eval()
    if variant:
        with torch.no_grad():
            model.classifier.predictions.bias[EOS] += float(arrays[f"{variant}eos_bias_bump"])
    ids = caption_tokens(model, torch.from_numpy(arrays["grid_features"]), text_length=9)
    # ended captions are cut here, where the original goes on writing
    inference = cut_after_eos(torch.from_numpy(arrays[f"{variant}inference_ids"]))
    assert torch.equal(ids[:, :9], inference)
    # the training loop's decoder ends every caption in EOS
    sampled = cut_after_eos(torch.from_numpy(arrays[f"{variant}sample_ids"]))
    ours = cut_after_eos(torch.cat([ids[:, :9], torch.full((len(ids), 1), EOS)], 1))
    assert torch.equal(ours, sampled)


def test_caption_logits_of_each_step():
    arrays = goldens.arrays("d_captions")
    model = goldens.tiny().eval()
    vision = model.encode_vision(torch.from_numpy(arrays["grid_features"]))
    ids = caption_tokens(model, torch.from_numpy(arrays["grid_features"]), text_length=9)
    for step, expected in enumerate(arrays["inference_step_logits"], 1):
        prefix = ids[:, : step + 1].clone()
        prefix[:, step] = 103 if step < 9 else 102
        text = model.encode_text(prefix, None)
        position = torch.full((len(ids), 1), step)
        _, state = model.fuse(vision, text, None, read="text", text_positions=position)
        logits = model.text_logits(state[:, 0]).detach().numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_mask_predict_step_by_step():
    arrays = goldens.arrays("c_sample_image")
    model = goldens.tiny().eval()
    text_ids = torch.from_numpy(arrays["token_ids"])
    kept = torch.zeros(3, 16, 50)
    count = 0
    for count, step in enumerate(painting_steps(model, text_ids), 1):
        place = count - 1
        np.testing.assert_array_equal(step.masked, arrays["visual_mask_in_step"][place])
        np.testing.assert_array_equal(step.cluster_ids, arrays["cluster_index_after_step"][place])
        expected = arrays["pred_image_logits_step"][place]
        np.testing.assert_allclose(step.logits.detach(), expected, atol=1e-5)
        kept = torch.where(step.masked[..., None], step.logits.detach(), kept)
    assert count == 4
    np.testing.assert_allclose(kept, arrays["code_logit"], atol=1e-5)
    assert torch.equal(
        image_tokens(model, text_ids), torch.from_numpy(arrays["cluster_index_final"])
    )
