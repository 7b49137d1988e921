"""M2Det-800 with VGG16: the paper's settings (arXiv 1811.04533, section 4) with our focal loss.

    python -m m2det_jax.main --config experiments/vgg800.py \
        --config.model.backbone_weights=vgg16.safetensors

Hardware: for GPUs (add --config.model.dtype=bfloat16). We have not run it to the end.
"""

from m2det_jax.config.experiments import load_experiment


def get_config():
    config = load_experiment("vgg512")
    config.data.image_size = (800, 800)
    return config
