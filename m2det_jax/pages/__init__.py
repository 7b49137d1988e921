"""Page about a data set, one self-contained HTML file from plain values: no config, no jax."""

from m2det_jax.pages.contents import ClassRow, Contents, CoverageRow, Fit, Group, Picture, Remark
from m2det_jax.pages.page import MAX_BYTES, render_page, render_summary

__all__ = [
    "MAX_BYTES",
    "ClassRow",
    "Contents",
    "CoverageRow",
    "Fit",
    "Group",
    "Picture",
    "Remark",
    "render_page",
    "render_summary",
]
