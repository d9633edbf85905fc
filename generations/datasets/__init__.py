"""Captions, features and cluster ids, and the batches made of them."""

from generations.datasets.array_pickle import read_array_pickle, write_array_pickle
from generations.datasets.captioning import (
    CaptioningDataset,
    collate,
    cropped_captions,
    draw_sample,
)
from generations.datasets.feature_conversion import convert_features
from generations.datasets.feature_writers import FeatureWriter, open_feature_writer
from generations.datasets.intake import Intake, read_captions, read_intake
from generations.datasets.karpathy import (
    ImageRecord,
    painting_captions,
    read_karpathy,
    read_split,
    reference_captions,
    report_problems,
    select_splits,
    write_karpathy,
)
from generations.datasets.sampler import InfiniteSampler, TaskSampler
from generations.datasets.stores import (
    ClusterStore,
    FeatureStore,
    load_centroids,
    open_cluster_store,
    open_feature_store,
)
from generations.datasets.tokenizer import (
    CaptionTokenizer,
    clean_caption,
    collapse_repeated_words,
    occurring_pieces,
)

__all__ = [
    "CaptionTokenizer",
    "CaptioningDataset",
    "ClusterStore",
    "FeatureStore",
    "FeatureWriter",
    "ImageRecord",
    "InfiniteSampler",
    "Intake",
    "TaskSampler",
    "clean_caption",
    "collapse_repeated_words",
    "collate",
    "convert_features",
    "cropped_captions",
    "draw_sample",
    "load_centroids",
    "occurring_pieces",
    "open_cluster_store",
    "open_feature_store",
    "open_feature_writer",
    "painting_captions",
    "read_array_pickle",
    "read_captions",
    "read_intake",
    "read_karpathy",
    "read_split",
    "reference_captions",
    "report_problems",
    "select_splits",
    "write_array_pickle",
    "write_karpathy",
]
