"""One self-contained HTML page about a data set, from plain values: no config, no jax."""

from m2det_jax.pages.contents import ClassRow, Contents, CoverageRow, Finding, Fit, Group, Picture
from m2det_jax.pages.page import MAX_BYTES, render_page
from m2det_jax.pages.summary import render_summary

__all__ = [
    "MAX_BYTES",
    "ClassRow",
    "Contents",
    "CoverageRow",
    "Finding",
    "Fit",
    "Group",
    "Picture",
    "render_page",
    "render_summary",
]
