"""M2Det-320 with VGG16 as the authors released it: network, training and test settings.

    python -m m2det_jax.main --config experiments/official_vgg320.py \
        --config.model.backbone_weights=vgg16_reducedfc.pth

The training settings are those of the released code; vgg320 has those of the paper, with focal
loss. docs/fidelity.md lists all differences. The learning rate is for a batch of 16 images.
Hardware: for GPUs. We have not run it to the end.
"""

from m2det_jax.config import default_config


def get_config():
    config = default_config()
    config.epochs = 160.0
    config.batch_size = 16
    config.data.image_size = (320, 320)
    config.data.update(mean=(123.0, 117.0, 104.0), std=(1.0, 1.0, 1.0), channel_order="bgr")
    # OpenCV measures the hue of 8-bit images in steps of two degrees: 18 there are 36 degrees.
    config.augment.update(expand_probability=0.6, hue=36.0)
    config.model.update(
        tum_out=256,
        sfam=False,  # in every released configuration
        sfam_shared=True,
        share_base_reduction=True,
        largest_scale_norm=True,
    )
    config.anchors.update(
        steps=(8.0, 16.0, 32.0, 64.0, 107.0, 320.0),
        positive_threshold=0.5,
        negative_threshold=0.5,
    )
    config.loss.update(kind="softmax", negative_ratio=3.0, smooth_l1_beta=1.0)
    config.optimizer.update(
        learning_rate=4e-3,
        reference_batch_size=16,
        clip_norm=0.0,
        warmup_start=1e-6,
        decay_epochs=(90.0, 110.0, 130.0, 150.0),
        decay_factors=(0.5, 0.2, 0.1, 0.1),
        ema_decay=0.0,  # the weights themselves
    )
    # The code configures a threshold of 0.45, but passes it to an unused argument; it uses 0.3.
    config.eval.update(
        score_threshold=0.1,
        nms="soft_linear",
        soft_iou_threshold=0.3,
        max_per_class=50,
    )
    return config
