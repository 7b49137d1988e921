"""Tests of the doctor: findings for given facts, and real programs that fail or hang."""

import dataclasses
import json
import os
import subprocess
import sys
import time
import warnings

import pytest
from jaxlib.plugin_support import check_plugin_version

from m2det_jax.doctor import facts as gathering
from m2det_jax.doctor.__main__ import document, lines
from m2det_jax.doctor.facts import Device, Facts, Folder, Nvidia, Package, Query
from m2det_jax.doctor.findings import diagnose, pip_line, uses_gpu

ROOM = Folder("/runs", 2**40, 2**41, True)
CPU = Query((Device("cpu", "cpu"),), ("import", "devices", "convolution"), 0.5)
GPU = dataclasses.replace(CPU, devices=(Device("gpu", "NVIDIA H100", 2**36),))
H100 = Nvidia(("NVIDIA H100",), "580.65.06", 9.0, ("/dev/nvidia0",), 1)
PLUGIN12 = {"jax-cuda12-plugin": "0.10.2", "jax-cuda12-pjrt": "0.10.2"}
PLUGIN13 = {"jax-cuda13-plugin": "0.10.2", "jax-cuda13-pjrt": "0.10.2"}
PIP13 = "/env/python -m pip install 'jax[cuda13]==0.10.2'"
PIP12 = "/env/python -m pip install 'jax[cuda12]==0.10.2'"


def package(name: str, version: str | None, required: str = "", fits: bool = True) -> Package:
    return Package(name, required, version, fits)


SOUND = Facts(
    version="0.2.0",
    installed=True,
    python="3.11.7",
    executable="/env/python",
    system="Linux",
    packages={name: package(name, "0.10.2") for name in ("jax", "jaxlib")},
    plugins={},
    cuda_extras=("cuda12", "cuda13"),
    query=CPU,
    nvidia=Nvidia(),
    environment={},
    cache=ROOM,
    work=ROOM,
    shared_memory=ROOM,
    extras={"torch": ("torch",)},
)


def but(**changes) -> Facts:
    return dataclasses.replace(SOUND, **changes)


def with_gpu(plugins=None, query=CPU, environment=None, **nvidia) -> Facts:
    """A machine with an H100, apart from the changes."""
    return but(
        nvidia=dataclasses.replace(H100, **nvidia),
        plugins=plugins or {},
        query=query,
        environment=environment or {},
    )


@pytest.mark.parametrize(
    "facts",
    [
        SOUND,
        with_gpu(PLUGIN13, GPU),
        with_gpu(PLUGIN12, GPU, {"CUDA_VISIBLE_DEVICES": "0", "JAX_PLATFORMS": "cuda,cpu"}),
        but(plugins=PLUGIN12),  # installed for another machine
        but(shared_memory=None, system="Darwin"),
    ],
)
def test_all_is_well(facts):
    assert diagnose(facts) == []
    assert document(facts, [])["well"] and lines(facts, [])[-1] == "all is well"


