"""CLIP: loading by name and from files, scoring with a gradient, training a small one."""

import copy
import hashlib
import json
import pickle
import re
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from generations.clip import PROMPT, ClipTrainSettings, load_clip, loading, save_clip, train_clip
from generations.clip.model import SmallTokenizer, used_tokens
from generations.efficientnet import PACKAGE, LiteNetwork, load_lite, package_weights
from generations.errors import UserError
from generations.rewards.clip_score import clip_score

VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
CAPTIONS = ["a red ball on the beach", "two small blue cats."]


def installed() -> bool:
    try:
        return bool(metadata.version(PACKAGE))
    except metadata.PackageNotFoundError:
        return False


def make_network(seed: int = 0, **changes) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = open_clip.CLIP(**copy.deepcopy(VIT | changes)).eval()
        for parameter in network.parameters():  # fresh weights hardly tell two pictures apart
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.15)
    return network


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    (tmp_path / "vit.json").write_text(json.dumps(VIT))
    save_file(make_network().state_dict(), tmp_path / "vit.safetensors")
    return str(tmp_path / "vit.json"), str(tmp_path / "vit.safetensors")


@pytest.fixture
def clip(files):
    return load_clip(*files)


def random_pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Something like a photo: smooth colours, hard edges, a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(rng.uniform(3, 12) * x + rng.uniform(3, 12) * y) for _ in range(3)]
    values = 127 + 100 * np.stack(waves, axis=2) + rng.normal(0, 8, (height, width, 3))
    values[height // 4 : height // 2, width // 3 : width // 2] = (255, 0, 0)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def to_pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "height,width", [(32, 32), (64, 64), (256, 256), (50, 83), (90, 40), (20, 20)]
)
def test_pixels_are_seen_as_open_clip_sees_image_files(clip, height, width):
    transform = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    image = picture(height, width)
    expected = transform(image)[None]
    # Pillow filters in two passes and rounds and clips to 8 bits after each, not once at the end
    difference = (clip.preprocess(to_pixels(image)) - expected).abs()
    assert difference.mean() < 1 / 255 / 0.26 and difference.max() < 0.2
    features = clip.network.encode_image(expected, normalize=True)
    assert clip.encode_images(to_pixels(image)) == pytest.approx(features, abs=0.01)


def test_squashing_models_are_fed_squashed_pictures(files, tmp_path):
    means = {"mean": [0.5] * 3, "std": [0.5] * 3}
    preprocess = {"resize_mode": "squash", "interpolation": "bilinear", **means}
    config = {"model_cfg": VIT, "preprocess_cfg": preprocess}
    (tmp_path / "squash.json").write_text(json.dumps(config))
    clip = load_clip(str(tmp_path / "squash.json"), files[1])
    image = picture(50, 83)
    expected = image_transform_v2(PreprocessCfg(size=32, **preprocess), is_train=False)(image)[None]
    assert clip.preprocess(to_pixels(image)) == pytest.approx(expected, abs=2 / 255 / 0.5)


@pytest.mark.parametrize("height, width", [(40, 40), (61, 90), (20, 31)])
def test_deterministic_mode_sees_the_same(clip, height, width):
    pixels = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    want = clip.preprocess(pixels)
    torch.use_deterministic_algorithms(True)
    try:
        torch.testing.assert_close(clip.preprocess(pixels), want, rtol=0, atol=1e-4)
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_gradient_reaches_the_pixels(clip):
    pixels = random_pixels(2, 3, 48, 48).mul(0.6).add(0.2).requires_grad_()
    texts = [f"{word} ball" for word in ("red", "blue", "a small", "one big", "every", "no")]
    cosines = clip.encode_images(pixels.detach()) @ clip.encode_text(texts, PROMPT).T
    captions = [texts[i] for i in cosines.argmax(dim=1)]  # below zero there is no gradient
    clip_score(clip, pixels, captions).sum().backward()
    assert torch.isfinite(pixels.grad).all() and (pixels.grad.abs().amax((1, 2, 3)) > 0).all()
    direction = pixels.grad / pixels.grad.norm()
    step = 0.05
    with torch.no_grad():
        up, down = (
            clip_score(clip, pixels + sign * step * direction, captions).sum() for sign in (1, -1)
        )
    assert (up - down) / (2 * step) == pytest.approx(pixels.grad.norm().item(), rel=0.02)


