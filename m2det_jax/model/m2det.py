"""The M2Det network (arXiv 1811.04533): backbone, MLFPN and heads."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from m2det_jax.model.backbones import make_backbone
from m2det_jax.model.feature_maps import feature_map_sizes
from m2det_jax.model.heads import FORMS, BoxHead, ClassHead
from m2det_jax.model.layers import NORM_MOMENTUM, UPSAMPLING, call_block, shared_fields
from m2det_jax.model.mlfpn import MLFPN


class M2Det(nn.Module):
    """A single-shot detector. The defaults are the paper's form; `official_form()` lists the other.

    Attributes:
        num_class_outputs: class logits per anchor, C.
        anchors_per_cell: anchors at each cell of each map.
        backbone: a name in `backbones.BACKBONES`.
        backbone_width: factor on the backbone's numbers of channels.
        backbone_norm: BatchNorm in a backbone that comes without (VGG).
        backbone_official_stride: a ResNet's strides as in the official code (ResNets only).
        frozen_stages: the backbone's first stages, 0 to 5, that do not learn.
        num_levels: number of TUMs.
        num_scales: maps of each TUM.
        shallow_channels, deep_channels: FFMv1's output from the backbone's two maps.
        reduced_channels: channels that FFMv2 reduces the base feature to.
        tum_width, tum_out: channels inside a TUM and of each of its maps.
        sfam: re-weight channels before the heads.
        sfam_shared: one pair of SFAM layers for all scales.
        share_base_reduction: one reduction of the base feature for all levels.
        largest_scale_norm: BatchNorm on the largest map before the heads.
        upsample: "nearest" or "bilinear", in the TUMs.
        head: "conv", one convolution a scale, or "retinanet", five shared by all scales.
        norm_momentum: share of a running average that one training step keeps.
        norm_axis: the mapped axis over which BatchNorm takes its statistics, inside jax.shard_map
            alone, where a program sees one device's images; see `layers.batch_norm`.
        remat: recompute the backbone's and each TUM's activations in the backward pass instead of
            keeping them.
        dtype: dtype of the computation; parameters, running averages and outputs are float32.
    """

    num_class_outputs: int
    anchors_per_cell: int = 6
    backbone: str = "vgg16"
    backbone_width: float = 1.0
    backbone_norm: bool = False
    backbone_official_stride: bool = False
    frozen_stages: int = 0
    num_levels: int = 8
    num_scales: int = 6
    shallow_channels: int = 256
    deep_channels: int = 512
    reduced_channels: int = 128
    tum_width: int = 256
    tum_out: int = 128
    sfam: bool = True
    sfam_shared: bool = False
    share_base_reduction: bool = False
    largest_scale_norm: bool = False
    upsample: str = "nearest"
    head: str = "conv"
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Return the raw predictions for normalised RGB images, float [B, H, W, 3].

        `train` makes BatchNorm use the batch's statistics and update "batch_stats".

        Returns:
            "class_logits" float32 [B, A, C] and "box_deltas" float32 [B, A, 4]; the order of the
            anchors A is scale, row, column, cell anchor.

        Raises:
            ValueError: for a field or an image shape that makes no network.
        """
        self._check(images)
        backbone = self._backbone(name="backbone")
        images = images.astype(self.dtype)
        shallow, deep = call_block(backbone, images, train=train, remat=self.remat)
        maps = self._mlfpn()(shallow, deep, train=train)
        class_head = ClassHead(
            self.anchors_per_cell, self.num_class_outputs, self.dtype, self.head, name="class_head"
        )
        box_head = BoxHead(self.anchors_per_cell, self.dtype, self.head, name="box_head")
        return {"class_logits": class_head(maps), "box_deltas": box_head(maps)}

    def frozen_paths(self) -> tuple[tuple[str, ...], ...]:
        """Return the paths in "params" below which `frozen_stages` stops all gradients.

        For the optimizer: weight decay would move these parameters all the same.
        """
        modules = self._backbone(parent=None).frozen_modules()
        return tuple(("backbone", module) for module in modules)

    def _backbone(self, **options) -> nn.Module:
        return make_backbone(
            self.backbone,
            width=self.backbone_width,
            norm=self.backbone_norm,
            official_stride=self.backbone_official_stride,
            frozen_stages=self.frozen_stages,
            **shared_fields(self),
            **options,
        )

    def _mlfpn(self) -> MLFPN:
        return MLFPN(
            num_levels=self.num_levels,
            num_scales=self.num_scales,
            shallow_channels=self.shallow_channels,
            deep_channels=self.deep_channels,
            reduced_channels=self.reduced_channels,
            tum_width=self.tum_width,
            tum_out=self.tum_out,
            sfam=self.sfam,
            sfam_shared=self.sfam_shared,
            share_base_reduction=self.share_base_reduction,
            largest_scale_norm=self.largest_scale_norm,
            upsample=self.upsample,
            remat=self.remat,
            name="mlfpn",
            **shared_fields(self),
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
        feature_map_sizes(images.shape[1:3], self.num_scales)


def official_form() -> dict[str, bool | int]:
    """Return the fields of M2Det in which the authors' code differs from the paper."""
    return dict(tum_out=256, sfam_shared=True, share_base_reduction=True, largest_scale_norm=True)
