"""The steps from raw images and captions to what training reads; `prepare.py` calls them.

Each step takes the configuration and where it runs, writes the files that the configuration names,
and adds an entry to data_dir/manifest.json. A file appears when it is whole; until then an earlier
one stays.
"""

import hashlib
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from generations.datasets import (
    FeatureStore,
    FeatureWriter,
    occurring_pieces,
    open_feature_store,
    open_feature_writer,
    read_karpathy,
    select_splits,
    write_array_pickle,
)
from generations.errors import UserError
from generations.features import (
    ClusterAssigner,
    Extractor,
    fit_kmeans,
    load_images,
    sample_cells,
)
from generations.files import atomic_path, write_text
from generations.pipelines.clip import train_small_clip
from generations.pipelines.extraction import configured_extractor
from generations.pipelines.generator import train_image_generator
from generations.pipelines.manifest import note, read_manifest
from generations.pipelines.sources import image_files
from generations.progress import progress_bar
from generations.runtime import Runtime, wait_for_all

logger = logging.getLogger(__name__)


# --- vocabulary ----------------------------------------------------------------------------------


def makes_vocabulary(cfg: CfgNode) -> bool:
    """Whether vocab_file is a file in data_dir that the step makes, or has made."""
    path = Path(cfg.vocab_file)
    if not cfg.vocab_file or path.parent != Path(cfg.data_dir):
        return False
    return not path.exists() or "vocabulary" in read_manifest(cfg)


def prepare_vocabulary(cfg: CfgNode, here: Runtime) -> None:
    """Write into vocab_file the pieces of BERT's vocabulary that the train captions have.

    Raises:
        UserError: vocab_file is not in data_dir, or was not made by this step.
    """
    if not makes_vocabulary(cfg):
        raise UserError(
            "vocab_file must be a new file in data_dir, such as "
            f"{Path(cfg.data_dir) / 'vocab.txt'}, not {cfg.vocab_file!r}; other files are not "
            "overwritten"
        )
    records = select_splits(read_karpathy(cfg.dataset_coco), "train")
    pieces = occurring_pieces(text for record in records for text in record.captions)
    write_text(cfg.vocab_file, "\n".join(pieces) + "\n")
    note(cfg, "vocabulary", pieces=len(pieces))
    logger.info("vocabulary: %s; set model.vocab_size %d", cfg.vocab_file, len(pieces))


# --- features ------------------------------------------------------------------------------------


def prepare_features(cfg: CfgNode, here: Runtime) -> None:
    """Write the grid features of the train images and of all others, each into its file.

    Several processes share the images; the files are the same. A killed run goes on where it was;
    what is there already is kept if images and settings are the same.
    """
    extractor, described, decisive = configured_extractor(cfg, here.device)
    found = image_files(cfg)
    train = {record.name: file for record, file in found if record.split == "train"}
    valid = {record.name: file for record, file in found if record.split != "train"}
    jobs = []  # made before the work starts, so that what is wrong with one shows at once
    for images, path in ((train, cfg.grid_feat_path_train), (valid, cfg.grid_feat_path_valid)):
        signature = _signature(decisive, images)
        writer = open_feature_writer(
            path,
            signature,
            list(images),
            (cfg.grid_size, cfg.grid_size, cfg.grid_feat_dim),
            cfg.features.dtype,
            *(cfg.features.batch_size, here.rank, here.world_size),
        )
        jobs.append((writer, images, signature))
    wait_for_all(here)  # all have seen what is missing before anything is added
    if here.is_main:
        for writer, _, _ in jobs:
            writer.start()
    wait_for_all(here)
    for writer, images, _ in jobs:
        _extract(cfg, extractor, writer, images, here)
    wait_for_all(here)
    if not here.is_main:
        return
    for writer, images, _ in jobs:
        writer.finish()
        logger.info("features: %d images in %s", len(images), writer.path)
    note(
        cfg,
        "features",
        extractor=described,
        dtype=cfg.features.dtype,
        train={"images": len(train), "signature": jobs[0][2]},
        valid={"images": len(valid), "signature": jobs[1][2]},
    )