@pytest.mark.parametrize(
    ("facts", "text", "remedy"),
    [
        (with_gpu(), "no CUDA plugin", PIP13),
        (with_gpu(driver="535.104.05"), "no CUDA plugin", PIP12),
        (with_gpu(driver=""), "driver unknown", PIP12),
        (with_gpu(capability=7.0, gpus=("V100",)), "V100", PIP12),
        (with_gpu(gpus=(), device_files=("/dev/nvidia0",)), "1 NVIDIA GPU in", PIP13),
        (
            with_gpu(driver="470.42.01"),
            "driver 470.42.01 is too old",
            "580 or newer (at least 525)",
        ),
        (
            dataclasses.replace(with_gpu(driver="560.1"), cuda_extras=("cuda13",)),
            "driver 560.1 is too old",
            "at least 580",
        ),
        (
            with_gpu(PLUGIN13, gpus=(), device_files=(), capability=None),
            "no /dev/nvidia0",
            "--gpus all",
        ),
        (
            with_gpu(PLUGIN12, environment={"JAX_PLATFORMS": "cpu"}),
            "JAX_PLATFORMS is 'cpu'",
            "unset JAX_PLATFORMS",
        ),
        (
            with_gpu(PLUGIN12, environment={"CUDA_VISIBLE_DEVICES": ""}),
            "CUDA_VISIBLE_DEVICES is ''",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        (
            with_gpu(PLUGIN12 | {"jax-cuda12-plugin": "0.10.1"}),
            "jax-cuda12-plugin 0.10.1, but jaxlib 0.10.2",
            PIP12,
        ),
        (
            with_gpu({"jax-cuda13-plugin": "0.10.1"}, driver="550.54"),
            "jax-cuda13-plugin 0.10.1, but jaxlib 0.10.2",
            "/env/python -m pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt && " + PIP12,
        ),
        (
            but(plugins={"jax-cuda13-plugin": "0.10.3"}),
            "jax-cuda13-plugin 0.10.3, but jaxlib 0.10.2",
            PIP13,
        ),
        (
            but(plugins={"jax-cuda12-plugin": "0.9"}),
            "jax-cuda12-plugin 0.9, but jaxlib 0.10.2",
            PIP12,
        ),
        (
            with_gpu(PLUGIN13, driver="550.54"),
            "the plugin for cuda13 needs driver 580",
            "/env/python -m pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt && " + PIP12,
        ),
        (
            with_gpu(PLUGIN12 | PLUGIN13),
            "cuda12 and cuda13 are both installed",
            "/env/python -m pip uninstall -y jax-cuda12-plugin jax-cuda12-pjrt && " + PIP13,
        ),
        (
            with_gpu(PLUGIN12, dataclasses.replace(CPU, messages=("cuInit: error 999",))),
            "message: cuInit: error 999",
            "/env/python -m pip install --force-reinstall 'jax[cuda12]==0.10.2'",
        ),
        (
            with_gpu(PLUGIN12, environment={"LD_LIBRARY_PATH": "/usr/local/cuda"}),
            "no message",
            "unset LD_LIBRARY_PATH",
        ),
        (
            with_gpu(PLUGIN12, gpus=(), problem="nvidia-smi: Driver/library version mismatch"),
            "Driver/library version mismatch",
            "restart the machine",
        ),
        (dataclasses.replace(with_gpu(), system="Windows"), "no CUDA support on Windows", "WSL2"),
    ],
)
def test_a_gpu_that_is_not_used_gets_the_line_that_fixes_it(facts, text, remedy):
    (finding,) = diagnose(facts)
    assert (finding.severity, finding.subject) == ("error", "gpu")
    assert text in finding.text
    assert remedy in finding.remedy
    if remedy.startswith("/env/python"):
        assert finding.remedy == remedy
    assert not document(facts, [finding])["well"]
    assert lines(facts, [finding])[-3:] == [
        f"error: {finding.text}", f"    {finding.remedy}", "1 to fix"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "severity", "text", "remedy"),
    [
        (
            but(packages=SOUND.packages | {
                "flax": package("flax", "0.9", "<0.13,>=0.12.8", False)}),
            "error",
            "flax 0.9 (needed: <0.13,>=0.12.8)",
            "/env/python -m pip install 'flax<0.13,>=0.12.8'",
        ),
        (
            but(packages=SOUND.packages | {"grain": package("grain", None, ">=0.2", False)}),
            "error",
            "grain is missing",
            "pip install 'grain>=0.2'",
        ),
        (but(installed=False), "warning", "is not installed", "`pip install .`"),
        (
            but(query=Query((), ("import",), timed_out=True, limit=60.0, status=None)),
            "error",
            "no answer within 60 s while jax looks for devices",
            "--timeout",
        ),
        (
            but(query=Query((), ("import",), status=-6, messages=(
                "Unknown flags in XLA_FLAGS: --xla_gpu_old", "Aborted"))),
            "error",
            "unknown flag: --xla_gpu_old",
            "XLA_FLAGS",
        ),
        (
            but(query=Query((), (), status=1, messages=("ImportError: libstdc++.so.6",))),
            "error",
            "jax fails while it is imported: ImportError: libstdc++.so.6",
            "/env/python -m pip install --force-reinstall jax jaxlib",
        ),
        (
            but(query=Query((), ("import",), status=1, messages=("RuntimeError: no tpu",)),
                environment={"JAX_PLATFORMS": "tpu"}),
            "error",
            "fails while it looks for devices of JAX_PLATFORMS='tpu': RuntimeError: no tpu",
            "unset JAX_PLATFORMS",
        ),
        (
            with_gpu(PLUGIN12, dataclasses.replace(
                GPU, done=("import", "devices"), status=1, messages=("DNN library not found",))),
            "error",
            "jax fails while it computes: DNN library not found",
            "--force-reinstall 'jax[cuda12]==0.10.2'",
        ),
        (but(query=Query((), ("import",), status=-11)), "error", "signal 11", "jax.devices()"),
        (but(nvidia=Nvidia(on_bus=2)), "warning", "2 NVIDIA GPU on the PCI bus", "version 580"),
        (but(work=Folder("/runs", 2**29, 2**40, True)), "error", "0.5 GiB free", "delete files"),
        (but(work=Folder("/runs", 2**32, 2**40, True)), "warning", "4.0 GiB free", "delete files"),
        (but(work=Folder("/x", 2**39, 2**40, False)), "error", "/x: not writable", "--workdir"),
        (
            but(cache=Folder("/cache", 2**39, 2**40, False)),
            "warning",
            "/cache: not writable",
            "JAX_COMPILATION_CACHE_DIR",
        ),
        (
            but(shared_memory=Folder("/dev/shm", 2**26, 2**26, True)),
            "warning",
            "/dev/shm: only 0.1 GiB",
            "--shm-size=8g",
        ),
    ],
)  # fmt: skip
def test_other_findings(facts, severity, text, remedy):
    (finding,) = diagnose(facts)
    assert finding.severity == severity
    assert text in finding.text and remedy in finding.remedy
    assert document(facts, [finding])["well"] == (severity == "warning")


