"""Which of the two levels of visual input a direction reads (SPEC 1)."""

from dataclasses import dataclass

from torch import Tensor

from generations.batch import Batch


@dataclass(frozen=True)
class FeatureLevels:
    """True where a direction reads dense grid features, False where it reads codebook rows.

    The default is the paper's two-level setting. Painting predicts cluster ids in either case.

    Source: paper section 3.3.
    """

    captioning: bool = True
    painting: bool = False

    @classmethod
    def from_flags(cls, use_mix_feature: int, use_grid_feat: int) -> "FeatureLevels":
        """Read the original's flags; `load_config` has refused contradicting ones."""
        if use_mix_feature:
            return cls(captioning=True, painting=False)
        return cls(captioning=bool(use_grid_feat), painting=bool(use_grid_feat))

    @property
    def any_dense(self) -> bool:
        """Whether dense features have to be loaded at all."""
        return self.captioning or self.painting


def visual_input(batch: Batch, dense: bool) -> dict[str, Tensor]:
    """Keyword arguments of `UnifiedTransformer.encode_vision` for one level of a batch."""
    if not dense:
        return {"cluster_ids": batch.cluster_ids}
    if batch.features is None:
        raise ValueError("this batch has no dense features")
    return {"features": batch.features}
