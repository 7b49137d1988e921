"""What a tracker has stored of a run, as JSON: python tests/trackers_stored.py NAME WORKDIR.

A program of its own, as the packages change the process that imports them. It prints {"config",
"runs", "points": {scalar: [[step, value], ...]}}.
"""

import collections
import json
import os
import pathlib
import sqlite3
import struct
import sys


def wandb(workdir: pathlib.Path) -> dict:
    """Reads the transaction log of each offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    points, runs, config = collections.defaultdict(list), set(), {}
    for path in sorted(workdir.glob("trackers/wandb/offline-run-*/*.wandb")):
        for data in _log_records(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                runs.add(record.run.run_id)
                config = {
                    item.key: json.loads(item.value_json) for item in record.run.config.update
                }
            elif kind == "history":
                row = _items(record.history.item)
                for name in row.keys() - {"step", "_step", "_timestamp", "_runtime"}:
                    points[name].append([row["step"], row[name]])
    return {"config": config, "runs": len(runs), "points": points}


def _items(items) -> dict:
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


def _log_records(data: bytes):
    """Yields the records of a file in the form of LevelDB's log, after a header of 7 bytes."""
    at, record = 7, b""
    while at + 7 <= len(data):
        rest = 32768 - at % 32768
        if rest < 7:
            at += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def mlflow(workdir: pathlib.Path) -> dict:
    """Reads the database in the workdir by MLflow's own client."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workdir}/trackers/mlflow.db")
    experiment = client.get_experiment_by_name("m2det_jax").experiment_id
    runs = client.search_runs([experiment])
    points = {}
    for name in runs[0].data.metrics:
        history = client.get_metric_history(runs[0].info.run_id, name)
        points[name] = [[metric.step, metric.value] for metric in history]
    assert runs[0].info.status == "FINISHED"
    return {"config": runs[0].data.params, "runs": len(runs), "points": points}


def trackio(workdir: pathlib.Path) -> dict:
    """Reads the database of the project."""
    points, path = collections.defaultdict(list), f"{os.environ['TRACKIO_DIR']}/m2det_jax.db"
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT run_id, step, metrics FROM metrics ORDER BY id").fetchall()
        (config,) = database.execute("SELECT config FROM configs").fetchone()
    for _, step, metrics in rows:
        for name, value in json.loads(metrics).items():
            points[name].append([step, value])
    return {
        "config": json.loads(config),
        "runs": len({run for run, _, _ in rows}),
        "points": points,
    }


if __name__ == "__main__":
    readers = {"wandb": wandb, "mlflow": mlflow, "trackio": trackio}
    print(json.dumps(readers[sys.argv[1]](pathlib.Path(sys.argv[2]))))