def test_the_model_is_frozen_and_stays_in_eval_mode(clip):
    nn.ModuleList([clip]).train()
    assert not any(module.training for module in clip.modules())
    assert not any(parameter.requires_grad for parameter in clip.parameters())


def test_features_have_length_one_and_the_order_of_captions(clip):
    texts, images = clip.encode_text(CAPTIONS), clip.encode_images(random_pixels(2, 3, 40, 40))
    assert texts.norm(dim=1) == pytest.approx(torch.ones(2), abs=1e-5)
    assert images.norm(dim=1) == pytest.approx(torch.ones(2), abs=1e-5)
    assert clip.encode_text(CAPTIONS[::-1]).flip(0) == pytest.approx(texts, abs=1e-5)
    assert not torch.allclose(texts[0], texts[1], atol=1e-2)


def test_a_long_caption_is_cropped_to_the_context_length(clip):
    words = ["red"] * 9 + [
        "blue"
    ]  # ten words, with start and end as many tokens as there is room for
    longer = clip.encode_text([" ".join([*words, *["green"] * 500])])
    assert torch.equal(longer, clip.encode_text([" ".join(words)]))
    assert not torch.equal(longer, clip.encode_text([" ".join(words[:-1])]))


@pytest.mark.parametrize(
    "pixels",
    [random_pixels(3, 32, 32), random_pixels(1, 1, 32, 32), torch.zeros(1, 3, 32, 32).byte()],
)
def test_what_is_no_batch_of_pictures_is_refused(clip, pixels):
    with pytest.raises(ValueError, match=r"pixels must be \(B, 3, H, W\)"):
        clip.encode_images(pixels)


# --- the score -----------------------------------------------------------------------------------


def test_the_score_is_open_clips_cosine_with_the_prompt(clip):
    pixels = random_pixels(2, 3, 32, 32)
    tokens = open_clip.SimpleTokenizer(context_length=12)
    texts = tokens(["A photo depicts " + caption for caption in CAPTIONS])
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    images = clip.network.encode_image((pixels - mean) / std, normalize=True)
    cosines = (images * clip.network.encode_text(texts, normalize=True)).sum(1)
    expected = [250 * max(cosine, 0) for cosine in cosines.tolist()]
    assert clip_score(clip, pixels, CAPTIONS).tolist() == pytest.approx(expected, abs=1e-3)
    other = clip_score(clip, pixels, CAPTIONS, prompt="")
    assert not torch.allclose(other, clip_score(clip, pixels, CAPTIONS), atol=1e-2)


def test_a_negative_cosine_scores_nothing(clip, monkeypatch):
    cosines = torch.tensor([-0.5, 0.0, 0.3, 1.0])
    monkeypatch.setattr(clip, "encode_images", lambda pixels: cosines[:, None])
    monkeypatch.setattr(clip, "encode_text", lambda captions, prompt: torch.ones(4, 1))
    scores = clip_score(clip, torch.zeros(4, 3, 8, 8), list("abcd"))
    assert scores.tolist() == pytest.approx([0, 0, 75, 250])
    with pytest.raises(ValueError, match="4 pictures, but 3 captions"):
        clip_score(clip, torch.zeros(4, 3, 8, 8), list("abc"))


# --- weights from files --------------------------------------------------------------------------


def as_pth(state, path: Path) -> None:
    torch.save(state, path)