def test_all_that_keeps_jax_from_the_gpu_is_said_at_once():
    found = diagnose(with_gpu(environment={"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1"}))
    assert [finding.remedy for finding in found] == [
        "unset JAX_PLATFORMS", "unset CUDA_VISIBLE_DEVICES", PIP13
    ]  # fmt: skip


def test_the_document_is_json_and_has_the_facts():
    facts = with_gpu(PLUGIN13, GPU)
    found = json.loads(json.dumps(document(facts, diagnose(facts))))
    assert found["uses_gpu"] and found["nvidia"]["driver"] == "580.65.06"
    assert found["query"]["devices"] == [
        {"platform": "gpu", "kind": "NVIDIA H100", "memory": 2**36}
    ]
    assert "the GPU is used" in "\n".join(lines(facts, []))
    assert not uses_gpu(SOUND) and "no GPU is used" in "\n".join(lines(SOUND, []))


def test_what_a_terminal_obeys_is_not_printed():
    facts = but(environment={"XLA_FLAGS": "\x1b[2J"})
    assert "XLA_FLAGS=\\x1b[2J" in "\n".join(lines(facts, []))


@pytest.mark.parametrize("plugin", ["0.10.2", "0.10.1", "0.10.2.1", "0.10.2+local", "0.10.2.dev1"])
@pytest.mark.parametrize("jaxlib", ["0.10.2", "0.12.0.1", "0.10.2.1"])
def test_plugins_fit_as_jaxlib_says(plugin, jaxlib):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        fits = check_plugin_version("jax_cuda12_plugin", jaxlib, plugin)
    facts = but(
        plugins={"jax-cuda12-plugin": plugin},
        packages=SOUND.packages | {"jaxlib": package("jaxlib", jaxlib)},
    )
    assert (diagnose(facts) == []) == fits


def test_the_pip_line_names_an_extra_that_jax_and_the_package_have():
    assert {"cuda12", "cuda13"} <= set(gathering._extras_of("jax"))
    assert {"cuda12", "cuda13"} <= gathering.extras().keys()
    assert pip_line(but(packages={}), "cuda12") == "/env/python -m pip install 'jax[cuda12]'"


def test_this_environment_has_what_is_required():
    found = gathering.packages()
    assert found["jax"].fits and found["jaxlib"].fits and found["pillow"].required == ">=12"
    assert found["jaxlib"].version == sys.modules["jaxlib"].__version__
    assert all(one.fits for one in found.values())
    missing = gathering.extras()
    assert missing["test"] == ()
    assert missing["cuda12"] in ((), ("jax-cuda12-plugin",))