def _extract(
    cfg: CfgNode,
    extractor: Extractor,
    writer: FeatureWriter,
    images: dict[str, Path],
    here: Runtime,
) -> None:
    """Add this process's share."""
    missing = writer.missing
    if writer.is_finished:
        logger.info("features: %s is up to date (%d images)", writer.path, len(images))
    elif writer.done:
        logger.info("features: resuming after %d of %d images", writer.done, len(images))
    names = iter(missing)
    batches = load_images(
        [images[name] for name in missing],
        *(extractor.image_size, cfg.features.batch_size, cfg.num_workers),
    )
    hidden = not here.is_main
    with progress_bar(len(images), writer.path.name, "image", writer.done, hidden) as bar:
        for batch in batches:
            for picture in batch:
                if isinstance(picture, UserError):
                    raise UserError(
                        f"{picture}; remove it from {cfg.dataset_coco}, or run the step captions "
                        "again with features.skip_bad 1"
                    )
            for grid in extractor(
                [picture for picture in batch if isinstance(picture, np.ndarray)]
            ):
                writer.add(next(names), grid)
            # the others are about as far
            bar.update(min(len(batch) * here.world_size, len(images) - bar.n))


def _signature(decisive: str, images: dict[str, Path]) -> str:
    """Of what the features depend on: the extractor with its weights, and the image files."""
    digest = hashlib.sha256(decisive.encode())
    for name, file in images.items():
        status = file.stat()
        digest.update(f"\n{name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


# --- codebook ------------------------------------------------------------------------------------


def prepare_clusters(cfg: CfgNode, here: Runtime) -> None:
    """Make the codebook from the train features, and write the cluster ids of all images.

    Raises:
        UserError: no features, features of another size, or fewer different cells than clusters.
    """
    sizes = (cfg.grid_size, cfg.grid_feat_dim)
    train = open_feature_store([cfg.grid_feat_path_train], *sizes)
    valid = open_feature_store([cfg.grid_feat_path_valid], *sizes)
    names = list(train.names())
    most = cfg.grid_cluster_num * cfg.clusters.max_points_per_centroid
    points = sample_cells(train.read, names, cfg.grid_size**2, most, cfg.seed)
    logger.info(
        "clusters: k-means on %d cells of %d images, K %d, %d iterations",
        *(len(points), len(names), cfg.grid_cluster_num, cfg.clusters.iterations),
    )
    centroids = fit_kmeans(points, cfg.grid_cluster_num, cfg.clusters.iterations, cfg.seed)
    del points
    assign = ClusterAssigner(centroids)
    ids = [_assign_all(assign, store, cfg.features.batch_size) for store in (train, valid)]
    quality = assign.quality()
    write_array_pickle(cfg.grid_cluster_id_path_train, ids[0])
    write_array_pickle(cfg.grid_cluster_id_path_valid, ids[1])
    with atomic_path(cfg.grid_cluster_centroids_path) as temporary:
        np.save(temporary, centroids)
    note(cfg, "clusters", seed=cfg.seed, iterations=cfg.clusters.iterations, **asdict(quality))
    logger.info(
        "clusters: inertia %.4g a cell, %d of %d clusters used, mean distance of a centroid to "
        "its nearest neighbour %.4g",
        *(quality.inertia, quality.used, quality.clusters, quality.nearest_centroid),
    )


def _assign_all(
    assign: ClusterAssigner, store: FeatureStore, batch_size: int
) -> dict[str, np.ndarray]:
    """{image name: (N,) int32 cluster ids} of all images of a store."""
    found: dict[str, np.ndarray] = {}
    names = list(store.names())
    with progress_bar(len(names), "cluster ids", "image") as bar:
        for start in range(0, len(names), batch_size):
            part = names[start : start + batch_size]
            features = np.stack([store.read(name) for name in part])  # (B, N, D)
            ids = assign(features.reshape(-1, features.shape[2])).reshape(len(part), -1)
            found.update(zip(part, ids.astype(np.int32), strict=True))
            bar.update(len(part))
    return found


# --- image generator -----------------------------------------------------------------------------


def prepare_generator(cfg: CfgNode, here: Runtime) -> None:
    """Train the image generator on the train images and their cluster ids, on all processes."""
    facts = train_image_generator(cfg, here)
    if here.is_main:
        note(cfg, "generator", **facts)
    logger.info("generator: %s", cfg.pretrained_generator)


# --- CLIP ----------------------------------------------------------------------------------------


def prepare_clip(cfg: CfgNode, here: Runtime) -> None:
    """Train a small CLIP on the train images and their captions."""
    folder = Path(cfg.clip.weights).parent
    name = "clip" if folder == Path(cfg.data_dir) else f"clip_{folder.name}"
    note(cfg, name, **train_small_clip(cfg, here))
    logger.info("CLIP: %s", cfg.clip.weights)
