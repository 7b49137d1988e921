"""M2Det-704 with VGG16 as the authors released it: official_vgg320 at 704 px.

    python -m m2det_jax.main --config experiments/official_vgg704.py \
        --config.model.backbone_weights=vgg16_reducedfc.pth

The learning rate is for a batch of 11 images. Hardware: for GPUs. We have not run it to the end.
"""

from m2det_jax.config.experiments import load_experiment


def get_config():
    config = load_experiment("official_vgg320")
    config.batch_size = config.optimizer.reference_batch_size = 11
    config.data.image_size = (704, 704)
    config.anchors.steps = (8.0, 16.0, 32.0, 64.0, 117.0, 176.0)
    return config
