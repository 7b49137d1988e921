"""The comparison of wheel and sdist with the checkout; `make wheel` builds and uses real ones."""

import importlib.util
import io
import pathlib
import tarfile
import zipfile

import pytest

SCRIPT = pathlib.Path(__file__).parent / "wheel" / "check.py"
INFO = "m2det_jax-1.0.dist-info"
LICENCES = {f"{INFO}/licenses/LICENSE", f"{INFO}/licenses/m2det_jax/drawing/LICENSE"}
OTHERS = {"LICENSE", "README.md", "pyproject.toml", "constraints.txt", "Makefile"}


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("wheel_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(check, tmp_path):
    """A function (left out, added) -> (wheel, sdist) with empty files."""

    def make(left_out: str = "", added: str = "") -> tuple[pathlib.Path, pathlib.Path]:
        names = check.expected_files()
        wheel = tmp_path / "m2det_jax-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in (names | LICENCES | {added}) - {left_out, ""}:
                archive.writestr(name, "")
        sdist = tmp_path / "m2det_jax-1.0.tar.gz"
        moved = {name.replace("m2det_jax/experiments/", "experiments/") for name in names}
        with tarfile.open(sdist, "w:gz") as archive:
            for name in (moved | OTHERS) - {left_out}:
                archive.addfile(tarfile.TarInfo(f"m2det_jax-1.0/{name}"), io.BytesIO())
        return wheel, sdist

    return make


def test_what_must_be_inside(check, files, capsys):
    must = {"py.typed", "drawing/DejaVuSans.ttf", "experiments/small320.py"}
    must |= {f"pages/{name}" for name in ("report.css", "report.js", "template.html")}
    assert {f"m2det_jax/{name}" for name in must} <= check.expected_files()
    check.check_contents(*files())
    assert "all are there" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    ["m2det_jax/py.typed", "m2det_jax/experiments/small320.py", *sorted(LICENCES)],
)
def test_a_file_missing_in_the_wheel_is_named(check, files, name):
    with pytest.raises(SystemExit, match=rf"\.whl: missing: {name}$"):
        check.check_contents(*files(left_out=name))


def test_a_file_missing_in_the_sdist_is_named(check, files):
    with pytest.raises(SystemExit, match=r"\.tar\.gz: missing: constraints\.txt$"):
        check.check_contents(*files(left_out="constraints.txt"))


def test_a_file_that_does_not_belong_there_is_named(check, files):
    with pytest.raises(SystemExit, match=r"does not belong there: tests/support\.py$"):
        check.check_contents(*files(added="tests/support.py"))