def as_training_checkpoint(state, path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": state[key] for key in state}}, path)


@pytest.mark.parametrize("write", [save_file, as_pth, as_training_checkpoint])
def test_every_kind_of_file_gives_the_same_model(clip, files, tmp_path, write):
    path = tmp_path / ("again.safetensors" if write is save_file else "again.pt")
    write(make_network().state_dict(), path)
    again = load_clip(files[0], str(path))
    assert torch.equal(again.encode_text(CAPTIONS), clip.encode_text(CAPTIONS))


def traced_archive(path: Path, **changes) -> nn.Module:
    """A TorchScript archive with the tensors of a CLIP, as OpenAI published them."""
    network = make_network(**changes).half().float()
    mask = network.attn_mask
    del network.attn_mask
    network.attn_mask = mask  # no buffer, as it was none in OpenAI's code
    inputs = {
        "encode_image": torch.zeros(1, 3, 32, 32),
        "encode_text": torch.ones(1, 12, dtype=torch.long),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch deprecates the format
        torch.jit.save(torch.jit.trace_module(network, inputs, check_trace=False), path)
    return network


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_openais_own_archives_load_with_their_activation(files, tmp_path, monkeypatch):
    heads_of_64 = {"vision_cfg": VIT["vision_cfg"] | {"head_width": 64}}
    archive = tmp_path / "ViT.pt"
    network = traced_archive(archive, quick_gelu=True, **heads_of_64)
    (tmp_path / "like.json").write_text(json.dumps(VIT | heads_of_64))
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(loading, "_openai_checksums", lambda: {checksum})
    clip = load_clip(str(tmp_path / "like.json"), str(archive))
    pixels = random_pixels(2, 3, 32, 32)
    expected = network.encode_image(clip.preprocess(pixels), normalize=True).detach()
    assert clip.encode_images(pixels) == pytest.approx(expected, abs=1e-5)


def test_an_archive_of_unknown_origin_is_refused(files, tmp_path):
    traced_archive(tmp_path / "ViT.pt")
    with pytest.raises(UserError, match="TorchScript archive, which can run code"):
        load_clip(files[0], str(tmp_path / "ViT.pt"))


def test_the_published_checksums_are_known():
    known = loading._openai_checksums()
    assert len(known) >= 9 and all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in known)


class Trap:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(files, tmp_path, how):
    target, path = tmp_path / "sprung", tmp_path / "trap.pt"
    state = make_network().state_dict() | {"trap": Trap(target)}
    if how == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(Trap(target), protocol=2))
    with pytest.raises(UserError, match=r"trap\.pt cannot be read as weights"):
        load_clip(files[0], str(path))
    assert not target.exists()


def damaged(path: Path) -> None:
    save_file(make_network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])


def of_another_size(path: Path) -> None:
    save_file(make_network(embed_dim=24).state_dict(), path)


def incomplete(path: Path) -> None:
    state = make_network().state_dict()
    del state["ln_final.weight"]
    save_file(state, path)


@pytest.mark.parametrize("write", [damaged, of_another_size, incomplete, lambda path: path.touch()])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_that_do_not_fit_are_named(files, tmp_path, write, suffix):
    path = tmp_path / f"bad{suffix}"
    write(path)
    with pytest.raises(
        UserError, match=f"bad{suffix} cannot be read as weights of .*vit.json"
    ) as e:
        load_clip(files[0], str(path))
    assert "\n" not in str(e.value)


# --- names and tags ------------------------------------------------------------------------------


@pytest.fixture
def small_vit_b32(monkeypatch):
    """ViT-B-32 as a name, but small."""
    monkeypatch.setattr(loading, "_named_config", lambda name: copy.deepcopy(VIT))
    small = open_clip.SimpleTokenizer(context_length=12)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: small)


@pytest.mark.parametrize("tag,quick", [("openai", True), ("laion2b_s34b_b79k", False)])
def test_a_tag_brings_its_activation_function(files, monkeypatch, small_vit_b32, tag, quick):
    # open_clip itself builds GELU for "ViT-B-32" whatever the tag, and only warns
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda config: files[1])
    pixels = random_pixels(1, 3, 32, 32)
    clip = load_clip("ViT-B-32", tag)
    network = make_network(quick_gelu=quick)
    expected = network.encode_image(clip.preprocess(pixels), normalize=True).detach()
    assert clip.encode_images(pixels) == pytest.approx(expected, abs=1e-5)


def quick_gelu_of(clip) -> bool:
    return any("QuickGELU" in type(module).__name__ for module in clip.network.modules())


