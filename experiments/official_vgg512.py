"""M2Det-512 with VGG16 as the authors released it: official_vgg320 at 512 px.

    python -m m2det_jax.main --config experiments/official_vgg512.py \
        --config.model.backbone_weights=vgg16_reducedfc.pth

The learning rate is for a batch of 16 images. Hardware: for GPUs. We have not run it to the end.
"""

from m2det_jax.config.experiments import load_experiment


def get_config():
    config = load_experiment("official_vgg320")
    config.data.image_size = (512, 512)
    config.anchors.steps = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
    return config
