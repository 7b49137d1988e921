"""M2Det-320 with ResNet-101 as the authors released it: official_vgg320 with that backbone.

    python -m m2det_jax.main --config experiments/official_resnet101_320.py \
        --config.model.backbone_weights=resnet101.safetensors

The rate is meant for a batch of 12 images. Hardware: meant for GPUs. Not run to the end here.
"""

from m2det_jax.experiment import load_experiment


def get_config():
    config = load_experiment("official_vgg320")
    config.batch_size = config.optimizer.reference_batch_size = 12
    config.model.update(backbone="resnet101", backbone_official_stride=True)
    return config
