"""The log of a run: valid JSON, means over intervals that a restart does not change, no fault that ends it."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.config import default_config, resolve
from deit_jax.runtime import sharding
from deit_jax.train.log import Log, mean_of_finite, read_log, to_json


def metrics(loss: float, nonfinite: int = 0) -> dict:
    values = {"loss": loss, "grad_norm": loss, "lr": 1e-3, "nonfinite_in_row": nonfinite, "nonfinite_total": nonfinite}
    return {name: jnp.asarray(value) for name, value in values.items()}


def make_log(folder, every=4, start=0, tensorboard=False, **options):
    config = resolve(default_config())
    config.log.every, config.log.tensorboard = every, tensorboard
    student = SimpleNamespace(img_size=224, num_classes=10)
    run = SimpleNamespace(
        **{"title": "student", "config": config, "folder": folder, "total_steps": 12, "steps_per_epoch": 6},
        **{"model": student, "teacher": None, "mesh": sharding.make_mesh(), "init_notes": ["a note"]},
    )
    return Log(run, start, **options)


def losses(folder) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in read_log(folder) if "loss" in r]


def test_the_loss_is_the_intervals_mean_also_over_a_restart(tmp_path):
    log = make_log(tmp_path)
    for step in range(1, 7):
        log.record(step, metrics(float(step)))
    kept = log.interval_metrics()
    assert kept == [{"loss": 5.0}, {"loss": 6.0}]
    for step in range(7, 9):
        log.record(step, metrics(float(step)))
    whole = losses(tmp_path)
    assert whole == [(4, 2.5), (8, 6.5)]

    resumed = make_log(tmp_path, start=6, interval=json.loads(json.dumps(kept)))
    assert losses(tmp_path) == whole[:1], "what came after the checkpoint is dropped"
    for step in range(7, 9):
        resumed.record(step, metrics(float(step)))
    assert losses(tmp_path) == whole


def test_skipped_steps_do_not_hide_the_others():
    assert mean_of_finite([1.0, math.nan, 3.0, math.inf]) == 2.0
    assert math.isnan(mean_of_finite([math.nan]))


def test_values_that_are_not_finite_are_valid_json(tmp_path):
    log = make_log(tmp_path, every=1)
    log.record(1, metrics(math.nan, 1))
    log.record(2, metrics(math.inf, 2))
    text = (tmp_path / "log.jsonl").read_text()
    records = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [r["loss"] for r in records] == [None, None]
    assert all(math.isnan(loss) for _, loss in losses(tmp_path))
    assert to_json({"a": [1.0, math.inf], "b": {"c": math.nan}}) == {"a": [1.0, None], "b": {"c": None}}


def test_an_evaluation_that_is_not_recorded_is_dropped_and_logged_again(tmp_path):
    results = {"params": {"top1": 50.0, "top5": 90.0, "loss": 1.0, "heads": {"cls": {"top1": 50.0}}}}
    log = make_log(tmp_path, every=1)
    log.record(6, metrics(1.0))
    log.evaluation(6, results)
    for evaluated, count in ((True, 1), (False, 0)):
        make_log(tmp_path, start=6, evaluated=evaluated)
        assert sum("eval/top1" in r for r in read_log(tmp_path)) == count
        assert losses(tmp_path) == [(6, 1.0)]


def test_a_full_disk_ends_the_log_with_one_line_and_the_run_goes_on(tmp_path, capsys):
    log = make_log(tmp_path, every=1, tensorboard=True)
    log.record(1, metrics(1.0))
    (file,) = (tmp_path / "tensorboard").glob("events*")
    log.close()
    assert b"grad_norm" in file.read_bytes()
    full = log.path = Path("/dev/full")
    log.trackers.opened["tensorboard"] = (lambda *_: full.write_text("x")), None
    for step in range(2, 5):
        log.record(step, metrics(1.0))
    out = capsys.readouterr().out
    assert out.count("log.jsonl cannot be written, and ends here ([Errno 28] No space left on device)") == 1
    assert out.count("the tensorboard log cannot be written, and ends here") == 1
    assert [step for step, _ in losses(tmp_path)] == [1]


def test_loss_terms_and_agreements_are_means_in_the_log_and_in_the_line(tmp_path, capsys):
    log = make_log(tmp_path, every=2)
    for step, (class_loss, agreement) in enumerate([(1.0, 0.25), (2.0, 0.75)], 1):
        terms = {"class_loss": class_loss, "distillation_loss": 3.0, "cls_agreement": agreement, "dist_agreement": 1.0}
        log.record(step, metrics(2.0) | {name: jnp.asarray(value) for name, value in terms.items()})
    (record,) = read_log(tmp_path)
    assert (record["class_loss"], record["distillation_loss"]) == (1.5, 3.0)
    assert (record["cls_agreement"], record["dist_agreement"]) == (0.5, 1.0)
    assert "loss 2.0000 (class 1.500, distillation 3.000)  agreement 50/100 %" in capsys.readouterr().out


def test_a_run_begins_with_what_it_is(tmp_path, capsys):
    make_log(tmp_path).begin({"weight": np.zeros(3)})
    said = capsys.readouterr().out
    assert "3 parameters, 224 px" in said
    assert "  a note\n" in said
    assert "  learning rate: 1e-06 at first" in said


def test_a_damaged_log_gives_the_lines_that_are_whole(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\n{"step": 2}\n[3]\n{"st')
    assert [r["step"] for r in read_log(tmp_path)] == [1, 2]
