"""M2Det-320 with ResNet-101 as the authors released it: official_vgg320 with that backbone.

    python -m m2det_jax.convert backbone resnet101.safetensors --output backbones/resnet101_bgr \
        --mean 123 117 104 --std 1 1 1 --channel_order bgr
    python -m m2det_jax.main --config experiments/official_resnet101_320.py \
        --config.model.backbone_weights=backbones/resnet101_bgr

The released code feeds BGR images minus Caffe's mean to ImageNet weights that were trained on
normalised RGB images. The first command asks for the same; resnet101_320 does not need it. The
learning rate is for a batch of 12 images.
Hardware: for GPUs. We have not run it to the end.
"""

from m2det_jax.config.experiments import load_experiment


def get_config():
    config = load_experiment("official_vgg320")
    config.batch_size = config.optimizer.reference_batch_size = 12
    config.model.update(backbone="resnet101", backbone_official_stride=True)
    return config
