"""Network modules in Flax Linen. No other folder defines Flax modules."""

from m2det_jax.model.backbones import BACKBONES
from m2det_jax.model.feature_maps import feature_map_sizes
from m2det_jax.model.heads import is_class_output
from m2det_jax.model.initialize import PRIOR, init_variables, variable_shapes
from m2det_jax.model.m2det import M2Det, official_form

__all__ = [
    "PRIOR",
    "BACKBONES",
    "M2Det",
    "feature_map_sizes",
    "init_variables",
    "is_class_output",
    "official_form",
    "variable_shapes",
]
