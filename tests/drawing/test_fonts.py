"""Class names in every script: what is drawn is a glyph, not the box that stands for none."""

import logging
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from m2det_jax.drawing import text as fonts
from m2det_jax.drawing.boxes import contact_sheet, draw_boxes
from m2det_jax.drawing.text import OWN, Text, warn_of_missing

PACKAGE = pathlib.Path(fonts.__file__).parent
LATIN = "AÀÁÄÅÆÇÉÈÑÖØßŐŠČŽŁĞİaàáäåæçéèñöøőščžłğıŵ"
GREEK = "ΑΒΓΔΩαβγδωάέή"
CYRILLIC = "АБВЖЯабвжяЁёЇїЄєЎў"


def ink(text: str, size: int = 24) -> np.ndarray:
    """What a text looks like, bool [60, 200]."""
    picture = Image.new("L", (200, 60))
    Text(text, size).draw(ImageDraw.Draw(picture), 10, 40, 255)
    return np.asarray(picture) > 127


@pytest.fixture
def fresh_fonts():
    """Forgets which font draws what, before and after."""
    caches = (fonts._place, fonts._system_fonts, warn_of_missing, fonts._font)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("character", LATIN + GREEK + CYRILLIC)
def test_letters_are_drawn_by_the_shipped_font(character):
    missing = ink("\U0010ffff")
    assert missing.any() and ink(character).any()
    assert (ink(character) != missing).any()
    assert fonts._place(character) == (OWN, 0)


def test_every_letter_looks_different():
    drawn = [ink(c).tobytes() for c in CYRILLIC]
    assert len(set(drawn)) == len(CYRILLIC)


def test_letters_with_loose_accents_are_composed():
    assert (ink("a\u0308o\u0301") == ink("\u00e4\u00f3")).all()


def test_class_names_differ_in_a_picture():
    def drawn(name):
        grey = np.full((80, 200, 3), 127, np.uint8)
        return draw_boxes(grey, [[10, 40, 150, 70]], [0], (name,), [0.5]).tobytes()

    assert len({drawn(name) for name in ("яблоко", "ящерка", "äpfel", "öpfel", "μήλο")}) == 5
    assert contact_sheet([np.zeros((40, 90, 3), np.uint8)], titles=["яблоко"]).width > 90


@pytest.fixture
def small_font(tmp_path, fresh_fonts, monkeypatch):
    """In place of the shipped font one without Cyrillic; the shipped one is the system's."""
    file = tmp_path / "small.ttf"
    file.write_bytes(ImageFont.load_default(20).font_bytes)
    monkeypatch.setattr(fonts, "OWN", str(file))
    return str(file)


def test_a_font_of_the_system_steps_in(small_font, monkeypatch):
    shipped = str(PACKAGE / "DejaVuSans.ttf")
    monkeypatch.setattr(fonts, "_KNOWN", ("absent.ttf", shipped))
    monkeypatch.setattr(fonts, "_of_fontconfig", lambda: iter([("/absent/font.ttf", 3)]))
    assert fonts._place("Ж") == (shipped, 0) and fonts._place("a") == (small_font, 0)
    runs = list(fonts._runs("ab Ж Ж 90%"))
    assert runs == [("ab ", (small_font, 0)), ("Ж Ж ", (shipped, 0)), ("90%", (small_font, 0))]
    assert Text("ab Ж", 20).width > Text("ab", 20).width
    # Nothing is lost between two fonts.
    assert ink("Жa").sum() == ink("Ж").sum() + ink("a").sum()


def test_what_no_font_can_draw_is_said_once(small_font, monkeypatch, caplog):
    monkeypatch.setattr(fonts, "_system_fonts", lambda: [])
    monkeypatch.setattr(logging.getLogger("m2det_jax"), "propagate", True)
    grey = np.full((80, 200, 3), 127, np.uint8)
    for _ in range(3):
        draw_boxes(grey, [[10, 40, 150, 70]], [0], ("кот", "cat", "кит"))
    # One line comes here twice where a test before has set up our logging.
    ours = {id(line): line for line in caplog.records if line.name == "m2det_jax"}
    (record,) = ours.values()
    assert "no font can draw 4 characters of the class names (икот)" in record.getMessage()
    assert "fonts-noto-cjk" in record.getMessage()


def test_fontconfig_is_asked_where_it_is(tmp_path, fresh_fonts, monkeypatch):
    program = tmp_path / "fc-match"
    program.write_text(f"#!/bin/sh\nprintf '65537:{OWN}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert set(fonts._of_fontconfig()) == {(OWN, 1)}
    program.write_text("#!/bin/sh\nexit 1\n")
    assert list(fonts._of_fontconfig()) == []
    monkeypatch.setenv("PATH", "")
    assert list(fonts._of_fontconfig()) == []


def test_names_that_are_no_line_of_text():
    for name in ("a\nb", "\x1b[31m", "\ud800", "", " ", "\t"):
        text = Text(name, 20)
        assert text.width >= 0 and text.bottom > text.top
        ink(name)


def test_the_shipped_font_is_small_and_free():
    assert sum(path.stat().st_size for path in PACKAGE.iterdir() if path.is_file()) < 2e6
    assert "Bitstream Vera" in (PACKAGE / "LICENSE").read_text()
