"""M2Det-320 with ResNet-101: the paper's schedule (arXiv 1811.04533, section 4), our focal loss.

    python -m m2det_jax.main --config experiments/resnet101_320.py \
        --config.model.backbone_weights=resnet101.safetensors

Hardware: for GPUs (add --config.model.dtype=bfloat16). We have not run it to the end.
"""

from m2det_jax.config.experiments import load_experiment


def get_config():
    config = load_experiment("vgg512")
    config.data.image_size = (320, 320)
    config.model.backbone = "resnet101"
    return config
