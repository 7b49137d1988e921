"""Page of the service, one self-contained HTML document: all that it fetches is detections."""

import base64
import hashlib
import importlib.resources
import json
import string

from m2det_jax.inference.trained_detector import TrainedDetector
from m2det_jax.pages.markup import count, escape, printable, shorten
from m2det_jax.serve.problems import Limits

LOWEST = 0.05  # of the scores that the page asks for; its slider shows those above another
_LONGEST_NAME = 60


def _read(package: str, *names: str) -> str:
    folder = importlib.resources.files(package)
    return "".join((folder / name).read_text(encoding="utf-8") for name in names)


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


_STYLE = _read("m2det_jax.pages", "report.css") + _read("m2det_jax.serve", "page.css")
_SCRIPT = _read("m2det_jax.serve", "page.js") + _read("m2det_jax.pages", "common.js")
HEADERS = {
    # Only these very texts are executed, and only this service is asked.
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def render(detector: TrainedDetector, limits: Limits, threshold: float) -> str:
    """Returns the page of a detector.

    Args:
        limits: of the service.
        threshold: first position of the slider.
    """
    names = [shorten(printable(name), _LONGEST_NAME) for name in detector.class_names]
    height, width = detector.image_size
    facts = {
        "Model": shorten(detector.workdir.name, _LONGEST_NAME),
        "Step": count(detector.step),
        "Classes": count(len(names)),
        "Input": f"{height} x {width}",
    }
    data = {
        "names": names,
        "lowest": min(LOWEST, threshold),
        "maxBody": limits.max_body,
    }
    parts = {
        "style": _STYLE,
        "script": _SCRIPT,
        "facts": "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
            for name, value in facts.items()
        ),
        "names": escape(", ".join(names[:12]) + (", ..." if len(names) > 12 else "")),
        "least": f"{100 * min(LOWEST, threshold):.0f}",
        "percent": f"{100 * threshold:.0f}",
        "threshold": f"{threshold:.2f}",
        "limit": f"{limits.max_body / 2**20:.0f} MiB, {limits.max_pixels / 1e6:.0f} megapixels",
        # "<" could end the element; there is none outside of the strings.
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return string.Template(_read("m2det_jax.serve", "page.html")).substitute(parts)
