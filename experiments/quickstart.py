"""A small detector for the drawn data set: the whole road in a few minutes on two CPU cores.

    make demo
"""

from m2det_jax.config import default_config


def get_config():
    config = default_config()
    config.epochs = 20.0
    config.batch_size = 16
    config.data.image_size = (192, 256)
    config.model.update(
        backbone_width=0.25,
        backbone_norm=True,
        num_levels=2,
        num_scales=5,
        shallow_channels=64,
        deep_channels=64,
        reduced_channels=64,
        tum_width=64,
        tum_out=64,
    )
    config.optimizer.update(
        name="adamw",
        learning_rate=2e-3,
        reference_batch_size=16,
        weight_decay=0.02,
        schedule="cosine",
        warmup_epochs=1.0,
        ema_decay=0.995,
    )
    config.eval.every_epochs = 10.0
    config.log.every_steps = 20
    return config
