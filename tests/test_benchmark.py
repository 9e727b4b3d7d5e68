"""What is timed is what runs; the figures fit each other."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import ROOT, TINY_PLAIN, configured

from deit_jax import benchmark
from deit_jax.runtime import hardware, timing


def digits_config(**changes):
    settings = {"data.name": "digits", "batch_size": 64, "model.name": TINY_PLAIN, "augment.policy": "none"}
    return configured(**settings | changes)


def test_a_timing_is_of_one_call(monkeypatch):
    """The first call takes 9 s, the second 0.5 s; then three stretches of two calls take 1, 3 and 2 s."""
    times, calls = iter(np.cumsum([0, 9, 0, 0.5, 0, 1, 0, 3, 0, 2])), []
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    assert timing.time_calls(lambda: calls.append(1), samples=3, seconds=1.0) == (0.5, 1.0, 1.5)
    assert len(calls) == 1 + 1 + 3 * 2


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(timing.time_calls, "__defaults__", (2, 0.05))
    monkeypatch.setattr(benchmark.time_input, "__defaults__", (0.2,))


@pytest.mark.slow
def test_a_whole_benchmark(quick, monkeypatch, capsys):
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(hardware.ACCELERATORS, kind, hardware.Accelerator(peak=1e12, memory=2**30))
    config = digits_config()
    result = benchmark.benchmark(config)
    config.model.num_classes = 10
    work = benchmark.Workload(config)
    assert result["mfu"]["train"] == pytest.approx(work.flops()["train"] / result["train"].median / (8 * 1e12))
    assert result["input"] > 0
    printed = capsys.readouterr().out
    assert f"{64 / result['train'].median:,.0f}" in printed
    assert "is the limit" in printed

    before = np.asarray(work.state.params["head"]["bias"])
    for expected in (1, 2):
        metrics = work.train()
        assert np.isfinite(metrics["loss"])
        assert work.state.step == expected
    assert not np.array_equal(before, work.state.params["head"]["bias"])
    assert work.forward()["cls"].shape == (64, 10)
    assert 2.8 < work.flops()["train"] / work.flops()["forward"] < 3


def test_settings_without_ml_collections_are_the_same(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from common import settings

    from deit_jax.config import flat

    ours = settings({"model.name": "deit_tiny_patch16_224", "batch_size": 32})
    assert flat(ours) == flat(configured(**{"model.name": "deit_tiny_patch16_224", "batch_size": 32}))
    with pytest.raises(AttributeError, match="nonsense"):
        settings({"model.nonsense": 1})
