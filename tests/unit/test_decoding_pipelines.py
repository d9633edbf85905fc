"""From settings to files: several captions an image, several pictures a caption, re-ranking."""

import os
import sys
from itertools import pairwise
from threading import Event, Thread

import numpy as np
import pytest
import torch
from PIL import Image

from generations.clip import ClipTrainSettings, train_clip
from generations.config import load_config
from generations.datasets import CaptionTokenizer
from generations.errors import UserError
from generations.files import read_json
from generations.image_generator.generator import GeneratorSize, ImageGenerator, NoiseInjection
from generations.modeling import ModelSize, UnifiedTransformer
from generations.pipelines import picture_files
from generations.pipelines.captioning import (
    CaptioningSettings,
    best_captions,
    write_alternatives,
    write_captions,
)
from generations.pipelines.painting import (
    PaintingRequest,
    PaintingSettings,
    Samples,
    decode_pixels,
    paint,
    paint_captions,
    rerank,
)
from generations.pipelines.picture_files import PictureWriter
from generations.rewards.clip_score import clip_score
from generations.runtime import Runtime

SIZE = ModelSize(16, 2, 24, 2, 1, 2, 30522, 0.0, grid_size=2, feature_size=6, clusters=9)
CPU = Runtime(torch.device("cpu"))
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
REQUESTS = [PaintingRequest(f"a {name} picture.") for name in COLOURS]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = UnifiedTransformer(SIZE).eval()
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=2.0 if "visual_attention" in name else 0.2)
    return network


@pytest.fixture(scope="module")
def tokenizer():
    return CaptionTokenizer()


@pytest.fixture(scope="module")
def clip():
    rng = np.random.default_rng(0)
    images = np.stack([np.full((32, 32, 3), colour) for colour in COLOURS.values()] * 8)
    noisy = (images + rng.integers(-20, 21, images.shape)).clip(0, 255).astype(np.uint8)
    settings = ClipTrainSettings(train_steps=15, batch_size=12, image_width=4, embed_dim=16)
    return train_clip(noisy, [[f"a {name} picture."] for name in COLOURS] * 8, settings, seed=0)


class Flat(torch.nn.Module):
    """Paints the mean of the first three features: pictures differ in colour."""

    def forward(self, features, noise=None, rng=None):
        colour = torch.tanh(4 * features[:, :3].mean((2, 3), keepdim=True))
        return colour.expand(-1, -1, 32, 32)


def batches(count=5):
    features = 10 * torch.randn(count, 4, 6, generator=torch.Generator().manual_seed(1))
    return [
        (list(range(start, min(start + 2, count))), {"features": features[start : start + 2]})
        for start in range(0, count, 2)
    ]


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_the_best_of_the_alternatives_is_the_caption(model, tokenizer, method):
    settings = CaptioningSettings(6, method=method, beam_size=3, num_captions=3, seed=4)
    written = write_alternatives(model, tokenizer, batches(), settings, CPU)
    assert [entry["image_id"] for entry in written] == list(range(5))
    for entry in written:
        assert len(entry["captions"]) == 3
        assert all(one["score"] >= other["score"] for one, other in pairwise(entry["captions"]))
    captions = write_captions(model, tokenizer, batches(), settings, CPU)
    assert captions == best_captions(written)
    assert [set(entry) for entry in captions] == [{"image_id", "caption"}] * 5


def test_sampled_captions_repeat_with_the_seed_in_any_batches(model, tokenizer):
    settings = CaptioningSettings(6, method="sample", num_captions=2, seed=4)
    written = write_alternatives(model, tokenizer, batches(), settings, CPU)
    features = torch.cat([inputs["features"] for _, inputs in batches()])
    whole = [([4, 0, 2, 1, 3], {"features": features[[4, 0, 2, 1, 3]]})]
    again = write_alternatives(model, tokenizer, whole, settings, CPU)
    texts = [[one["caption"] for one in entry["captions"]] for entry in written]
    assert [[one["caption"] for one in entry["captions"]] for entry in again] == texts
    other = CaptioningSettings(6, method="sample", num_captions=2, seed=5)
    assert write_alternatives(model, tokenizer, batches(), other, CPU) != written


def test_sampling_with_top_k_1_writes_the_greedy_captions(model, tokenizer):
    greedy = write_captions(model, tokenizer, batches(), CaptioningSettings(6), CPU)
    settings = CaptioningSettings(6, method="sample", top_k=1)
    assert write_captions(model, tokenizer, batches(), settings, CPU) == greedy


