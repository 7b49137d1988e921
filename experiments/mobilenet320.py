"""M2Det-320 with MobileNet v2: the paper's schedule (arXiv 1811.04533, section 4), our focal loss.

    python -m m2det_jax.main --config experiments/mobilenet320.py \
        --config.model.backbone_weights=mobilenet_v2.safetensors

The MLFPN is that of the paper, and is much larger than the backbone. For more speed, reduce
--config.model.tum_width, tum_out and num_levels. `--config.model.backbone_width` is the width
multiplier of MobileNet.

Hardware: for GPUs (add --config.model.dtype=bfloat16). We have not run it to the end.
"""

from m2det_jax.config.experiments import load_experiment


def get_config():
    config = load_experiment("vgg512")
    config.data.image_size = (320, 320)
    config.model.backbone = "mobilenet_v2"
    return config