def published(path: Path, half: bool = False, keys: bool = False) -> str:
    """Weights as OpenAI's state dicts have them: products in float16, norms not; three numbers."""
    state = make_network().state_dict()
    products = ("conv1.weight", "proj", "c_fc.weight")
    state = {
        name: value.half() if half and name.endswith(products) else value
        for name, value in state.items()
    }
    numbers = {"input_resolution": 32, "context_length": 12, "vocab_size": 49408}
    state |= {name: torch.tensor(value) for name, value in numbers.items()} if keys else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("name", "how", "quick"),
    [
        ("mine", {"half": True}, True),
        ("mine", {"keys": True}, True),
        ("ViT-B-32-openai", {}, True),
        ("models--timm--vit.openai/snapshots/a/open_clip_model", {}, True),
        ("ViT-B-32-laion2b_s34b", {}, False),
        ("models--laion--CLIP/snapshots/a/open_clip_model", {}, False),
    ],
)
def test_a_local_file_tells_its_activation(tmp_path, small_vit_b32, name, how, quick, suffix):
    path = published(tmp_path / f"{name}{suffix}", **how)
    assert quick_gelu_of(load_clip("ViT-B/32", path)) == quick


def test_a_local_file_that_does_not_tell_its_activation_is_refused(tmp_path, small_vit_b32):
    path = published(tmp_path / "mine.pt")
    with pytest.raises(UserError, match=r"mine\.pt: the activation .*clip\.quick_gelu 1 .* or 0"):
        load_clip("ViT-B-32", path)
    assert quick_gelu_of(load_clip("ViT-B-32", path, quick_gelu="1"))
    assert not quick_gelu_of(load_clip("ViT-B-32", path, quick_gelu="0"))
    for quick in (True, False):
        content = {"model_cfg": {**VIT, "quick_gelu": quick}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
        assert quick_gelu_of(load_clip("ViT-B-32", path)) == quick


def test_texts_longer_than_the_context_are_told_once(clip, caplog):
    assert not caplog.text
    for _ in range(2):
        clip.encode_text(["a dog", "a dog " * 9, "a cat " * 9])
    assert caplog.text.count("CLIP reads at most 12 tokens; 2 of these 3 texts") == 1
    assert clip.cropped_texts == 4


def test_missing_weights_say_where_to_get_them_and_how_to_do_without(monkeypatch):
    def offline(config):
        raise FileNotFoundError("no network")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", offline)
    with pytest.raises(UserError) as e:
        load_clip("ViT-B-32", "openai")
    message = str(e.value)
    assert "\n" not in message
    for part in (
        "open_clip_model.safetensors of https://huggingface.co/timm/vit_base_patch32_clip_224.openai",
        "ViT-B-32.pt",
        "clip.model ViT-B-32-quickgelu clip.weights /path",
        "use_clip_score 0",
        "no network",
    ):
        assert part in message


@pytest.mark.parametrize(
    "model,weights,message",
    [
        (
            "ViT-B-31",
            "openai",
            "neither a .json file nor a model of open_clip; did you mean ViT-B-32",
        ),
        ("ViT-B-32", "opnai", r"'opnai' is neither a file nor a tag of ViT-B-32 \(tags: openai"),
        ("ViT-B-32", "", "neither a file nor a tag"),
        ("absent.json", "openai", "clip.model: absent.json does not exist"),
    ],
)
def test_wrong_names_are_explained(model, weights, message):
    with pytest.raises(UserError, match=message):
        load_clip(model, weights)


@pytest.mark.parametrize(
    "config,message",
    [
        ("{", "is not valid JSON"),
        ([], "is not an open_clip model config"),
        ({"embed_dim": 8, "text_cfg": {}}, "vision_cfg missing"),
        (VIT | {"vision_cfg": {"patches": 8}}, "open_clip cannot build it: .*patches"),
        (VIT | {"text_cfg": VIT["text_cfg"] | {"heads": 7}}, "open_clip cannot build it"),
        ({"model_cfg": VIT, "token_ids": [5, 4]}, "ascending order"),
        ({"model_cfg": VIT, "token_ids": [5, "x"]}, "clip.model"),
        ({"model_cfg": VIT, "preprocess_cfg": {"resize_mode": "longest"}}, "resize_mode"),
        ({"model_cfg": VIT, "preprocess_cfg": {"interpolation": "magic"}}, "magic"),
    ],
)
def test_a_config_that_is_wrong_is_named(files, tmp_path, config, message):
    path = tmp_path / "wrong.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(UserError, match=message) as e:
        load_clip(str(path), files[1])
    assert "wrong.json" in str(e.value) and "\n" not in str(e.value)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tmp_path):
    text = VIT["text_cfg"] | {"vocab_size": 100}
    (tmp_path / "few.json").write_text(json.dumps(VIT | {"text_cfg": text}))
    save_file(make_network(text_cfg=text).state_dict(), tmp_path / "few.safetensors")
    with pytest.raises(UserError, match="vocab_size 100 is less than the tokenizer's 49408 tokens"):
        load_clip(str(tmp_path / "few.json"), str(tmp_path / "few.safetensors"))


