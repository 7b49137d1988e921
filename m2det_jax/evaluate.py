"""Evaluation of a trained detector: the COCO table, VOC AP50 and AP per class.

python -m m2det_jax.evaluate --workdir runs/mine [--checkpoint best] [--csv other.csv]
python -m m2det_jax.evaluate --workdir runs/mine --format coco --root coco --split val2017
"""

import argparse
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any, TextIO

from absl import app
from absl.flags import argparse_flags

from m2det_jax import runtime
from m2det_jax.config.dotted import to_dict
from m2det_jax.datasets.evaluation import DataChoice, read_data
from m2det_jax.detector.evaluation import Stages, format_speed, only_read
from m2det_jax.errors import InputError
from m2det_jax.inference.evaluation import evaluate_restored, evaluation_parser
from m2det_jax.metrics.details import details, format_details
from m2det_jax.metrics.scores import coco_results, format_table
from m2det_jax.pages.markup import printable, without_nan
from m2det_jax.report.run import assemble, page_files, subject_of, write_page
from m2det_jax.run import readers
from m2det_jax.run.outputs import Outputs, refuse_checkpoints
from m2det_jax.trained import restore

log = logging.getLogger("m2det_jax")


def evaluate_checkpoint(
    workdir: pathlib.Path,
    *,
    checkpoint: str = "latest",
    batch_size: int = 0,
    output: str = "",
    overrides: Sequence[str] = (),
    num_workers: int = readers.AUTOMATIC,
    num_threads: int = readers.AUTOMATIC,
    trust: bool = False,
    report: bool = True,
    document: TextIO | None = None,
    **data: Any,
) -> dict:
    """Restores a checkpoint, evaluates it, prints the table and writes what was found.

    Metrics, detections and a report are three files of one folder.

    Args:
        workdir: the --workdir of the training run.
        checkpoint: "latest", "best" (by validation AP), or a step.
        batch_size: images per call, over all devices; 0: the value of the config.
        output: JSON file for the metrics, NAME.json; "": workdir/evaluation/STEP.json. Beside it
            are the detections in COCO result form, NAME_detections.json, and NAME.html.
        overrides: changes of config.eval, such as "eval.nms=soft_linear".
        num_workers: worker processes that read images; -1: chosen for the host.
        num_threads: reading threads of each process; -1: chosen for the host.
        trust: allow the import of a Python module that the run names as config.data.format.
        report: write NAME.html, the page of `m2det report`.
        document: a file that also receives the metrics and the names of the files, as JSON.
        data: fields of datasets.evaluation.DataChoice, such as csv="test.csv"; none: the validation
            set of the run.

    Returns:
        The metrics by name.

    Raises:
        InputError: if the checkpoint, the data or an argument is not valid, or a file of the user
            would be replaced.
    """
    choice = DataChoice(**data)
    restored = restore(workdir, checkpoint, overrides)
    target = pathlib.Path(output or workdir / "evaluation" / f"{restored.step:08d}.json")
    names = [target.name, f"{target.stem}_detections.json"]
    page = f"{target.stem}.html"
    if report:
        if target.name == page:
            raise InputError(f"--output {target}: give a .json file; the page beside it is {page}")
        names += page_files(page)
    outputs = Outputs(target.parent, "evaluate")
    refuse_checkpoints(outputs.folder, workdir)
    outputs.claim(names, choice.files)
    index, source = read_data(choice, restored, workdir, trust=trust)
    outputs.claim(names, index.image_paths)
    target.parent.mkdir(parents=True, exist_ok=True)
    log.info("evaluating step %d on %d images of %s", restored.step, index.num_images, source)
    reading, stages = {"num_workers": num_workers, "num_threads": num_threads}, Stages()
    metrics, detections = evaluate_restored(
        restored, index, batch_size, "--batch_size", stages, **reading
    )
    read = only_read(index, detections)
    figures = details(*read)
    record = without_nan(metrics | figures) | {"step": restored.step, "data": source}
    record["speed"] = without_nan(stages.speed())
    record["eval"] = to_dict(restored.config.eval)
    outputs.write(names[0], json.dumps(record, indent=2) + "\n")
    outputs.write(names[1], json.dumps(coco_results(index, detections)) + "\n")
    print(format_table(metrics))
    print(f"\n{format_details(metrics, figures)}")
    print(format_speed(stages.speed()))
    print(printable(f"written: {target} and {names[1]}"))
    if report:
        subject = subject_of(restored, workdir, source, trust)
        write_page(outputs, page, assemble(subject, *read, metrics, figures))
        print(printable(f"report: {target.with_name(page)}; open it in a browser"))
    if document:
        files = [str(target.with_name(name)) for name in names]
        runtime.write_json(document, record | {"files": files})
    return metrics


def _parser() -> argparse_flags.ArgumentParser:
    parser = evaluation_parser(
        "m2det evaluate",
        "Evaluate a trained detector on annotated images.",
        "default: WORKDIR/evaluation/STEP.json",
    )
    parser.add_argument(
        "--no_report", action="store_false", dest="report", help="write no page beside the JSON"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Runs the command with parsed arguments."""
    runtime.run_verb(evaluate_checkpoint, args)


def cli() -> None:
    """Entry point of `m2det-evaluate`."""
    app.run(main, flags_parser=lambda argv: _parser().parse_args(argv[1:]))


if __name__ == "__main__":
    cli()
