"""The benchmarks start, and what they compute besides times is right. Nothing heavy is run."""

import dataclasses
import importlib
import io
import pathlib
import re
import subprocess
import sys
import time
from collections import Counter

import jax
import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = sorted(
    path.stem
    for path in (REPOSITORY / "benchmarks").glob("*.py")
    if path.stem not in ("timing", "experiment", "faults", "outcome", "step_numbers", "programs")
    if path.stem not in ("recorded_run", "arrays_of")  # scripts of roads and same
)
# One of these is in the help of every command.
OPTIONS = ("--rounds", "--steps", "--numbers", "--rooms", "--candidates", "--pairs", "--objects")


@pytest.fixture(autouse=True)
def repository_on_path(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY)


@pytest.fixture
def timing():
    return importlib.import_module("benchmarks.timing")


@pytest.fixture
def experiment():
    return importlib.import_module("benchmarks.experiment")


def test_all_commands_are_here():
    assert {"forward", "train_step", "matching", "nms", "loader", "startup"} <= set(COMMANDS)
    assert {"fault_storm", "scaling"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_its_options(name, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert any(option in text for option in OPTIONS)


def test_runs_as_a_module_from_the_root():
    command = [sys.executable, "-m", "benchmarks.matching", "--help"]
    assert "--crowd" in subprocess.check_output(command, cwd=REPOSITORY, text=True)


@pytest.mark.parametrize(
    ("duration", "text"),
    [(0.00123, "1.23 ms"), (0.0123, "12.3 ms"), (1.234, "1234 ms"), (12.34, "12.3 s")],
)
def test_durations_are_readable(timing, duration, text):
    assert timing.readable(duration) == text


def test_spread_gives_median_and_both_ends(timing):
    assert timing.spread([0.3, 0.1, 0.2]) == "200 ms (100 ms to 300 ms, median of 3 rounds)"
    assert timing.spread([0.3]).endswith("1 round)")


def test_speed_is_of_the_median_round_and_the_peak_of_the_best(timing, capsys):
    gemm_flops = 2 * timing.default_gemm_size() ** 3
    fast = gemm_flops / 100e9  # seconds at 100 GFLOP/s
    timing.print_speed("model", 50e9, [1.0, 2.0, 9.0], [3 * fast, fast])
    out = capsys.readouterr().out
    assert "25.0 GFLOP/s" in out and "100.0 GFLOP/s" in out and "25.0 %" in out


def test_works_take_turns_after_one_untimed_call(timing):
    calls = []
    samples = timing.take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert {name: len(durations) for name, durations in samples.items()} == {"a": 3, "b": 3}
    assert min(samples["a"]) >= 0


def test_gemm_multiplies(timing):
    assert timing.gemm(8)().shape == (8, 8)


def test_machine_line_names_jax(timing, capsys):
    timing.print_machine()
    assert f"jax {jax.__version__}" in capsys.readouterr().out


def test_peak_memory_is_in_bytes(timing):
    assert 50e6 < timing.peak_memory() < 1e12


def test_overrides_are_checked_and_typed(experiment):
    config = experiment.load("quickstart", ["batch_size=4", "data.train_csv=some file.csv"])
    assert config.batch_size == 4 and config.data.train_csv == "some file.csv"
    with pytest.raises(KeyError):
        experiment.load("quickstart", ["batchsize=4"])
    with pytest.raises(TypeError):
        experiment.load("quickstart", ["batch_size=four"])
    with pytest.raises(ValueError, match="batch_size"):
        experiment.load("quickstart", ["batch_size=0"])


def test_random_objects_lie_in_the_image(experiment):
    objects = experiment.random_objects((100, 300), 5, batch_size=3, count=50)
    boxes, labels = objects["boxes"], objects["labels"]
    assert boxes.shape == (3, 50, 4) and objects["mask"].all()
    assert (boxes >= 0).all() and (boxes <= [300, 100, 300, 100]).all()
    assert (boxes[..., 2:] > boxes[..., :2]).all() and boxes[..., 2].max() > 150
    assert set(np.unique(labels)) == set(range(5))


def test_trained_like_scores_are_near_zero_but_for_some_hundreds():
    nms = importlib.import_module("benchmarks.nms")
    logits = nms.trained_like_logits(np.random.default_rng(0), 4000, 20, num_high=400)
    probability = 1 / (1 + np.exp(-logits))
    assert logits.shape == (4000, 20) and logits.dtype == np.float32
    assert np.median(probability) < 0.01
    assert 200 < (probability > 0.5).sum() < 400
    assert len(set(np.argwhere(probability > 0.5)[:, 1])) == 20


def test_kernels_of_loops_are_read_from_a_compiled_program():
    programs = importlib.import_module("benchmarks.programs")

    def count_down(x):
        def one_round(x):
            return jax.lax.sort(x - 1)  # not fused: two kernels

        return jax.lax.while_loop(lambda x: x.sum() > 0, one_round, x)

    text = jax.jit(count_down).lower(np.ones(64, np.float32)).compile().as_text()
    (loop,) = programs.loops(text)
    assert "while" in loop.name and 2 <= loop.body <= 4 and 1 <= loop.condition <= 3
    assert list(programs.loops(jax.jit(jax.numpy.sum).lower(np.ones(3)).compile().as_text())) == []
    assert programs.opcode("%a.1 = (f32[2]{0}, /*index=1*/s32[]) while(%b), body=%c") == "while"


def test_soft_nms_counts_what_both_ways_take(capsys):
    soft_nms = importlib.import_module("benchmarks.soft_nms")
    soft_nms.main(["--classes", "3", "--candidates", "24"])
    printed = re.findall(r"rounds ([\d.]+) -> ([\d.]+)", capsys.readouterr().out)
    rounds = [(float(before), float(after)) for before, after in printed]
    assert len(rounds) == 6
    assert all(after <= max(1, before / 3) for before, after in rounds)


def test_crowded_anchors_are_those_of_the_paper():
    matching = importlib.import_module("benchmarks.matching")
    assert matching.anchors_for(320).shape == (12_810, 4)
    assert matching.anchors_for(512).shape == (32_760, 4)


def test_startup_stops_its_clock_at_the_first_step_only():
    startup = importlib.import_module("benchmarks.startup")
    log = io.StringIO("12:00:00 devices: 1\n12:00:01 step 1/90  loss 2\n12:00:02 step 2/90  loss\n")
    duration, written = startup._time_of_first_step(log, start=0.0)
    assert duration > 0 and "devices" in written
    assert log.readline().startswith("12:00:02")
    assert startup._time_of_first_step(["step 11/90  loss 2.0\n"], 0.0)[0] is None


def test_startup_names_what_the_command_wrote_when_it_fails(tmp_path):
    startup = importlib.import_module("benchmarks.startup")
    program = "import sys; sys.exit('error: no such thing')"
    with pytest.raises(RuntimeError, match="no such thing"):
        startup.seconds_to_first_step([sys.executable, "-c", program], tmp_path)


def test_loss_counts_as_falling_against_untrained_weights_on_the_same_batches(capsys):
    steps = importlib.import_module("benchmarks.vgg512_steps")
    once, small = Counter({"jit(train_step)": 1, "_merge": 3}), 2**30
    untrained = [4.0, 3.0, 3.5, 6.0]
    assert steps.last_quarter([4, 2, 9, 9, 9, 9, 3, 1]) == 2
    assert steps.report([4.0, 3.0, 3.5, 5.0], untrained, once, small)
    assert "NO" not in capsys.readouterr().out
    assert not steps.report([4.0, 3.0, 3.5, 6.5], untrained, once, small)
    assert not steps.report([4.0, float("nan"), 3.0, 2.0], untrained, once, small)
    assert not steps.report([4.0, 3.0, 3.5, 5.0], untrained, Counter({"train_step": 2}), small)
    assert not steps.report([4.0, 3.0, 3.5, 5.0], untrained, once, 13 * 2**30)
    assert capsys.readouterr().out.count("NO") == 4


def test_compilations_are_counted_by_function():
    steps = importlib.import_module("benchmarks.vgg512_steps")
    compilations = steps.count_compilations()

    def a_new_function(x):
        return x * 3 + 1

    jitted = jax.jit(a_new_function)
    jitted(np.ones(3, np.float32)), jitted(np.ones(3, np.float32)), jitted(np.ones(4, np.float32))
    assert [n for name, n in compilations.items() if "a_new_function" in name] == [2]


def test_index_size_reads_what_it_draws(tmp_path):
    command = [sys.executable, "-m", "benchmarks.index_size", "--images", "30", "--boxes", "200"]
    result = subprocess.run(
        [*command, "--folder", str(tmp_path)], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["csv", "coco"]
    assert all("30 images, 200 boxes:" in line for line in lines) and not any(tmp_path.iterdir())


@pytest.fixture
def scaling():
    return importlib.import_module("benchmarks.scaling")


@pytest.fixture
def step_numbers():
    return importlib.import_module("benchmarks.step_numbers")


def test_all_reduces_are_read_from_a_compiled_program(step_numbers):
    from m2det_jax.run.devices import data_mesh

    replicated, by_batch = data_mesh()

    def gradient(w, x):
        return jax.grad(lambda w: (x @ w).sum() / (1 + x.sum()))(w)

    step = jax.jit(gradient, in_shardings=(replicated, by_batch), out_shardings=replicated)
    shapes = jax.ShapeDtypeStruct((5, 3), np.float32), jax.ShapeDtypeStruct((16, 5), np.float32)
    found = step_numbers.messages(step.lower(*shapes).compile().as_text())
    assert sum(found) in (5 * 3 * 4 + 4, 5 * 4 + 4)  # XLA may reduce before it broadcasts


def test_all_reduces_of_every_form_are_counted(step_numbers):
    text = """
  %a.1 = f32[3,3,256,256]{3,2,1,0} all-reduce(%x), channel_id=1, to_apply=%add
  ROOT %a.2 = (f32[64]{0}, bf16[2,2]{1,0}, pred[]) all-reduce-start(%y, %z), channel_id=2
  %fusion = f32[64]{0} fusion(%all-reduce.2), kind=kLoop
"""
    assert step_numbers.messages(text) == [4 * 9 * 256 * 256, 4 * 64 + 2 * 4 + 1]


def test_all_reduce_takes_what_a_ring_takes(scaling):
    gpu = scaling.Gpu("toy", peak=1e12, memory=1e9, per_node=4, within=100.0, between=10.0)
    assert scaling.all_reduce_seconds(400, 1, gpu) == 0
    assert scaling.all_reduce_seconds(400, 2, gpu) == pytest.approx(2 * 1 / 2 * 400 / 100)
    assert scaling.all_reduce_seconds(400, 4, gpu) == pytest.approx(6)  # 2 * 3 / 4 * 4 s
    # Two nodes: each GPU brings its fourth, 100 bytes, to the other node: 2 * 1 / 2 * 10 s.
    assert scaling.all_reduce_seconds(400, 8, gpu) == pytest.approx(6 + 10)
    assert scaling.all_reduce_seconds(400, 32, gpu) == pytest.approx(6 + 2 * 7 / 8 * 10)


def test_efficiency_by_hand(scaling):
    gpu = scaling.Gpu("toy", peak=1e12, memory=1e9, per_node=4, within=100.0, between=10.0)
    assumed = scaling.Assumed(
        utilisation=0.5, latency_within=0.01, latency_between=0.1, backward=0.5
    )
    numbers = {"flops": 10**12, "reduced": 400, "small_reductions": 100}
    alone = scaling.estimate(numbers, 4, 1, gpu, assumed)
    assert alone["compute"] == pytest.approx(8)  # 4 images of 1 TFLOP at 0.5 TFLOP/s
    assert alone["without"] == alone["with"] == 1
    node = scaling.estimate(numbers, 4, 4, gpu, assumed)
    assert (node["gradients"], node["statistics"]) == pytest.approx((6, 1))
    assert node["without"] == pytest.approx(8 / (8 + 1 + 6))
    assert node["with"] == pytest.approx(8 / (8 + 1 + 6 - 4))  # 4 s behind the backward pass
    nodes = scaling.estimate(numbers, 4, 8, gpu, assumed)
    assert nodes["statistics"] == pytest.approx(10)
    assert nodes["with"] == pytest.approx(8 / (8 + 10 + 16 - 4))
    hidden = scaling.estimate(numbers | {"reduced": 40}, 4, 4, gpu, assumed)
    assert hidden["with"] == pytest.approx(8 / 9)  # 0.6 s of gradients are hidden altogether


def test_what_the_backward_pass_needs_grows_with_the_batch(step_numbers):
    import support

    from m2det_jax.build import build_detector
    from m2det_jax.model import variable_shapes

    def kept(batch_size, **overrides):
        config = support.tiny_config(overrides={"model.num_levels": 1} | overrides)
        detector = build_detector(config, ("a",))
        variables = variable_shapes(detector.model, detector.resize.image_size)
        return step_numbers.saved_bytes(detector, variables, batch_size)

    one, two = kept(1), kept(2)
    assert two - one > 64 * 96 * 8 * 4  # the first layer's output alone
    half = {"model.dtype": "bfloat16"}
    # Statistics and losses stay in float32.
    assert 0.4 < (kept(2, **half) - kept(1, **half)) / (two - one) < 0.85


def test_memory_by_hand(scaling):
    numbers = {"state": 300, "parameters": 100, "kept_bfloat16": 50}
    gpu = scaling.Gpu("toy", peak=1e12, memory=1000.0, per_node=4, within=100.0, between=10.0)
    assert scaling.memory_needed(numbers, 8) == 800
    assert scaling.memory_table({"toy": numbers}, 8, gpu)[-1].split("|")[-2].strip() == "10"


def test_numbers_of_a_program_fit_together(step_numbers, monkeypatch):
    import support

    monkeypatch.setattr(step_numbers, "CLASSES", 5)
    config = support.tiny_config(overrides={"model.num_levels": 1, "accumulation": 1})
    found = step_numbers.read_program(config)
    assert found["state"] == 2 * found["average"] + found["optimizer"] + 4  # and the step
    assert 0.5 * found["flops"] < found["compiler_flops"] < 1.1 * found["flops"]
    assert found["parameters"] < found["reduced"] < 1.1 * found["parameters"]
    assert 10 < found["small_reductions"] < 1000
    assert found["temporaries"] > found["parameters"]


def test_the_document_holds_what_the_command_prints(scaling, capsys):
    numbers = REPOSITORY / "docs" / "scaling.json"
    scaling.main(["--numbers", str(numbers)])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    document = (REPOSITORY / "docs" / "scaling.md").read_text().splitlines()
    assert len(printed) > 20
    assert [line for line in printed if line not in document] == []


def test_commits_are_timed_in_turns(monkeypatch, capsys, tmp_path):
    commits = importlib.import_module("benchmarks.commits")
    started = []

    def run(command, cwd=None, **options):
        if command[0] != "git":
            started.append((pathlib.Path(cwd).name, command[5:]))
        return subprocess.CompletedProcess(command, 0, "", "")

    clock = iter([0.0, 4.0, 0.0, 5.0, 0.0, 7.0, 0.0, 6.0])  # starts and ends
    monkeypatch.setattr(commits.subprocess, "run", run)
    monkeypatch.setattr(commits.time, "perf_counter", lambda: next(clock))
    commits.main(["abc", "--", "--config", "small320"])
    tree = commits.REPOSITORY.name
    given = ["--config", "small320"]
    assert started == [("before", given), (tree, given), (tree, given), ("before", given)]
    assert "after over before: 1.200 (6.0 s over 5.0 s)" in capsys.readouterr().out
    monkeypatch.setattr(
        commits.subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, 1, "", "no such")
    )
    monkeypatch.setattr(commits.time, "perf_counter", lambda: 0.0)
    with pytest.raises(RuntimeError, match="no such"):
        commits.seconds_of_run(tmp_path, [], tmp_path, tmp_path)


def test_the_structure_of_a_package_is_counted():
    structure = importlib.import_module("benchmarks.structure")
    sources = {
        "m2det_jax": "from m2det_jax.low.b import f\n",
        "m2det_jax.main": "from m2det_jax import low\nfrom m2det_jax.up import a\n",
        "m2det_jax.low": "",
        "m2det_jax.low.b": "def f():\n    return 1\n",
        "m2det_jax.up": "import m2det_jax.up.a\n",
        "m2det_jax.up.a": "from m2det_jax.low.b import f\n",
    }
    found = structure.measure(sources, {"m2det_jax", "m2det_jax.low", "m2det_jax.up"})
    assert found.files == {"": 2, "low": 2, "up": 2}
    assert found.arrows == {"": set(), "main": {"low", "up"}, "low": set(), "up": {"low"}}
    assert found.floors == {"": 0, "low": 0, "up": 1, "main": 2}
    assert found.circles == [] and found.function_lines == {"m2det_jax.low.b.f": 2}
    assert found.one_importer == ["m2det_jax.low"]
    assert structure.floors_of({"a": {"b"}, "b": {"a", "c"}, "c": set()}) == {
        "a": 1,
        "b": 1,
        "c": 0,
    }


def test_wording_pairs_what_differs_before_and_after():
    wording = importlib.import_module("benchmarks.wording")
    raising = '    raise ValueError(f"{x} a {y} b" "c")\n'
    before = {
        "p.a": f'"""Old words.\n\nMore."""\ndef f(x):\n    """Same\n    text."""\n{raising}',
        "p.b": 'def moved():\n    """Old moved."""\n    p("one two")\n    g("a b c", "d e f")\n',
        "p.c": 'def twice():\n    """Old."""\n\ndef gone():\n    """Gone."""\n',
        "p.d": 'def twice():\n    """Old."""\n',
    }
    moved = 'def moved():\n    """New moved."""\n    g("d e f", "a b d")\n'
    after = {
        "p.a": '"""New words."""\ndef f(x):\n    """Same text."""\n' + raising.replace("c", "d"),
        "p.new": f"class A:\n    x = 1\n\n{moved}",
        "p.e": 'def twice():\n    """New."""\n',
    }
    assert wording.compare(before, after) == [
        ("p.a, docstring", "Old words. More.", "New words."),
        ("p.a.f, message", "{...} a {...} bc", "{...} a {...} bd"),
        ("p.new.moved, docstring", "Old moved.", "New moved."),
        ("p.new.moved, message", "a b c", "a b d"),
    ]
    assert wording.compare(after, after) == []
    assert wording.match(["a b c", "all of this", "xyz"], ["0123 45 67", "all of that"]) == [
        ("all of this", "all of that")
    ]
    assert wording.match(["same", "a b c", "xyz"], ["x y z", "a b", "same"]) == [
        ("a b c", "x y z"),
        ("xyz", "a b"),
    ]


def test_wording_prints_the_pairs_that_a_seed_chooses(monkeypatch, capsys):
    wording = importlib.import_module("benchmarks.wording")

    def sources(commit):
        word = commit or "tree"
        return {f"p.m{i}": f'"""{word} {i}."""' for i in range(30)}, set()

    monkeypatch.setattr(wording, "read_sources", sources)
    printed = []
    for seed in ("1", "1", "2"):
        wording.main(["old", "--pairs", "3", "--seed", seed])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[0].split("\n\n")[0] != ""
    assert [one.count("  before: old") for one in printed] == [3, 3, 3]
    assert printed[0].count("  after:  tree") == 3 and "3 of 30 texts that differ" in printed[0]
    assert printed[0].rpartition("seed")[0] != printed[2].rpartition("seed")[0]


def test_the_rate_of_prediction_is_between_its_first_and_its_last_line():
    predict_rate = importlib.import_module("benchmarks.predict_rate")
    # Compilation comes before the first line, writing of the results after the last.
    samples = [(0.0, 0, 50), (9.0, 2, 100), (10.0, 12, 110), (11.0, 22, 105), (15.0, 22, 107)]
    assert predict_rate.rate_of(samples) == 20 / 2
    assert predict_rate.growth_of(samples) == (110, 110)
    assert predict_rate.growth_of([*samples[:3], (11.0, 22, 140)]) == (110, 140)


def test_a_device_is_busy_from_a_call_to_its_result():
    predict_rate = importlib.import_module("benchmarks.predict_rate")
    busy = predict_rate.Busy()
    work = busy.of(lambda seconds: time.sleep(seconds))
    for seconds in (0.3, 0.1, 0.1):  # the first one compiles
        work(seconds)
        time.sleep(0.1)
    assert 0.3 < busy.share() < 0.7  # two of four tenths


def test_resident_memory_counts_the_children(tmp_path):
    predict_rate = importlib.import_module("benchmarks.predict_rate")
    if not pathlib.Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    before = predict_rate.resident()
    program = "x = b'1' * 100_000_000; print('ready', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)  # fmt: skip
    with child:
        child.stdout.readline()
        grown = predict_rate.resident() - before
        child.communicate(b"\n")
    assert 1e8 < grown < 2e8


def test_metrics_times_two_evaluators_with_equal_figures(capsys, monkeypatch):
    metrics = importlib.import_module("benchmarks.metrics")
    monkeypatch.setattr(metrics, "TARGET", np.inf)  # a time of a loaded machine proves nothing
    metrics.main(["--images", "20", "--detections", "30", "--rounds", "1"])
    printed = capsys.readouterr().out
    first, second = re.findall(r"\(AP (0\.\d+)\)", printed)
    assert first == second and float(first) > 0.05
    monkeypatch.setattr(metrics, "by_hotcoco", lambda *data: metrics.by_pycocotools(data[0], []))
    with pytest.raises(SystemExit, match="not reached"):
        metrics.main(["--images", "20", "--detections", "30", "--rounds", "1"])


def test_label_errors_are_planted_apart_and_counted():
    benchmark = importlib.import_module("benchmarks.label_errors")
    clean, found = importlib.import_module("benchmarks.metrics").drawn(20, 7)
    planted = benchmark.plant(clean, 3)
    assert len(planted.index.labels) == 133 and len(planted.left_out) == 7
    before = clean.boxes[planted.rows], clean.labels[planted.rows]
    changed = np.flatnonzero(planted.index.labels != before[1])
    assert changed.tolist() == planted.swapped.tolist() and len(changed) == 7
    moved = np.flatnonzero((planted.index.boxes != before[0]).any(1))
    assert moved.tolist() == planted.moved.tolist() and not set(moved) & set(changed)
    owners = [np.repeat(np.arange(20), one.counts) for one in (clean, planted.index)]
    assert (owners[1] == owners[0][planted.rows]).all()
    box, size = np.float32([40, 40, 60, 50]), np.array([100, 90])
    for seed in range(20):
        step = benchmark.move(box, size, np.random.default_rng(seed)) - box
        assert 0.249 < np.hypot(step[0] / 20, step[1] / 10) < 0.501
        np.testing.assert_allclose(step[:2], step[2:], atol=1e-4)
    judged = benchmark.outcomes(planted.index, found)
    ranked = benchmark.suspects(planted.index, judged)
    nothing = benchmark.shares(planted, clean, judged, ranked, (set(), set()))
    assert nothing["boxes"] == nothing["clean"]
    every = dataclasses.replace(
        ranked, **{f.name: getattr(ranked, f.name)[::-1] for f in dataclasses.fields(ranked)}
    )
    ends = benchmark.shares(planted, clean, judged, every, (set(), set()))
    assert max(ends["boxes"]) <= 0.5
    whole = benchmark._found(planted, clean, judged, ranked, np.arange(len(ranked.rows)))
    assert whole[:2] == [1, 1]


def test_report_size_tells_size_time_and_memory(tmp_path, capsys):
    report_size = importlib.import_module("benchmarks.report_size")
    page = tmp_path / "a.html"
    few = ["--images", "30", "--detections", "90", "--objects", "80", "--letters", "300"]
    report_size.main([*few, "--classes", "1000", "--output", str(page)])
    line = capsys.readouterr().out
    assert "30 images, 1000 classes, 2400 objects, 2700 detections: page " in line
    assert float(line.split("page ")[1].split(" MB")[0]) == pytest.approx(
        page.stat().st_size / 1e6, abs=0.01
    )
    assert page.read_text(encoding="utf-8").count('<figure class="picture"') > 30