def test_a_config_needs_its_own_weights(files):
    with pytest.raises(UserError, match="'openai' is not a file; give the weights that belong to"):
        load_clip(files[0], "openai")


# --- the small model -----------------------------------------------------------------------------

COLORS = {
    "red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230), "yellow": (230, 220, 50),
}  # fmt: skip
TINY = ClipTrainSettings(train_steps=200, batch_size=16, embed_dim=16, text_layers=1)


def color_world(count: int, seed: int) -> tuple[np.ndarray, list[list[str]], np.ndarray]:
    """Pictures whose halves have colours; (images, captions, number of the pair of colours)."""
    rng = np.random.default_rng(seed)
    names = list(COLORS)
    pairs = rng.integers(len(names), size=(count, 2))
    images = np.zeros((count, 32, 32, 3), np.int64)
    images[:, :, :16] = np.array([COLORS[names[i]] for i in pairs[:, 0]])[:, None, None]
    images[:, :, 16:] = np.array([COLORS[names[i]] for i in pairs[:, 1]])[:, None, None]
    images = (images + rng.integers(-15, 16, images.shape)).clip(0, 255).astype(np.uint8)
    phrases = ("{} beside {}.", "left is {} and right is {}", "we see {} , then {}")
    captions = [
        [text.format(names[i], names[j]) for text in phrases[: rng.integers(1, 4)]]
        for i, j in pairs
    ]
    return images, captions, pairs @ (len(names), 1)


@pytest.fixture(scope="module")
def trained():
    images, captions, _ = color_world(300, seed=0)
    logs = []
    clip = train_clip(images, captions, TINY, seed=3, log=lambda step, x: logs.append((step, x)))
    return clip, logs


def to_batch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255


@pytest.mark.slow
def test_a_small_clip_learns_to_find_captions(trained):
    clip, logs = trained
    images, captions, kinds = color_world(200, seed=1)
    features = clip.encode_images(to_batch(images))
    texts = clip.encode_text([own[0] for own in captions], PROMPT)
    best = (features @ texts.T).argmax(dim=1).numpy()
    assert (kinds[best] == kinds).mean() > 0.7  # of 16 kinds
    assert [step for step, _ in logs] == list(range(20, 201, 20))
    assert logs[-1][1]["loss"] < logs[0][1]["loss"] / 2 and logs[-1][1]["accuracy"] > 0.5


def test_the_score_falls_with_what_is_wrong(trained):
    clip, _ = trained
    images, captions, _ = color_world(100, seed=2)
    own = [texts[0] for texts in captions]
    pixels = to_batch(images)
    right = clip_score(clip, pixels, own).mean()
    assert right > clip_score(clip, pixels.roll(1, dims=1), own).mean() + 25  # other colours
    assert right > clip_score(clip, pixels.flip(3), own).mean() + 25  # other sides
    assert right > clip_score(clip, torch.rand_like(pixels), own).mean() + 25


def test_what_is_saved_scores_the_same(trained, tmp_path):
    clip, _ = trained
    again = load_clip(*map(str, save_clip(clip, tmp_path)))
    images, captions, _ = color_world(20, seed=4)
    own = [texts[0] for texts in captions]
    expected = clip_score(clip, to_batch(images), own)
    assert torch.equal(clip_score(again, to_batch(images), own), expected)
    assert {path.name for path in tmp_path.iterdir()} == {"clip.json", "clip.safetensors"}


