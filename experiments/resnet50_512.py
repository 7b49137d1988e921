"""M2Det-512 with ResNet-50: the paper's schedule (arXiv 1811.04533, section 4), our focal loss.

    python -m m2det_jax.main --config experiments/resnet50_512.py \
        --config.model.backbone_weights=resnet50.safetensors

Hardware: for GPUs (add --config.model.dtype=bfloat16). We have not run it to the end.
"""

from m2det_jax.config.experiments import load_experiment


def get_config():
    config = load_experiment("vgg512")
    config.model.backbone = "resnet50"
    return config
