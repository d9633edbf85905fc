"""CLIPScore and RefCLIPScore of written captions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from yacs.config import CfgNode

from generations.datasets import read_split
from generations.errors import UserError
from generations.features import find_images
from generations.metrics.captions import CaptionScores
from generations.pipelines.clip_metrics import caption_clip_scores, embed, encode_texts
from generations.pipelines.configured_clip import load_configured_clip
from generations.pipelines.pictures import PaintedPicture
from generations.runtime import Runtime


def score_by_clip(
    cfg: CfgNode,
    captions: Mapping[int, str],
    references: Mapping[int, Sequence[str]],
    here: Runtime,
) -> CaptionScores:
    """Compare captions with their images and with people's captions by the configured CLIP.

    Args:
        cfg: names CLIP, dataset and images.
        captions: image id -> caption.
        references: image id -> people's captions, for the same images.
        here: where to run.

    Returns:
        caption_clip_score and ref_clip_score; see `caption_clip_scores`.

    Raises:
        UserError: images or CLIP are missing.
    """
    if not cfg.images_dir:
        raise UserError("caption metric clip_score needs the images: set images_dir")
    paths = {record.image_id: record.path for record in read_split(cfg.dataset_coco, "test")}
    ids = list(captions)
    files = find_images(cfg.images_dir, [paths[image_id] for image_id in ids])
    lost = [image_id for image_id, file in zip(ids, files, strict=True) if file is None]
    if lost:
        raise UserError(
            f"caption metric clip_score: {len(lost)} of {len(ids)} images are missing in "
            f"images_dir {cfg.images_dir} (image ids {', '.join(map(str, lost[:3]))}); add them"
        )
    clip = load_configured_clip(cfg, here.device)
    pictures = [
        PaintedPicture(Path(file or ""), captions[image_id])
        for image_id, file in zip(ids, files, strict=True)
    ]
    embeddings = embed(clip, pictures, cfg.clip.prompt, cfg.eval_batch_size)
    texts = [text for image_id in ids for text in references[image_id]]
    sizes = [len(references[image_id]) for image_id in ids]
    known = encode_texts(clip, texts, cfg.clip.prompt).split(sizes)
    scores, with_references = caption_clip_scores(embeddings.images, embeddings.texts, known)
    names = ("caption_clip_score", "ref_clip_score")
    columns = (scores, with_references)
    return CaptionScores(
        {name: float(column.mean()) for name, column in zip(names, columns, strict=True)},
        {
            image_id: {
                name: float(column[row]) for name, column in zip(names, columns, strict=True)
            }
            for row, image_id in enumerate(ids)
        },
    )
