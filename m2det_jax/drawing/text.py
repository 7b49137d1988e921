"""Fonts for pictures: DejaVu Sans, which is part of the package, and fonts of the system.

DejaVu Sans has Latin, Greek, Cyrillic and a few more scripts. For Chinese, Japanese and Korean, a
font of the system is used. The file LICENSE in this folder is the license of DejaVuSans.ttf.
"""

import functools
import logging
import pathlib
import shutil
import subprocess
import unicodedata
from collections.abc import Iterable, Iterator

from PIL import ImageDraw, ImageFont

log = logging.getLogger("m2det_jax")

OWN = str(pathlib.Path(__file__).with_name("DejaVuSans.ttf"))
_LANGUAGES = ("zh-cn", "ja", "ko", "th", "hi")  # languages to look for in the system's fonts
# Used without fontconfig: Pillow finds these in the folders of the system.
_KNOWN = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "SourceHanSans-Regular.ttc",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "Nirmala.ttf",
)
_NO_CHARACTER = "\U0010ffff"  # no font has it
_PROBE = 32  # pixels


class Text:
    """A line of text, in as many fonts as it needs.

    Args:
        text: the text.
        size: font size in pixels.

    Attributes:
        width: width of the text in pixels.
        top, bottom: vertical extent of the ink, and at least that of a normal line, in pixels below
            the baseline (negative above it).
        left, right: horizontal extent of the ink, in pixels from the start of the text.
    """

    def __init__(self, text: str, size: int) -> None:
        self._runs = [(run, _font(place, size)) for run, place in _runs(_one_line(text))]
        self.width, boxes = 0.0, []
        for run, font in self._runs:
            left, top, right, bottom = font.getbbox(run, anchor="ls")
            boxes.append((self.width + left, top, self.width + right, bottom))
            self.width += font.getlength(run)
        # The height of a line, not of these letters, so that all tags have the same height.
        _, top, _, bottom = _font((OWN, 0), size).getbbox("Ag", anchor="ls")
        self.left = min((box[0] for box in boxes), default=0.0)
        self.right = max((box[2] for box in boxes), default=0.0)
        self.top = min([top, *(box[1] for box in boxes)])
        self.bottom = max([bottom, *(box[3] for box in boxes)])

    def draw(
        self, pen: ImageDraw.ImageDraw, x: float, baseline: float, colour: tuple[int, int, int]
    ) -> None:
        """Draws the text; x is its start and `baseline` its baseline, in pixels."""
        for run, font in self._runs:
            pen.text((x, baseline), run, colour, font, anchor="ls")
            x += font.getlength(run)


@functools.lru_cache(maxsize=64)
def warn_of_missing(texts: tuple[str, ...]) -> None:
    """Warns once, in one line, about characters of the texts that no font can draw."""
    missing = sorted({c for text in texts for c in _one_line(text) if _place(c) is None})
    if missing:
        shown = "".join(missing[:20]) + ("..." if len(missing) > 20 else "")
        log.warning(
            "no font can draw %d characters of the class names (%s), so boxes replace them; "
            "install a font, such as Noto Sans CJK (Debian: fonts-noto-cjk)", len(missing), shown
        )  # fmt: skip


def _one_line(text: str) -> str:
    """Combines letters with their accents; a character that is not printable becomes U+FFFD."""
    text = unicodedata.normalize("NFC", text)
    return "".join(" " if c.isspace() else c if c.isprintable() else "\ufffd" for c in text)


def _runs(text: str) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yields (part, place of its font); characters that no font has get the shipped font."""
    run, place = "", (OWN, 0)
    for character in text:
        # A space, as in "cat 90%", does not end a run.
        needed = place if character == " " else _place(character) or (OWN, 0)
        if run and needed != place:
            yield run, place
            run = ""
        run, place = run + character, needed
    if run:
        yield run, place


@functools.cache
def _place(character: str) -> tuple[str, int] | None:
    """Returns the file, and the index in it, of the first font that can draw a character."""
    if _has((OWN, 0), character):
        return OWN, 0
    return next((place for place in _system_fonts() if _has(place, character)), None)


def _has(place: tuple[str, int], character: str) -> bool:
    return _glyph(place, character) != _glyph(place, _NO_CHARACTER)


def _glyph(place: tuple[str, int], character: str) -> tuple[tuple[int, int], bytes, float]:
    font = _font(place, _PROBE)
    mask = font.getmask(character)
    return mask.size, bytes(mask), font.getlength(character)


@functools.lru_cache(maxsize=256)
def _font(place: tuple[str, int], size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(place[0], size, index=place[1], layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def _system_fonts() -> list[tuple[str, int]]:
    """Returns the other fonts that can be opened, the best first."""
    return list(_openable(dict.fromkeys([*_of_fontconfig(), *((name, 0) for name in _KNOWN)])))


def _openable(places: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    for place in places:
        try:
            _font(place, _PROBE)
        except OSError:
            continue
        yield place


def _of_fontconfig() -> Iterator[tuple[str, int]]:
    if (program := shutil.which("fc-match")) is None:
        return
    for language in _LANGUAGES:
        command = [program, "--format=%{index}:%{file}", f"sans:lang={language}"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, ValueError, subprocess.SubprocessError):
            return  # a broken installation; the names in _KNOWN remain
        index, _, file = found.stdout.partition(":")
        if file and index.isdecimal():
            yield file, int(index) & 0xFFFF
