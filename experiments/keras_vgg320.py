"""M2Det-320 in the form of the Keras port: RetinaNet's heads, anchors and losses on the MLFPN.

    python -m m2det_jax.main --config experiments/keras_vgg320.py \
        --config.model.backbone_weights=vgg16.safetensors

The port trains with anchors of 8 to 256 px and detects with anchors of 10 to 320 px. Here both use
the same anchors, 10 to 320 px. The port's .h5 weights cannot be loaded, and details of its network
that only those weights would need are left out; docs/fidelity.md lists them.
Hardware: for GPUs. We have not run it to the end.
"""

from m2det_jax.config import default_config


def get_config():
    config = default_config()
    config.epochs = 50.0
    config.data.image_size = (320, 320)
    # By default the port uses mirroring only.
    config.augment.pipeline = ("flip",)
    config.model.update(head="retinanet", upsample="bilinear")
    # 3 ratios x 3 octave scales, 10 to 320 px; IoU 0.4 to 0.5 is ignored.
    config.anchors.update(
        kind="retinanet",
        aspect_ratios=(2.0,),
        positive_threshold=0.5,
        negative_threshold=0.4,
    )
    config.loss.update(focal_alpha=0.25, focal_gamma=2.0, smooth_l1_beta=1 / 9)  # sigma 3
    # Adam with learning rate 1e-5 and batch size 1; adamw without weight decay is Adam.
    config.optimizer.update(
        name="adamw",
        learning_rate=1e-5,
        reference_batch_size=1,
        weight_decay=0.0,
        schedule="constant",
        warmup_epochs=0.0,
        ema_decay=0.0,
    )
    config.eval.update(score_threshold=0.05, iou_threshold=0.5)
    return config
