"""Commands of README.md and docs/: each parses with the parser of its own verb, or is named here.

Nothing is run: this finds verbs, flags, keys and experiments that do not exist.
"""

import ast
import contextlib
import importlib
import io
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from m2det_jax.__main__ import VERBS
from m2det_jax.config import default_config
from m2det_jax.config.dotted import flatten
from m2det_jax.config.experiments import experiments_dir

REPOSITORY = pathlib.Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
MODULES = {verb.module: name for name, verb in VERBS.items()} | {"train": "train"}
# Commands of others, which no test runs. They are printed for the reader as they are.
NOT_RUN = {
    "pip": "installs, from an index",
    "make": "targets of the Makefile; a test looks for their names",
    "srun": "needs SLURM",
    "mpirun": "needs Open MPI",
    "export": "an environment variable",
    "git": "tags and pushes a release",
    "onnx2tf": "needs Python 3.12 and packages of exact versions",
    "tensorboard": "another program, with a page of its own",
}
# Modules that `python -m` starts beside the verbs; tests of their own start them.
OTHER_MODULES = re.compile(
    r"(benchmarks|pytest|pip|venv|build|twine|mkdocs|m2det_jax\.data\.synthetic)\b"
)


def shell_lines(text: str) -> list[str]:
    """Returns the commands of the shell blocks of a page, with their continued lines joined."""
    blocks = re.findall(r"^ *```(?:sh|bash)\n(.*?)^ *```", text, flags=re.M | re.S)
    found, open_line = [], ""
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        line = f"{open_line} {line}".strip()
        code = line.split(" #")[0]
        open_line = line if code.count('"') % 2 or code.count("'") % 2 else ""
        if line and not open_line and not line.startswith("#"):
            found.append(line)
    assert not open_line, open_line
    return found