def test_training_is_decided_by_the_seed():
    images, captions, _ = color_world(32, seed=0)
    few = replace(TINY, train_steps=3)
    before = torch.random.get_rng_state()
    first, same, other = (
        train_clip(images, captions, few, seed=seed).encode_text(["red"]) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_small_tokenizer_keeps_what_it_saw_and_marks_the_rest():
    texts = ["A photo depicts a red ball.", "two cats, sleeping"]
    full = open_clip.SimpleTokenizer(context_length=12)
    small = SmallTokenizer(used_tokens(texts), 12)
    ids, small_ids = full(texts), small(texts)
    assert small_ids.max() == small.vocab_size - 1 and small.vocab_size < 20
    assert torch.equal(small_ids == 0, ids == 0)  # padding
    assert torch.equal(small_ids.argmax(1), ids.argmax(1))  # the end, where CLIP reads a caption
    pairs = set(zip(ids.flatten().tolist(), small_ids.flatten().tolist(), strict=True))
    assert len(pairs) == len({i for i, _ in pairs}) == len({j for _, j in pairs})
    assert small(["a zebra"])[0].tolist()[1:4] == [small_ids[0, 4], 1, small.vocab_size - 1]


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda i, c: (i[:, :20, :20], c), "20 x 20 pixels.*multiple of 32"),
        (lambda i, c: (i[:, :, :16], c), "16 x 32 pixels"),
        (lambda i, c: (i, c[:-1]), "32 images, but captions for 31"),
        (lambda i, c: (i, [*c[:5], [], *c[6:]]), r"image 5 \(counted from 0\) has no caption"),
        (lambda i, c: (i[:8], c[:8]), "the number of images, 8, not 16"),
    ],
)
def test_pictures_that_cannot_be_trained_on_are_refused(change, message):
    images, captions, _ = color_world(32, seed=0)
    with pytest.raises(UserError, match=message):
        train_clip(*change(images, captions), TINY, seed=0)


def test_diverged_training_stops():
    images, captions, _ = color_world(32, seed=0)
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step .*; lower clip.lr"):
        train_clip(images, captions, replace(TINY, lr=1e30), seed=0)


# --- a backbone ----------------------------------------------------------------------------------


@pytest.mark.skipif(not installed(), reason="the package of weights is not installed")
def test_a_backbone_sees_and_its_head_learns(tmp_path):
    images, captions, kinds = color_world(300, seed=0)
    captions = [own[:1] for own in captions]
    images = images.repeat(2, axis=1).repeat(2, axis=2)
    how = replace(TINY, backbone="efficientnet-lite0", blocks=(0, 15), image_width=32, lr=1e-2)
    clip = train_clip(images[:250], captions[:250], how, seed=0)
    again = load_clip(*map(str, save_clip(clip, tmp_path)))
    pixels = to_batch(images[250:]).requires_grad_()
    features = again.encode_images(pixels)
    assert torch.equal(features, clip.encode_images(pixels))
    texts = again.encode_text([own[0] for own in captions[250:]], PROMPT)
    features.sum().backward()
    assert pixels.grad.abs().amax((1, 2, 3)).min() > 0
    unordered = np.array([sorted(divmod(kind, len(COLORS))) for kind in kinds[250:]])
    best = (features @ texts.T).argmax(dim=1)  # pictures are mirrored: sides are not learned
    assert (unordered[best] == unordered).all(axis=1).mean() > 0.6  # of 10 kinds
    assert (tmp_path / "clip.safetensors").stat().st_size < 300_000  # without the backbone
    network = LiteNetwork()
    load_lite(network, package_weights())
    own = again.network.visual.backbone[-1].state_dict()
    assert all(torch.equal(own[k], v) for k, v in network.blocks[15].state_dict().items())


def test_a_backbone_that_is_not_there_is_refused():
    images, captions, _ = color_world(32, seed=0)
    for change, message in (
        ({"backbone": "resnet"}, "clip.backbone must be efficientnet-lite0"),
        ({"backbone": "efficientnet-lite0", "blocks": (16,)}, r"clip.blocks \[16\]: choose blocks"),
        ({"backbone": "efficientnet-lite0"}, r"clip.blocks \[\]: choose blocks from 0 to 15"),
    ):
        with pytest.raises(UserError, match=message):
            train_clip(images, captions, replace(TINY, **change), seed=0)
