"""The M2Det network (arXiv 1811.04533): backbone, MLFPN and heads."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from m2det_jax.model.backbones import Backbone, make_backbone
from m2det_jax.model.feature_maps import feature_map_sizes
from m2det_jax.model.heads import FORMS, BoxHead, ClassHead
from m2det_jax.model.layers import UPSAMPLING, call_block, shared_fields
from m2det_jax.model.mlfpn import MLFPN, PyramidFields


class M2Det(PyramidFields, kw_only=True):
    """A single-shot detector. The defaults are the paper's form; `official_form()` has the other.

    The fields of the pyramid, `PyramidFields`, are fields of M2Det too. Its `remat` and `dtype`
    hold for the backbone and the heads as well. All outputs are float32.

    Attributes:
        num_class_outputs: class logits per anchor, C.
        anchors_per_cell: anchors at each cell of each map.
        backbone: a name in `backbones.BACKBONES`.
        backbone_width: factor on the backbone's numbers of channels.
        backbone_norm: BatchNorm in a backbone that comes without (VGG).
        backbone_official_stride: a ResNet's strides as in the official code (ResNets only).
        frozen_stages: how many of the backbone's first stages, 0 to 5, do not learn.
        head: "conv", one convolution for each scale, or "retinanet", five that all scales share.
    """

    num_class_outputs: int
    anchors_per_cell: int = 6
    backbone: str = "vgg16"
    backbone_width: float = 1.0
    backbone_norm: bool = False
    backbone_official_stride: bool = False
    frozen_stages: int = 0
    head: str = "conv"

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Returns the raw predictions for normalised RGB images.

        Args:
            images: float [B, H, W, 3].
            train: BatchNorm uses the statistics of the batch and updates "batch_stats".

        Returns:
            "class_logits" float32 [B, A, C] and "box_deltas" float32 [B, A, 4]; the order of the
            anchors A is scale, row, column, cell anchor.

        Raises:
            ValueError: if no network can be built from a field or from the shape of the images.
        """
        self._check(images)
        backbone = self._backbone(name="backbone")
        images = images.astype(self.dtype)
        shallow, deep = call_block(backbone, images, train=train, remat=self.remat)
        mlfpn = MLFPN(**self.pyramid_fields(), name="mlfpn")
        maps = mlfpn(shallow, deep, train=train)
        class_head = ClassHead(
            self.anchors_per_cell, self.num_class_outputs, self.dtype, self.head, name="class_head"
        )
        box_head = BoxHead(self.anchors_per_cell, self.dtype, self.head, name="box_head")
        return {"class_logits": class_head(maps), "box_deltas": box_head(maps)}

    def frozen_paths(self) -> tuple[tuple[str, ...], ...]:
        """Returns the paths in "params" below which `frozen_stages` stops all gradients.

        The optimizer needs them: weight decay changes parameters without a gradient too.
        """
        modules = self._backbone(parent=None).frozen_modules()
        return tuple(("backbone", module) for module in modules)

    def _backbone(self, **options: Any) -> Backbone:
        return make_backbone(
            self.backbone,
            width=self.backbone_width,
            norm=self.backbone_norm,
            official_stride=self.backbone_official_stride,
            frozen_stages=self.frozen_stages,
            **shared_fields(self),
            **options,
        )

    def _check(self, images: jax.Array) -> None:
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be [batch, height, width, 3], got {images.shape}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images must be normalised floats, got {images.dtype}; subtract the mean and "
                "divide by the standard deviation first"
            )
        for field in ("num_class_outputs", "anchors_per_cell", "num_levels"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if not 0 <= self.frozen_stages <= 5:
            raise ValueError(f"frozen_stages must be 0 to 5, got {self.frozen_stages}")
        if self.upsample not in UPSAMPLING:
            raise ValueError(f"upsample must be one of {sorted(UPSAMPLING)}, got {self.upsample!r}")
        if self.head not in FORMS:
            raise ValueError(f"head must be one of {FORMS}, got {self.head!r}")
        feature_map_sizes((images.shape[1], images.shape[2]), self.num_scales)


def official_form() -> dict[str, bool | int]:
    """Returns the fields of M2Det in which the authors' code differs from the paper."""
    return dict(tum_out=256, sfam_shared=True, share_base_reduction=True, largest_scale_norm=True)
