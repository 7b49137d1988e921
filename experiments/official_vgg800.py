"""M2Det-800 with VGG16 as the authors released it: official_vgg320 at 800 px.

    python -m m2det_jax.main --config experiments/official_vgg800.py \
        --config.model.backbone_weights=vgg16_reducedfc.pth

The learning rate is for a batch of 9 images. Hardware: for GPUs. We have not run it to the end.
"""

from m2det_jax.config.experiments import load_experiment


def get_config():
    config = load_experiment("official_vgg320")
    config.batch_size = config.optimizer.reference_batch_size = 9
    config.data.image_size = (800, 800)
    config.anchors.steps = (8.0, 16.0, 32.0, 62.0, 115.0, 160.0)
    return config
