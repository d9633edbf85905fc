"""CLIP: pictures and captions in one space; loading any open_clip model, training a small one."""

from generations.clip.loading import load_clip, save_clip
from generations.clip.model import PROMPT, ClipModel
from generations.clip.training import ClipTrainSettings, train_clip

__all__ = ["PROMPT", "ClipModel", "ClipTrainSettings", "load_clip", "save_clip", "train_clip"]