def inline_commands(text: str) -> list[str]:
    """Returns the commands between backticks that start a verb with a flag or an argument."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    quoted = (" ".join(part.split()) for part in re.findall(r"`([^`]+)`", text))
    return [
        part for part in quoted if re.match(r"(m2det \w|m2det-\w+ -|python -m m2det_jax\S* )", part)
    ]


def words_of(line: str, variables: dict[str, str]) -> list[str]:
    """Returns the words of a command, without its comment and what follows a pipe."""
    for name, value in variables.items():
        line = line.replace(f"${name}", value)
    return shlex.split(line, comments=True)


def verb_of(words: list[str]) -> tuple[str, list[str]] | None:
    """Returns a verb and its arguments; None: the command is not one of ours."""
    words = [word for word in words if not re.fullmatch(r"[A-Z0-9_]+=\S*", word)]
    if "|" in words:
        words = words[: words.index("|")]
    for i, word in enumerate(words):
        if word == "m2det" and words[i + 1 :] not in ([], ["VERB", "..."], ["VERB", "--help"]):
            return words[i + 1], words[i + 2 :]
        if word.startswith("m2det-"):
            return word.removeprefix("m2det-"), words[i + 1 :]
        if word == "-m" and (module := words[i + 1]).startswith("m2det_jax"):
            name = module.removeprefix("m2det_jax").removeprefix(".")
            if not name and words[i + 2] == "VERB":
                return None
            if not name:
                return words[i + 2], words[i + 3 :]
            if name in MODULES:
                return MODULES[name], words[i + 2 :]
            assert OTHER_MODULES.match(module), f"there is no module {module}"
    return None


def all_commands() -> list[tuple[str, str, tuple[str, ...]]]:
    """Returns (page, verb, arguments) of every command of ours on every page."""
    found = []
    for page in PAGES:
        text, variables = page.read_text(), {}
        for line in shell_lines(text) + inline_commands(text):
            if assigned := re.fullmatch(r"([A-Z]+)=\"(.*)\"", line):
                variables[assigned[1]] = assigned[2]
                continue
            with contextlib.suppress(ValueError):  # half a quotation, in a sentence
                if verb := verb_of(words_of(line, variables)):
                    found.append((page.name, verb[0], tuple(verb[1])))
    return sorted(set(found))


pytestmark = pytest.mark.usefixtures("plain_parsers")
COMMANDS = all_commands()
# Verbs with absl flags can be parsed once in a process only.
FLAGS_OF_ABSL = ("train", "check")


def parse(verb: str, arguments: list[str]) -> None:
    """Parses a command line of a verb whose flags are argparse's.

    Raises:
        SystemExit: if the parser refuses it, or prints its help.
    """
    module = importlib.import_module(f"m2det_jax.{VERBS[verb].module}")
    module = (
        module
        if hasattr(module, "_parser") or hasattr(module, "parse")
        else (importlib.import_module(f"m2det_jax.{VERBS[verb].module}.__main__"))
    )
    if hasattr(module, "_parser"):
        module._parser().parse_args(arguments)
    else:
        module.parse(arguments)


def refusal(verb: str, arguments: tuple[str, ...]) -> str:
    """Returns what a parser says against a command line; "": it is accepted."""
    assert verb in VERBS, f"there is no verb {verb}"
    arguments = tuple(word for word in arguments if word != "...")
    if not arguments or "--help" in arguments:
        return ""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parse(verb, list(arguments))
    except SystemExit as ended:
        return "" if not ended.code else f"{said.getvalue()} {ended.code}"
    return ""


ARGPARSE = [command for command in COMMANDS if command[1] not in FLAGS_OF_ABSL]


@pytest.mark.parametrize(("page", "verb", "arguments"), ARGPARSE)
def test_a_command_of_the_pages_parses(page, verb, arguments):
    assert not refusal(verb, arguments), f"{page}: m2det {verb} {' '.join(arguments)}"


def test_a_flag_that_does_not_exist_would_be_found():
    assert "unrecognized arguments: --thresold" in refusal(
        "predict", ("--workdir", "x", "a.jpg", "--thresold=0.3")
    )
    assert refusal("convert", ("official", "a.pth", "--size", "320"))
    with pytest.raises(AssertionError, match="no verb"):
        refusal("serv", ())
    with pytest.raises(AssertionError, match="no module"):
        verb_of(["python", "-m", "m2det_jax.serv"])


def test_the_pages_have_many_commands():
    verbs = {verb for _, verb, _ in COMMANDS}
    assert {"train", "check", "evaluate", "predict", "convert", "convert-dataset", "demo"} <= verbs
    assert len(COMMANDS) > 40


# Each line of the standard input is a verb and its arguments, as a tuple of Python. A process
# of its own parses each, because absl's flags keep what they are given.
CHECKER = """
import ast, os, sys
from m2det_jax import main
from m2det_jax.check import __main__ as check
for line in sys.stdin.read().splitlines():
    verb, arguments = ast.literal_eval(line)
    sys.stdout.flush()
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    sys.argv = [verb, *arguments]  # the flags of --config look for overrides there
    try:
        (main if verb == "train" else check).parse(sys.argv)
        print(repr(""))
    except BaseException as error:
        print(repr(f"{error!r}"))
    sys.stdout.flush()
    os._exit(0)
