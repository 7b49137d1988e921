"""The Dockerfile names what there is; tests/docker/check.py runs its lines."""

import importlib.util
import pathlib
import tomllib

from m2det_jax.serve.__main__ import parse

REPOSITORY = pathlib.Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("check", REPOSITORY / "tests/docker/check.py")
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)


def test_the_dockerfile_names_files_extras_and_flags_that_exist(tmp_path):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    text = check.DOCKERFILE.read_text()
    extras = {*check.value_of("ARG").partition("=")[2].split(","), "cuda12", "cuda13", "serve"}
    assert extras <= project["optional-dependencies"].keys() and "EXTRAS=serve,cuda13" in text
    check.copy_files(tmp_path)
    assert (tmp_path / "m2det_jax/serve/page.html").exists() and (tmp_path / "README.md").exists()
    ignored = check.DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{path.name}" for path in tmp_path.iterdir()} <= set(ignored)
    entry, command = check.command_of("ENTRYPOINT"), check.command_of("CMD")
    assert entry[:2] == ["/opt/venv/bin/m2det", "serve"]
    options = parse([*entry[2:], *command])
    assert (options.host, str(options.port)) == ("0.0.0.0", check.value_of("EXPOSE"))
    assert f":{options.port}/healthz" in check.command_of("HEALTHCHECK")[-1]
