"""A run meets numbers that are not finite: the teacher's stored probabilities are read as NaN at chosen places of the
stream.

The stream has 44 batches, 11 an epoch, and a checkpoint after each epoch.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_config

from deit_jax.data import sources
from deit_jax.distill.label_reader import StoredLabels
from deit_jax.distill.label_store import LabelStore
from deit_jax.errors import UserError
from deit_jax.label import fill, make_header
from deit_jax.train.checkpoint import is_healthy
from deit_jax.train.log import read_log
from deit_jax.train.loop import train_run as train

STEPS = 44

pytestmark = [pytest.mark.usefixtures("single"), pytest.mark.long_runs]


def soft_digits(folder, bad_steps, monkeypatch):
    """The config of a soft distillation whose labels, written to `folder`, are read as NaN at `bad_steps`."""
    c = tiny_config(
        **{
            "batch_size": 128, "steps": STEPS, "optimizer.ema_decay": 0.0, "evaluate.every": 100, "log.every": 1,
            "distill.kind": "soft", "distill.alpha": 0.5, "distill.tau": 3.0, "distill.normalization": "paper",
            "distill.labels": str(folder), "label.k": 10, "label.dtype": "float32",
            "stability.patience": 3, "stability.rollbacks": 2, "optimizer.lr": 5e-4,
        }
    )  # fmt: skip
    folder.mkdir()
    source, _ = sources.open_sources(c)
    known = {"teacher.name": c.teacher.name, "teacher.img_size": 16}
    store = LabelStore.create(folder, make_header(c, source, 16, known), STEPS)
    index = np.tile(np.arange(10), (128, 1))

    def labels(batch, step):
        return {"index": index, "logit": np.zeros((128, 11))}

    read = StoredLabels.__call__

    def read_badly(self, step, rows):
        entries = read(self, step, rows)
        return entries | {"teacher_logit": entries["teacher_logit"] + (np.nan if step in bad_steps else 0)}

    monkeypatch.setattr(StoredLabels, "__call__", read_badly)
    fill(store, labels, lambda start: (None for _ in range(STEPS)), STEPS)
    return c


def test_a_single_bad_step_is_skipped_and_bad_ones_in_a_row_are_left_behind(tmp_path, capsys, monkeypatch):
    config = soft_digits(tmp_path / "labels", {5, *range(24, 30)}, monkeypatch)
    results = train(config, tmp_path / "run")
    log = read_log(tmp_path / "run")
    assert np.isfinite(results["params"]["loss"])

    # steps 25, 26, 27 see positions 24, 25, 26: back to the checkpoint of step 22, data from position 27 on;
    # those are NaN too, up to 29: back again, and 30 is a good one
    rolled = [(r["rolled_back_from"], r["step"]) for r in log if "rolled_back_from" in r]
    assert rolled == [(27, 22), (25, 22)]
    assert "3 non-finite steps in a row at step 27: back to step 22, on other data" in capsys.readouterr().out

    text = (tmp_path / "run" / "log.jsonl").read_text()
    assert all(json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()), "valid JSON"

    losses = [r for r in log if "loss" in r]
    assert [r["step"] for r in losses] == list(range(1, STEPS + 1)), "the log holds what led to the weights"
    # position 30 + 19 is the end of the stream's 44: it goes round, and meets position 5 once more
    bad = [r["step"] for r in losses if not np.isfinite(r["loss"])]
    assert bad == [5 + 1, 22 + (44 - 30) + 5 + 1]
    assert losses[-1]["nonfinite_total"] == 2, "position 5, twice; what was rolled back is not counted"
    assert losses[-1]["nonfinite_in_row"] == 0


def test_a_run_that_keeps_diverging_stops_with_the_reason(tmp_path, monkeypatch):
    config = soft_digits(tmp_path / "labels", range(STEPS), monkeypatch)
    with pytest.raises(UserError, match=r"diverges: 3 non-finite steps in a row at step 3, after 2 roll-b") as error:
        train(config, tmp_path / "run")
    assert ": lower --config.optimizer.lr (" in str(error.value)
    assert str(error.value).endswith(" in a new --workdir"), "this one would refuse another learning rate"
    rolled = [(r["rolled_back_from"], r["step"]) for r in read_log(tmp_path / "run") if "rolled_back_from" in r]
    assert rolled == [(3, 0), (3, 0)], "before the first checkpoint it begins again"


@pytest.mark.slow
def test_a_run_without_one_finite_step_is_an_error(tmp_path, monkeypatch):
    config = soft_digits(tmp_path / "labels", range(STEPS), monkeypatch)
    config.steps, config.stability.patience = 3, 100
    with pytest.raises(UserError, match="all 3 steps were not finite: check --config.augment.mean"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("weight", "in_row", "healthy"), [(1.0, 0, True), (1.0, 1, False), (np.nan, 0, False), (-1.9e27, 0, False)]
)
def test_healthy_is_finite_and_bounded(weight, in_row, healthy):
    params = {"norm": {"scale": jnp.ones(3)}, "head": {"kernel": jnp.ones((2, 2)).at[1, 0].set(weight)}}
    assert bool(is_healthy(params, jnp.asarray(in_row))) is healthy