"""


def answers(commands: list[tuple[str, tuple[str, ...]]]) -> list[str]:
    """Returns what the command line of train and check says against each command; "": nothing."""
    lines = "\n".join(repr((verb, arguments)) for verb, arguments in commands)
    done = subprocess.run(
        [sys.executable, "-c", CHECKER],
        input=lines, capture_output=True, text=True, cwd=REPOSITORY, check=True,
    )  # fmt: skip
    return [ast.literal_eval(line) for line in done.stdout.splitlines()]


def test_the_commands_with_a_config_name_keys_and_flags_that_exist():
    # A file or a run of the reader's is not there: the defaults stand for it.
    chosen = []
    for page, verb, arguments in COMMANDS:
        if verb in FLAGS_OF_ABSL and arguments and "--help" not in arguments:
            stand_in = re.sub(
                r"--config[= ]\S*(my_experiment|FILE|NAME|theirs)\S*",
                "--config=small320",
                "\n".join(word for word in arguments if word != "...").replace(
                    "--config\n", "--config="
                ),
            )
            if not re.search(r"^--config=", stand_in, flags=re.M):
                stand_in = f"--config=small320\n{stand_in}"
            chosen.append((page, verb, tuple(stand_in.split("\n"))))
    assert len(chosen) > 12
    said = answers([(verb, arguments) for _, verb, arguments in chosen])
    wrong = [(*command, text) for command, text in zip(chosen, said, strict=True) if text]
    assert not wrong, "\n".join(map(str, wrong))
    bad = [
        ("train", ("--config=small320", "--config.batchsize=3")),
        ("train", ("--config=small3200",)),
        ("check", ("--config=small320", "--fit_anchor")),
        ("train", ("--config=small320", "--config.epochs=many")),
    ]
    assert all(answers(bad))


def test_every_other_command_is_named_as_not_run():
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.M))
    stamps = set(re.findall(r"\.installed[a-z-]*", (REPOSITORY / "Makefile").read_text()))
    for page in PAGES:
        for line in shell_lines(page.read_text()):
            if re.match(r"[A-Z_]+=\"", line) or "m2det" in line.split("#")[0]:
                continue
            first, *rest = line.removeprefix(".venv/bin/").split()
            if first == "make":
                name = rest[0].removeprefix(".venv/")
                assert name in targets | stamps, f"{page.name}: {line}"
            elif first == "python" and rest[0] == "-m":
                assert OTHER_MODULES.match(rest[1]), f"{page.name}: {line}"
            elif first != "python":  # a script, or one line of Python
                assert first in NOT_RUN, f"{page.name}: {line}"


def test_the_targets_that_the_pages_name_exist():
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.M))
    named = {
        name
        for page in [*PAGES, REPOSITORY / "CONTRIBUTING.md"]
        for name in re.findall(r"(?:`|^ {4})make ([a-z-]+)", page.read_text(), flags=re.M)
    }
    assert {"demo", "test", "docs"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_keys_that_a_page_names_exist(page):
    keys = flatten(default_config())
    known = keys | {key.partition(".")[0]: None for key in keys} | {"section.key": None}
    pattern = r"(?<![\w./])(?:--)?config\.([a-z_]+(?:\.[a-z_]+)*)(?![\w*/{])"
    named = set(re.findall(pattern, page.read_text())) - {"json", "py"}
    assert named <= known.keys(), named - known.keys()


def test_links_between_files_lead_somewhere():
    count = 0
    for page in [*PAGES, REPOSITORY / "CONTRIBUTING.md"]:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" not in link and not link.startswith("#"):
                count += 1
                assert (page.parent / link.partition("#")[0]).exists(), f"{page.name}: {link}"
    assert count > 60


def written_texts() -> list[str]:
    """Returns the texts of the package's code; a value in one becomes "..."."""
    texts = []
    for path in (REPOSITORY / "m2det_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "..." for v in node.values)
                texts.append("".join(map(str, parts)))
    return texts


def test_the_ten_messages_are_those_of_the_code():
    text = (REPOSITORY / "docs/troubleshooting.md").read_text()
    table = text[text.index("| message |") : text.index("## One line")]
    messages = re.findall(r"^\| `(.+?)`", table, flags=re.M)
    assert len(messages) == len(set(messages)) == 10
    texts = written_texts()
    for message in messages:
        parts = [re.escape(part) for part in message.split("...") if part.strip()]
        pattern = re.compile(r"\S*\.\.\.\S*".join(parts), flags=re.S)
        assert any(pattern.search(written) for written in texts), message
    assert not any("there is no such door" in written for written in texts)


def test_the_readme_is_short_and_has_what_people_ask_for():
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 90
    assert "No GPU has run this project yet" in text
    for command in ("make demo", "make test", "m2det train", "m2det check", "m2det evaluate"):
        assert command in text
    results = (REPOSITORY / "docs/results.md").read_text()
    for figure in re.findall(r"\d+\.\d+ / \d\.\d+|1,958 ms|4\.3 ms|50 of 50", text):
        assert figure in results, figure


def test_every_experiment_that_is_shipped_is_on_the_page_of_training():
    text = (REPOSITORY / "docs/training.md").read_text()
    table = text[text.index("| experiment |") : text.index("## Keys")]
    names = re.findall(r"`([\w]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", table, flags=re.M)))
    stem = ""
    full = set()
    for name in names:
        stem = stem if name.startswith("_") else name.rpartition("_")[0]
        full.add(f"{stem}{name}" if name.startswith("_") else name)
    assert full == {path.stem for path in experiments_dir().glob("*.py")} - {"__init__"}
