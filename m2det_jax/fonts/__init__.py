"""Fonts of pictures: DejaVu Sans, which is shipped, and the system's for other characters.

DejaVu Sans has Latin, Greek, Cyrillic and some more; for Chinese, Japanese and Korean a font of the
system is looked for. LICENSE beside this file is that of DejaVuSans.ttf.
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
_LANGUAGES = ("zh-cn", "ja", "ko", "th", "hi")  # for which the system is asked
# Where there is no fontconfig: Pillow finds these in the system's folders.
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
Face = tuple[str, int]  # a font: its file, and its number in the file

_NO_CHARACTER = "\U0010ffff"  # in no font
_PROBE = 32  # pixels


class Text:
    """A line of text at a size in pixels, in as many fonts as it needs.

    Attributes:
        width: of the text, pixels.
        top, bottom: of its ink, at least that of a usual line; pixels below the baseline (< 0:
            above it).
        left, right: of its ink, pixels from where it begins.
    """

    def __init__(self, text: str, size: int) -> None:
        self._runs = [(run, _font(face, size)) for run, face in _runs(_one_line(text))]
        self.width, boxes = 0.0, []
        for run, font in self._runs:
            left, top, right, bottom = font.getbbox(run, anchor="ls")
            boxes.append((self.width + left, top, self.width + right, bottom))
            self.width += font.getlength(run)
        # The height of a line, not of these letters, so that neighbouring plates are alike.
        _, top, _, bottom = _font((OWN, 0), size).getbbox("Ag", anchor="ls")
        self.left = min((box[0] for box in boxes), default=0.0)
        self.right = max((box[2] for box in boxes), default=0.0)
        self.top = min([top, *(box[1] for box in boxes)])
        self.bottom = max([bottom, *(box[3] for box in boxes)])

    def draw(
        self, pen: ImageDraw.ImageDraw, x: float, baseline: float, colour: tuple[int, int, int]
    ) -> None:
        """Writes the text from x on, pixels."""
        for run, font in self._runs:
            pen.text((x, baseline), run, colour, font, anchor="ls")
            x += font.getlength(run)


@functools.lru_cache(maxsize=64)
def warn_of_missing(texts: tuple[str, ...]) -> None:
    """Logs once, in one line, which characters of some texts no font here can draw."""
    missing = sorted({c for text in texts for c in _one_line(text) if _face_of(c) is None})
    if missing:
        shown = "".join(missing[:20]) + ("..." if len(missing) > 20 else "")
        log.warning(
            "no font can draw %d characters of the class names (%s), boxes stand in their place; "
            "install one, such as Noto Sans CJK (Debian: fonts-noto-cjk)", len(missing), shown
        )  # fmt: skip


def _one_line(text: str) -> str:
    """Returns letters composed with their accents, and U+FFFD for what is not printable."""
    text = unicodedata.normalize("NFC", text)
    return "".join(" " if c.isspace() else c if c.isprintable() else "\ufffd" for c in text)


def _runs(text: str) -> Iterator[tuple[str, Face]]:
    """Yields (part, its font); what no font can draw goes to the shipped one."""
    run, face = "", (OWN, 0)
    for character in text:
        # A blank, as in "cat 90%", does not end a run.
        needed = face if character == " " else _face_of(character) or (OWN, 0)
        if run and needed != face:
            yield run, face
            run = ""
        run, face = run + character, needed
    if run:
        yield run, face


@functools.cache
def _face_of(character: str) -> Face | None:
    """Returns the first font that can draw a character."""
    if _has((OWN, 0), character):
        return OWN, 0
    return next((face for face in _system_fonts() if _has(face, character)), None)


def _has(face: Face, character: str) -> bool:
    return _glyph(face, character) != _glyph(face, _NO_CHARACTER)


def _glyph(face: Face, character: str) -> tuple[tuple[int, int], bytes, float]:
    font = _font(face, _PROBE)
    mask = font.getmask(character)
    return mask.size, bytes(mask), font.getlength(character)


@functools.lru_cache(maxsize=256)
def _font(face: Face, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(face[0], size, index=face[1], layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def _system_fonts() -> list[Face]:
    """Returns other fonts that can be opened, the best first."""
    return list(_openable(dict.fromkeys([*_of_fontconfig(), *((name, 0) for name in _KNOWN)])))


def _openable(faces: Iterable[Face]) -> Iterator[Face]:
    for face in faces:
        try:
            _font(face, _PROBE)
        except OSError:
            continue
        yield face


def _of_fontconfig() -> Iterator[Face]:
    if (program := shutil.which("fc-match")) is None:
        return
    for language in _LANGUAGES:
        command = [program, "--format=%{index}:%{file}", f"sans:lang={language}"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, ValueError, subprocess.SubprocessError):
            return  # a broken installation; there are the names that Pillow knows to find
        index, _, file = found.stdout.partition(":")
        if file and index.isdecimal():
            yield file, int(index) & 0xFFFF
