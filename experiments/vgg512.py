"""M2Det-512 with VGG16: the paper's settings (arXiv 1811.04533, section 4) with our focal loss.

    python -m m2det_jax.main --config experiments/vgg512.py \
        --config.model.backbone_weights=vgg16.safetensors

Hardware: for GPUs (add --config.model.dtype=bfloat16). We have not run it to the end.
"""

from m2det_jax.config import default_config


def get_config():
    config = default_config()
    # The paper has 150 epochs: 5 of warm-up, decays at 90 and 120. Shares fit runs of any length.
    config.optimizer.update(
        warmup_epochs=0.0,
        warmup_share=5 / 150,
        decay_epochs=(),
        decay_shares=(90 / 150, 120 / 150),
        norm_warmup=True,
    )
    return config
