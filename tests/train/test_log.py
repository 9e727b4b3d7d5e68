"""The log of a run: valid JSON, means over intervals that a restart does not change, no fault that ends it."""

import errno
import json
import math

import jax.numpy as jnp
import pytest
from PIL import Image

from deit_jax import plots
from deit_jax.config import default_config, resolve
from deit_jax.train import log as logs
from deit_jax.train.events import Events
from deit_jax.train.log import JsonLines, Log, mean_of_finite, read_log, to_json

FULL = OSError(errno.ENOSPC, "No space left on device")


def metrics(loss: float, nonfinite: int = 0) -> dict:
    values = {"loss": loss, "grad_norm": loss, "lr": 1e-3, "nonfinite_in_row": nonfinite, "nonfinite_total": nonfinite}
    return {name: jnp.asarray(value) for name, value in values.items()}


def make_log(folder, every=4, start=0, tensorboard=False, **options):
    config = resolve(default_config())
    config.log.every, config.log.tensorboard = every, tensorboard
    return Log(folder, title="student", config=config, start=start, total=12, per_epoch=6, **options)


def losses(folder) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in read_log(folder) if "loss" in r]


def test_the_loss_is_the_intervals_mean_also_over_a_restart(tmp_path):
    log = make_log(tmp_path)
    for step in range(1, 7):
        log.step(step, metrics(float(step)))
    kept = log.interval_losses()
    assert kept == [5.0, 6.0]
    for step in range(7, 9):
        log.step(step, metrics(float(step)))
    log.close()
    whole = losses(tmp_path)
    assert whole == [(4, 2.5), (8, 6.5)]

    resumed = make_log(tmp_path, start=6, losses=json.loads(json.dumps(kept)))
    assert losses(tmp_path) == whole[:1], "what came after the checkpoint is dropped"
    for step in range(7, 9):
        resumed.step(step, metrics(float(step)))
    resumed.close()
    assert losses(tmp_path) == whole


def test_skipped_steps_do_not_hide_the_others(tmp_path):
    assert mean_of_finite([1.0, math.nan, 3.0, math.inf]) == 2.0
    assert math.isnan(mean_of_finite([math.nan]))


def test_values_that_are_not_finite_are_valid_json(tmp_path):
    log = make_log(tmp_path, every=1)
    log.step(1, metrics(math.nan, 1))
    log.step(2, metrics(math.inf, 2))
    log.close()
    text = (tmp_path / "log.jsonl").read_text()
    records = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [r["loss"] for r in records] == [None, None]
    assert all(math.isnan(loss) for _, loss in losses(tmp_path))
    assert to_json({"a": [1.0, math.inf], "b": {"c": math.nan}}) == {"a": [1.0, None], "b": {"c": None}}


def test_an_evaluation_that_is_not_recorded_is_dropped_and_logged_again(tmp_path):
    results = {"params": {"top1": 50.0, "top5": 90.0, "loss": 1.0, "heads": {"cls": {"top1": 50.0}}}}
    log = make_log(tmp_path, every=1)
    log.step(6, metrics(1.0))
    log.evaluation(6, results)
    log.close()
    for evaluated, count in ((True, 1), (False, 0)):
        make_log(tmp_path, start=6, evaluated=evaluated).close()
        assert sum("eval/top1" in r for r in read_log(tmp_path)) == count
        assert losses(tmp_path) == [(6, 1.0)]


class FullDisk:
    """A file on which half a write succeeds while `full`."""

    def __init__(self, file):
        self.file, self.full = file, True

    def write(self, data):
        if not self.full:
            return self.file.write(data)
        if len(data) < 4:
            raise FULL
        return self.file.write(data[: len(data) // 2])

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_lines_that_a_full_disk_refuses_are_written_later(tmp_path):
    lines = JsonLines(tmp_path / "log.jsonl")
    lines.write({"step": 1})
    lines.file = FullDisk(lines.file)
    for step in (2, 3):
        with pytest.raises(OSError, match="No space left"):
            lines.write({"step": step})
        assert [r["step"] for r in read_log(tmp_path)] == [1], "no part of a line"
    lines.file.full = False
    lines.write({"step": 4})
    assert [r["step"] for r in read_log(tmp_path)] == [1, 2, 3, 4]


def test_a_full_disk_is_said_once_and_the_run_goes_on(tmp_path, capsys, monkeypatch):
    log = make_log(tmp_path, every=1, tensorboard=True)
    monkeypatch.setattr(Events, "write", lambda *_: (_ for _ in ()).throw(FULL))
    log.lines.file = FullDisk(log.lines.file)
    for step in range(1, 4):
        assert log.step(step, metrics(1.0)) is not None
    log.lines.file.full = False
    log.step(4, metrics(1.0))
    monkeypatch.setattr(plots, "curves", lambda *_: (_ for _ in ()).throw(ValueError("bad $ markup")))
    log.end()
    log.close()
    said = capsys.readouterr().out
    assert said.count("log.jsonl cannot be written ([Errno 28] No space left on device)") == 1
    assert said.count("TensorBoard events end at step 1") == 1
    assert "curves.png could not be drawn (ValueError: bad $ markup)" in said
    assert [step for step, _ in losses(tmp_path)] == [1, 2, 3, 4]


def test_events_hold_the_scalars(tmp_path):
    events = Events(tmp_path / "tensorboard", 0)
    events.write(3, {"loss": 2.5}, 1.0)
    events.close()
    (file,) = (tmp_path / "tensorboard").glob("events*")
    assert b"loss" in file.read_bytes()


def test_a_curve_of_one_point_is_seen(tmp_path):
    """A run shorter than an interval has one loss: a line of one point would draw nothing."""
    one = [{"step": 12, "epoch": 2.0, "loss": 1.0}]
    plots.curves(tmp_path / "curves.png", {"one $ run_^": one})
    pixels = Image.open(tmp_path / "curves.png").convert("RGB")
    blue = sum(p == (0x1F, 0x6F, 0xEB) for p in pixels.get_flattened_data())
    assert blue > 20 + 2 * pixels.width // 50, "the marker, beside the legend's line"


def test_a_damaged_log_gives_the_lines_that_are_whole(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\n{"step": 2}\n[3]\n{"st')
    assert [r["step"] for r in logs.read_log(tmp_path)] == [1, 2]