def test_a_version_that_does_not_fit_is_found(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    found = gathering.packages()
    assert not found["jaxlib"].fits and not found["flax"].fits and found["flax"].version == "0.0.1"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A made-up machine: (its root, a function that puts nvidia-smi on the PATH)."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def smi(script: str) -> None:
        path = tmp_path / "bin" / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return tmp_path / "root", smi


def write(path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_machine_without_nvidia(machine):
    assert gathering.nvidia(machine[0]) == Nvidia()


def test_nvidia_smi_names_gpus_driver_and_lowest_capability(machine):
    machine[1]("echo 'NVIDIA H100 80GB, 580.65.06, 9.0'; echo 'Tesla V100, 580.65.06, 7.0'")
    found = gathering.nvidia(machine[0])
    assert found == Nvidia(("NVIDIA H100 80GB", "Tesla V100"), "580.65.06", 7.0)
    assert found.count == 2


def test_an_old_nvidia_smi_knows_no_capability(machine):
    machine[1]('case "$1" in *compute_cap*) exit 2;; esac; echo "Tesla K80, 470.42.01"')
    assert gathering.nvidia(machine[0]) == Nvidia(("Tesla K80",), "470.42.01")


def test_the_driver_is_found_without_nvidia_smi(machine):
    root, smi = machine
    smi("echo 'NVIDIA-SMI has failed: no communication' >&2; exit 9")
    kernel = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
    write(root / "proc/driver/nvidia/version", kernel + "GCC version:  gcc version 13.3.0 (x)\n")
    (root / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        write(root / "dev" / name, "")
    for slot, vendor, kind in (("1", "0x10de", "0x030200"), ("2", "0x10de", "0x040300")):
        write(root / f"sys/bus/pci/devices/{slot}/vendor", f"{vendor}\n")
        write(root / f"sys/bus/pci/devices/{slot}/class", f"{kind}\n")
    found = gathering.nvidia(root)
    assert found.device_files == ("/dev/nvidia0", "/dev/nvidia1") and found.count == 2
    assert (found.driver, found.known_to_driver, found.on_bus) == ("580.65.06", 1, 1)
    assert "no communication" in found.problem and found.gpus == ()


def test_nvidia_smi_that_hangs_is_given_up(machine, monkeypatch):
    monkeypatch.setattr(gathering, "_SMI_LIMIT", 0.5)
    machine[1]("sleep 600 & sleep 600")
    begin = time.monotonic()
    assert "does not answer" in gathering.nvidia(machine[0]).problem
    assert time.monotonic() - begin < 30


def test_a_device_plugin_that_hangs_does_not_hang_the_doctor(tmp_path, monkeypatch):
    plugin = tmp_path / "jax_plugins" / "hanging" / "__init__.py"
    write(plugin, "import time\n\ndef initialize():\n    time.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    begin = time.monotonic()
    query = gathering.query_devices(8.0)
    assert time.monotonic() - begin < 60
    assert query.timed_out and query.status is None and "devices" not in query.done
    assert "no answer within 8 s" in diagnose(but(query=query))[0].text


def test_a_flag_that_xla_does_not_know_is_named(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such_flag=1")
    (finding,) = diagnose(but(query=gathering.query_devices(120.0)))
    assert "--xla_no_such_flag=1" in finding.text and "XLA_FLAGS" in finding.remedy


def test_a_platform_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    query = gathering.query_devices(120.0)
    (finding,) = diagnose(but(query=query, environment={"JAX_PLATFORMS": "cuda"}))
    assert "JAX_PLATFORMS='cuda'" in finding.text and "unset JAX_PLATFORMS" in finding.remedy


def test_the_doctor_prints_one_document_about_this_machine(tmp_path):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-m", "m2det_jax.doctor", "--json"],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert result.returncode == (not found["well"])
    assert found["query"]["done"] == ["import", "devices", "convolution"]
    assert len(found["query"]["devices"]) == 8 and found["environment"]["JAX_PLATFORMS"] == "cpu"
    assert found["cache"]["path"] == str(tmp_path / "cache") and found["work"]["free"] > 0
    assert found["packages"]["jax"]["version"] == sys.modules["jax"].__version__


def test_the_cache_is_where_the_verbs_have_it(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    program = "import jax; from m2det_jax import runtime; runtime.start(); "
    program += "print(jax.config.jax_compilation_cache_dir)"
    command = [sys.executable, "-c", program]
    printed = subprocess.check_output(command, env=environment, text=True, stderr=subprocess.PIPE)
    assert printed.strip() == gathering.cache_folder(environment) == str(tmp_path / "m2det_jax")


def test_a_folder_that_does_not_exist_has_the_room_of_the_one_above(tmp_path):
    found = gathering.folder(str(tmp_path / "a" / "b"))
    assert found.free and found.writable and found.path == str(tmp_path / "a" / "b")
    assert gathering.folder("gs://bucket/cache") == Folder("gs://bucket/cache", None, None, True)
    (tmp_path / "file").write_text("")
    assert not gathering.folder(str(tmp_path / "file" / "cache")).writable


def test_the_fix_for_a_gpu_that_fails_is_not_to_do_without_it():
    failed = dataclasses.replace(CPU, status=1, done=("import",), messages=("no cuDNN",))
    for asked in ("cuda", "cuda,cpu", ""):
        found = diagnose(with_gpu(PLUGIN13, failed, {"JAX_PLATFORMS": asked}))
        assert found and not any("unset JAX_PLATFORMS" in finding.remedy for finding in found)
    found = diagnose(but(query=failed, environment={"JAX_PLATFORMS": "cuda"}))
    assert "unset JAX_PLATFORMS" in found[0].remedy  # there is no GPU


def test_a_full_disk_of_the_cache_alone_is_no_error():
    full = dataclasses.replace(SOUND.cache, free=2**20)
    (finding,) = diagnose(but(cache=full))
    assert finding.severity == "warning" and "checkpoint" not in finding.text