@pytest.mark.parametrize("how", [{}, {"guidance": 0.5, "order": "random"}])
def test_reranking_sorts_pictures_and_raises_the_mean_clip_score(
    model, tokenizer, clip, tmp_path, how
):
    settings = PaintingSettings(6, batch_size=9, num_samples=4, temperature=3.0, **how)
    greedy = PaintingSettings(6, **how)
    plain = read_json(
        paint_captions(model, Flat(), tokenizer, REQUESTS, tmp_path / "plain", greedy, CPU),
        "manifest",
    )
    best = read_json(
        paint_captions(
            *(model, Flat(), tokenizer, REQUESTS, tmp_path / "best", settings, CPU), clip=clip
        ),
        "manifest",
    )

    def scores(folder, files):
        pixels = [np.asarray(Image.open(tmp_path / folder / file)) for file in files]
        stacked = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        return clip_score(clip, stacked, [request.caption for request in REQUESTS])

    before = scores("plain", [item["file"] for item in plain["items"]])
    after = scores("best", [item["file"] for item in best["items"]])
    assert (after >= before - 1e-3).all()
    assert after.mean() > before.mean()
    for place, item in enumerate(best["items"]):
        own = item["samples"]
        assert len(own) == 4
        assert own[0]["file"] == item["file"]
        assert own[0]["cluster_ids"] == item["cluster_ids"]
        assert own[0]["clip_score"] == pytest.approx(after[place].item(), abs=0.01)
        assert all(one["clip_score"] >= other["clip_score"] for one, other in pairwise(own))
        assert all((tmp_path / "best" / one["file"]).exists() for one in own)
        greedy = plain["items"][place]["cluster_ids"]
        assert greedy in [one["cluster_ids"] for one in own]
    # the folder itself holds one picture a caption
    assert len(list((tmp_path / "best").glob("*.png"))) == len(REQUESTS)


def test_reranking_keeps_a_picture_with_its_tokens(clip):
    pixels = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)[None, :, None, None]
    samples = Samples(pixels.expand(1, 3, 32, 32, 3), torch.tensor([[[0], [1], [2]]]))
    order = rerank(samples, clip, ["a green picture."])
    assert order.scores is not None
    assert order.scores[0].tolist() == sorted(order.scores[0].tolist(), reverse=True)
    for picture, cells in zip(order.pixels[0], order.cluster_ids[0], strict=True):
        assert torch.equal(picture, samples.pixels[0, int(cells)])


def test_painting_by_default_is_what_it_was(model, tokenizer, tmp_path):
    path = paint_captions(model, Flat(), tokenizer, REQUESTS, tmp_path, PaintingSettings(6), CPU)
    ids = [tokenizer.encode_for_painting(request.caption, 6) for request in REQUESTS]
    pixels, clusters = paint(model, Flat(), torch.tensor(ids))
    for item, picture, cells in zip(
        read_json(path, "manifest")["items"], pixels, clusters, strict=True
    ):
        assert set(item) == {"file", "caption", "image_id", "image_name", "cluster_ids"}
        assert item["cluster_ids"] == cells.tolist()
        assert np.array_equal(np.asarray(Image.open(tmp_path / item["file"])), picture.numpy())


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 2.0},
        {"temperature": 2.0, "order": "random", "guidance": 1.0},
        {"order": "random"},
        {"order_noise": 9.0},
    ],
)
def test_drawn_pictures_repeat_with_the_seed_in_any_batches(model, tokenizer, tmp_path, how):
    def tokens(name, **changes):
        settings = PaintingSettings(6, **how, **changes)
        folder = tmp_path / name
        path = paint_captions(model, Flat(), tokenizer, REQUESTS, folder, settings, CPU)
        return [item["cluster_ids"] for item in read_json(path, "manifest")["items"]]

    first = tokens("first", seed=3)
    assert tokens("alone", seed=3, batch_size=1) == first
    assert tokens("other", seed=4) != first


def test_the_noise_of_decoded_pixels_comes_from_the_seed():
    torch.manual_seed(0)
    size = GeneratorSize(
        image_size=32, grid_size=4, feature_size=6, channels=8, bottleneck_channels=16,
        style_channels=8, noise=True,
    )  # fmt: skip
    generator = ImageGenerator(size).eval()
    for part in generator.modules():
        if isinstance(part, NoiseInjection):
            for weight in part.parameters():  # zero at first
                torch.nn.init.constant_(weight, 0.5)
    features = torch.randn(2, 16, 6)
    with torch.no_grad():
        first = decode_pixels(generator, features, 1)
        assert torch.equal(decode_pixels(generator, features, 1), first)
        assert not torch.equal(decode_pixels(generator, features, 2), first)


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ("decoding.num_captions 3", "decoding.method"),
        ("decoding.method beam decoding.num_captions 9", "decoding.beam_size"),
        ("decoding.method best", "beam"),
        ("decoding.top_p 0", "decoding.top_p"),
        ("decoding.temperature -1", "decoding.temperature"),
        ("painting.steps 0", "painting.steps"),
        ("painting.schedule cubic", "cosine"),
        ("painting.temperature -2", "painting.temperature"),
        ("painting.order spiral", "halton"),
        ("painting.order halton painting.order_noise 1", "order_noise"),
        ("painting.guidance -1", "painting.guidance"),
        ("painting.guidance_schedule falling", "growing"),
        ("num_samples 4 painting.temperature 0", "painting.temperature"),
        ("rerank clip", "num_samples"),
        ("rerank best num_samples 2", "rerank"),
    ],
)
def test_choices_that_do_not_fit_are_refused(pairs, named):
    with pytest.raises(UserError, match=named):
        load_config(overrides=pairs.split())


