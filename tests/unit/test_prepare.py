import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from generations import cli, prepare
from generations.checkpoint import load_generator_weights, read_tensors
from generations.config import checkout_root, load_config
from generations.datasets import (
    CaptioningDataset,
    CaptionTokenizer,
    collate,
    load_centroids,
    open_cluster_store,
    open_feature_store,
    read_karpathy,
)
from generations.errors import UserError
from generations.features import ExtractorSettings, build_extractor, load_image
from generations.image_generator import build_generator
from generations.image_generator.trainer import GeneratorTrainer

G, S, K = 4, 16, 10
D = (S // G) ** 2 * 3
SIZES = [(31, 47), (64, 20), (16, 16), (1, 1), (90, 91)]
LONG = "word " * 500
ODD = "and/or 🐶 «naïve»\ufffd"


@pytest.fixture
def data(tmp_path):
    """A folder of photographs of odd sizes, with captions."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(15):
        width, height = SIZES[number % len(SIZES)]
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        folder = tmp_path / "images" / ("a", "b")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{number:03d}.{('jpg', 'png')[number % 3 == 0]}"
        Image.fromarray(pixels).save(folder / name)
        captions = (f"a photo of {number}", LONG, ODD)
        images.append(
            {
                "filepath": folder.name,
                "filename": name,
                "cocoid": 100 + number,
                "split": ("train", "train", "train", "val", "test")[number % 5],
                "sentences": [{"tokens": caption.split()} for caption in captions],
            }
        )
    write_captions(tmp_path, images)
    return tmp_path


def write_captions(folder, images):
    (folder / "captions.json").write_text(json.dumps({"images": images}))


def read_captions(folder):
    return json.loads((folder / "captions.json").read_text())["images"]


def run(folder, step, *more):
    prepare.main(
        [
            *(step, "images_dir", str(folder / "images"), "data_dir", str(folder / "out")),
            *("captions_file", str(folder / "captions.json"), "features.image_size", str(S)),
            *("grid_size", str(G), "grid_feat_dim", str(D), "grid_cluster_num", str(K)),
            *("num_workers", "0", "features.batch_size", "4", *more),
        ]
    )


def run_first_steps(folder, *more):
    for step in ("captions", "features", "clusters"):
        run(folder, step, *more)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


SUFFIXES, SIDES = {"packed": ".packed", "hdf5": ".h5"}, ("train", "valid")
FEATURES = ("maskrcnn_train_grid8.packed", "maskrcnn_valid_grid8.packed")
CLUSTERS = ("cluster_ids_train.pkl", "cluster_ids_valid.pkl")


def test_from_images_and_captions_to_batches(data):
    run_first_steps(data)
    out = data / "out"
    records = read_karpathy(out / "dataset_coco.json")
    features = open_feature_store([out / name for name in FEATURES], G, D)
    clusters = open_cluster_store([out / name for name in CLUSTERS], G, K)
    centroids = load_centroids(out / "centroids.npy", K, D)
    patches = build_extractor(ExtractorSettings("patches", S, G, D))
    assert len(records) == 15
    for record in records:
        expected = patches([load_image(data / "images" / record.path, S)])
        found = features.read(record.name)
        rounded = expected.reshape(G * G, D).astype(np.float16)
        np.testing.assert_array_equal(found, rounded)
        distances = np.linalg.norm(found[:, None] - centroids, axis=2)
        ids = clusters.read(record.name)
        np.testing.assert_allclose(distances[range(G * G), ids], distances.min(1), rtol=1e-5)
    in_train = open_feature_store([out / FEATURES[0]], G, D)
    assert sorted(in_train.names()) == [r.name for r in records if r.split == "train"]

    dataset = CaptioningDataset(records, CaptionTokenizer(), clusters, features, 17)
    batch = collate([dataset[0, index] for index in range(len(dataset))])
    assert batch.features.shape == (15, G * G, D)
    assert batch.references[0, 1, -1] != 0  # the long caption is cropped
    assert any("🐶" in record.captions[2] for record in records)

    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["captions"]["images"] == {"train": 9, "restval": 0, "val": 3, "test": 3}
    assert manifest["features"]["extractor"]["name"] == "patches"
    assert manifest["clusters"]["clusters"] == K
    assert "torch" in manifest["libraries"]


def test_same_input_gives_the_same_files(data):
    run_first_steps(data)
    first = contents(data / "out")
    for name in (*CLUSTERS, "centroids.npy", "dataset_coco.json"):
        (data / "out" / name).unlink()
    run_first_steps(data)
    assert contents(data / "out") == first


def break_missing(images, folder):
    (folder / "images" / images[4]["filepath"] / images[4]["filename"]).unlink()


def break_truncated(images, folder):
    path = folder / "images" / images[6]["filepath"] / images[6]["filename"]
    assert path.suffix == ".png"
    path.write_bytes(path.read_bytes()[:-200])


def break_zero_bytes(images, folder):
    (folder / "images" / images[1]["filepath"] / images[1]["filename"]).write_bytes(b"")


def break_no_captions(images, folder):
    images[2]["sentences"] = []


def break_empty_caption(images, folder):
    images[2]["sentences"][1]["tokens"] = [" "]


breakages = pytest.mark.parametrize(
    ("damage", "named"),
    [
        (break_missing, "004.jpg is missing"),
        (break_truncated, "006.png cannot be read"),
        (break_zero_bytes, "001.jpg cannot be read"),
        (break_no_captions, "002.jpg: has no captions"),
        (break_empty_caption, "002.jpg: caption 2 is empty"),
    ],
)


@breakages
def test_bad_input_is_named_and_earlier_outputs_stay(data, damage, named):
    run_first_steps(data)
    before = contents(data / "out")
    images = read_captions(data)
    damage(images, data)
    write_captions(data, images)
    with pytest.raises(UserError) as error:
        run(data, "all")
    assert named in str(error.value) and "features.skip_bad 1" in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(data / "out") == before


@breakages
def test_bad_input_can_be_left_out(data, damage, named, caplog):
    images = read_captions(data)
    damage(images, data)
    write_captions(data, images)
    run_first_steps(data, "features.skip_bad", "1")
    assert named in caplog.text
    records = read_karpathy(data / "out/dataset_coco.json")
    assert len(records) == 14
    features = open_feature_store([data / "out" / name for name in FEATURES], G, D)
    assert set(features.names()) == {record.name for record in records}


def test_image_that_went_bad_later_stops_the_features(data):
    run_first_steps(data)
    before = contents(data / "out")
    break_truncated(read_captions(data), data)
    with pytest.raises(UserError, match=r"006\.png cannot be read .* run the step captions"):
        run(data, "features")
    assert contents(data / "out") == before


@pytest.mark.parametrize("store", ["packed", "hdf5"])
def test_killed_features_go_on(data, monkeypatch, store):
    run(data, "captions")
    run(data, "features", "features.store", store)
    undisturbed = contents(data / "out")
    files = [data / "out" / f"maskrcnn_{side}_grid8{SUFFIXES[store]}" for side in SIDES]
    for file in files:
        file.unlink()
    monkeypatch.setattr("generations.datasets.feature_writers.PART_SIZE", 2)
    calls = []

    def kill_at_the_third(self, pictures):
        calls.append(len(pictures))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, pictures)

    patches = type(build_extractor(ExtractorSettings("patches", S, G, D)))
    original = patches.__call__
    monkeypatch.setattr(patches, "__call__", kill_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(data, "features", "features.store", store)
    assert calls == [4, 4, 1] and not any(file.exists() for file in files)
    run(data, "features", "features.store", store)
    assert sum(calls[3:]) == 15 - 8  # what was written before is not made again
    assert contents(data / "out") == undisturbed


def test_features_are_made_again_only_when_needed(data, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    run_first_steps(data)
    before = contents(data / "out")
    run(data, "features")
    assert caplog.text.count("is up to date") == 2
    assert contents(data / "out") == before
    Image.new("RGB", (9, 9), "red").save(data / "images/a/000.png")  # of the train split
    caplog.clear()
    run(data, "features")
    assert caplog.text.count("is up to date") == 1
    store = open_feature_store([data / "out" / FEATURES[0]], G, D)
    assert store.read("000").reshape(-1, 3)[:, 0].min() == 2.0


def test_too_many_clusters_leave_the_codebook(data):
    run_first_steps(data)
    before = contents(data / "out")
    with pytest.raises(UserError, match="cannot make grid_cluster_num 500 clusters from"):
        run(data, "clusters", "grid_cluster_num", "500")
    assert contents(data / "out") == before


def test_features_of_another_size_are_refused(data):
    run_first_steps(data)
    with pytest.raises(UserError, match=r"shape \(4, 4, 48\), not \(4, 4, 12\)"):
        run(data, "clusters", "grid_feat_dim", "12")
    with pytest.raises(UserError, match="set grid_feat_dim 48"):
        run(data, "features", "grid_feat_dim", "12")


def test_split_files_of_the_user_are_not_overwritten(data):
    captions = str(data / "captions.json")
    before = (data / "captions.json").read_bytes()
    with pytest.raises(UserError, match=r"was not made by prepare\.py and would be overwritten"):
        run(data, "captions", "dataset_coco", captions)
    assert (data / "captions.json").read_bytes() == before
    run(data, "features", "dataset_coco", captions)  # but it can be used as it is
    assert not (data / "out/dataset_coco.json").exists()


def test_vocabulary_has_what_the_train_captions_have(data):
    file = data / "out" / "vocab.txt"
    run(data, "captions")
    with pytest.raises(UserError, match="must be a new file in data_dir, such as"):
        run(data, "vocabulary", "vocab_file", str(data / "vocab.txt"))
    run(data, "vocabulary", "vocab_file", str(file))
    small, whole = CaptionTokenizer(file), CaptionTokenizer()
    assert len(small) < 1200
    for record in read_karpathy(data / "out/dataset_coco.json"):
        if record.split == "train":
            for text in record.captions:
                assert small.decode(small.encode(text)) == whole.decode(whole.encode(text))
    assert small.decode(small.encode("zebras.")) == "zebras."  # spelt
    run(data, "vocabulary", "vocab_file", str(file))  # its own file is made again
    file.rename(data / "out" / "other.txt")
    (data / "out" / "manifest.json").unlink()
    with pytest.raises(UserError, match="other files are not overwritten"):
        run(data, "vocabulary", "vocab_file", str(data / "out" / "other.txt"))


def test_sources_are_asked_for(data):
    run(data, "captions")
    for step in ("all", "captions"):
        with pytest.raises(UserError, match="images_dir is empty: set it to the folder"):
            prepare.main([step])
    with pytest.raises(UserError, match="captions_file is empty"):
        prepare.main(["all", "images_dir", "/nowhere"])
    with pytest.raises(UserError, match="/nowhere is not a folder"):
        run(data, "features", "images_dir", "/nowhere")
    with pytest.raises(UserError, match=r"dataset_coco\.json does not exist"):
        run(data, "features", "data_dir", "/nowhere")


GENERATOR = (
    *("generator.image_size", "16", "generator.channels", "4", "generator.style_channels", "4"),
    *("generator.bottleneck_channels", "4", "generator.train_steps", "3", "device", "cpu"),
    *("generator.batch_size", "2", "generator.adversarial_weight", "0"),
)


def test_image_generator_is_trained_and_loads(data):
    run(data, "all", *GENERATOR)
    out = data / "out"
    cfg = load_config(
        overrides=["grid_size", str(G), "grid_feat_dim", str(D), "seed", "9", *GENERATOR]
    )
    generator = build_generator(cfg)
    load_generator_weights(generator, out / "generator.pth")
    assert all(name.startswith("module.") for name in read_tensors(out / "generator.pth"))
    fresh = build_generator(
        load_config(overrides=["grid_size", str(G), "grid_feat_dim", str(D), *GENERATOR])
    )
    trained = generator.to_RGB_blocks[0].conv.weight
    assert not torch.equal(trained, fresh.to_RGB_blocks[0].conv.weight)
    manifest = json.loads((out / "manifest.json").read_text())
    facts = manifest["generator"]
    assert facts["steps"] == 3 and facts["l1"] > 0 and facts["psnr"] > 0
    assert -1 <= facts["ssim"] < 1 and 0 < facts["distance"] < 4
    with Image.open(out / "reconstructions.png") as shown:
        assert shown.size == (4 + 3 * 36, 4 + 20)  # three pairs of val, 16 x 16 each


@pytest.mark.slow
def test_killed_generator_training_goes_on(data, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    # with a discriminator, and pictures read by other processes
    full = (*GENERATOR, "generator.adversarial_weight", "1", "generator.train_steps", "6")
    full += ("generator.discriminator_channels", "4", "generator.report_every", "2")
    run_first_steps(data)
    run(data, "generator", *full)
    undisturbed = {
        name: value.clone() for name, value in read_tensors(data / "out/generator.pth").items()
    }

    def is_undisturbed():
        found = read_tensors(data / "out/generator.pth")
        return all(torch.equal(value, found[name]) for name, value in undisturbed.items())

    for name in ("generator.pth", "generator_training.pth"):
        (data / "out" / name).unlink()
    original = GeneratorTrainer.step

    def kill_in_the_sixth(self, *batch):
        if self.steps == 5:
            raise KeyboardInterrupt
        return original(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(GeneratorTrainer, "step", kill_in_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            run(data, "generator", *full)
    assert not (data / "out/generator.pth").exists()
    caplog.clear()
    run(data, "generator", *full, "num_workers", "2", "generator.report_every", "1")
    assert "resuming after step 4" in caplog.text
    assert is_undisturbed()
    # another recipe does not go on from there, nor does a damaged state
    caplog.clear()
    run(data, "generator", *full, "generator.lr", "1e-3")
    assert "resuming" not in caplog.text and not is_undisturbed()
    (data / "out/generator_training.pth").write_bytes(b"PK")
    run(data, "generator", *full)
    assert "training starts from the beginning" in caplog.text
    assert is_undisturbed()


def test_bad_image_leaves_the_earlier_generator(data):
    run(data, "all", *GENERATOR)
    before = contents(data / "out")
    for image in read_captions(data):
        if image["split"] == "train":
            break_zero_bytes([None, image], data)
    with pytest.raises(UserError, match=r"cannot be read"):
        run(data, "generator", *GENERATOR)
    assert contents(data / "out") == before


def test_mini_world_goes_the_same_road(tmp_path):
    prepare.main(["mini-world", "--sizes", "6", "2", "2", "data_dir", str(tmp_path)])
    prepare.main(
        [
            *("captions", "data_dir", str(tmp_path), "images_dir", str(tmp_path / "images")),
            *("captions_file", str(tmp_path / "dataset_mini.json"), "num_workers", "0"),
        ]
    )
    records = read_karpathy(tmp_path / "dataset_coco.json")
    assert [record.split for record in records] == ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    words = CaptionTokenizer(tmp_path / "vocab.txt")
    for record in records:
        assert 100 not in words.encode(record.captions[0])  # no word is unknown
        assert words.decode(words.encode(record.captions[0])) == record.captions[0].replace(
            " ,", ","
        )


def test_note_keeps_the_other_steps(data):
    run_first_steps(data)
    manifest = data / "out/manifest.json"
    manifest.write_text("[]")
    with pytest.raises(UserError, match=r"manifest\.json was not written by this program"):
        run(data, "clusters")


# --- the command line ----------------------------------------------------------------------------


def test_arguments_come_in_any_order(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("seed: 5\ntest_num: 4\n")

    def step(parser):
        parser.add_argument("step")

    for line in (
        f"all --config {config} seed 7",
        f"--local-rank 0 --config {config} all seed 7",
        f"all seed 7 --config={config} --local_rank=1",
    ):
        arguments, cfg = cli.parse("Title.\nMore.", line.split(), step)
        assert (arguments.step, cfg.seed, cfg.test_num) == ("all", 7, 4)
    assert cli.parse("", ["test_num", "-1"])[1].test_num == -1


def test_user_errors_end_in_one_line(capsys):
    def fail():
        raise UserError("captions a.json:\nwrong; mend it")

    with pytest.raises(SystemExit) as stop:
        cli.run(fail)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: captions a.json: wrong; mend it\n"


def test_user_errors_of_workers_end_in_one_line():
    text = (
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        'last):\n  File "x.py", line 1\ngenerations.errors.UserError: a.h5: wrong; mend it\n'
    )
    assert cli.one_line(UserError(text)) == "a.h5: wrong; mend it"


@pytest.mark.slow
def test_script_ends_with_one_line_and_status_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "prepare.py", "captions", "images_dir", str(tmp_path)],
        cwd=checkout_root() / "generations",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    *told, last = done.stderr.splitlines()
    assert last.startswith("error: captions_file is empty")
    assert len(told) == 1 and "device cpu" in told[0]  # where it runs
