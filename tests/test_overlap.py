"""The next batch is on its way to the device while the step before it runs."""

import support

from m2det_jax import train as loop
from m2det_jax.run.progress import Progress


def test_nothing_is_waited_for_between_steps(drawn_files, tmp_path, monkeypatch):
    """A batch is put, and its step started, before anybody looks at the step before it."""
    events, put, check = [], loop.put_batch, Progress.check

    def noting_put(batch, sharding):
        events.append(("put", 1 + sum(kind == "put" for kind, _ in events)))
        return put(batch, sharding)

    def noting_check(progress):
        if progress.pending is not None:
            events.append(("look at", progress.pending[0]))
        check(progress)

    monkeypatch.setattr(loop, "put_batch", noting_put)
    monkeypatch.setattr(Progress, "check", noting_check)
    config = support.short_config(drawn_files, max_steps=3, eval__every_epochs=100.0)
    loop.train(config, tmp_path / "run")
    expected = [("put", 1), ("put", 2), ("look at", 1), ("put", 3), ("look at", 2)]
    assert events[: len(expected)] == expected