def test_choices_that_fit_are_taken():
    load_config(overrides=["num_samples", "8", "rerank", "clip"])
    load_config(overrides=["decoding.method", "beam", "decoding.num_captions", "5"])
    assert PaintingSettings(num_samples=8).heat == 1
    assert PaintingSettings().heat == 0
    assert PaintingSettings(temperature=0.5, num_samples=8).heat == 0.5


def test_pictures_do_not_depend_on_the_order_of_painting(model, tokenizer, tmp_path):
    requests = [
        PaintingRequest(text, image_id=number)
        for number, text in enumerate(
            ("a dog.", "a red dog on a very long street.", "dogs.", "a cat on a mat.", "a dog.")
        )
    ]
    ids = [tokenizer.encode_for_painting(request.caption, 12) for request in requests]
    wanted, cells = paint(model, Flat(), torch.tensor(ids))  # in order, all padded to one length
    manifest = paint_captions(
        model, Flat(), tokenizer, requests, tmp_path, PaintingSettings(12, batch_size=2), CPU
    )
    items = read_json(manifest, "manifest")["items"]
    assert [item["image_id"] for item in items] == list(range(5))
    assert [item["cluster_ids"] for item in items] == cells.tolist()
    for number, (item, pixels) in enumerate(zip(items, wanted, strict=True), 1):
        assert item["file"].startswith(f"img{number}.")
        assert np.array_equal(np.asarray(Image.open(tmp_path / item["file"])), pixels.numpy())


def test_captions_of_one_length_are_painted_without_padding(model, tokenizer, tmp_path):
    seen = []
    hook = model.embedding_layer.register_forward_pre_hook(lambda _, ids: seen.append(ids[0]))
    requests = [PaintingRequest(text) for text in ("dogs.", "a red dog.", "cats.", "a big cat.")]
    settings = PaintingSettings(12, batch_size=2)
    try:
        paint_captions(model, Flat(), tokenizer, requests, tmp_path, settings, CPU)
    finally:
        hook.remove()
    assert [tuple(ids.shape) for ids in seen] == [(2, 6), (2, 4)]
    assert all((ids > 0).all() for ids in seen)


def test_a_picture_that_cannot_be_written_ends_the_painting(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    (tmp_path / "file").touch()
    with pytest.raises(OSError), PictureWriter() as writer:
        writer.write(tmp_path / "file" / "a.png", pixels)
    with pytest.raises(OSError), PictureWriter(ahead=1) as writer:
        writer.write(tmp_path / "file" / "a.png", pixels)
        writer.write(tmp_path / "b.png", pixels)  # waits for the first one
        pytest.fail("the error should have come before")
    with pytest.raises(KeyError), PictureWriter() as writer:
        raise KeyError  # the painting's own errors are not hidden


def test_few_pictures_wait_to_be_written(tmp_path, monkeypatch):
    gate, started = Event(), []

    def slow(path, pixels):
        started.append(path)
        gate.wait(10)

    monkeypatch.setattr(picture_files, "save_png", slow)
    pixels = np.zeros((8, 8, 3), np.uint8)
    with PictureWriter(threads=1, ahead=2) as writer:
        writer.write(tmp_path / "1", pixels)
        writer.write(tmp_path / "2", pixels)
        third = Thread(target=writer.write, args=(tmp_path / "3", pixels))
        third.start()
        third.join(0.2)
        assert third.is_alive()
        gate.set()
        third.join(10)
        assert not third.is_alive()
    assert [path.name for path in started] == ["1", "2", "3"]


def test_many_threads_leave_the_rights_of_files_alone(tmp_path):
    before = os.umask(0o027)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with PictureWriter(threads=8) as writer:
            for number in range(200):
                writer.write(tmp_path / f"{number}.png", np.zeros((2, 2, 3), np.uint8))
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
        assert os.umask(0o027) == 0o027
    finally:
        sys.setswitchinterval(interval)
        os.umask(before)
