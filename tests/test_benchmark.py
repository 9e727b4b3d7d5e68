"""What is timed is what runs; the figures fit each other."""

import time

import jax
import numpy as np
import pytest

from deit_jax import benchmark, hardware
from deit_jax.config import default_config, resolve


def digits_config(batch_size=64):
    config = default_config()
    config.data.name, config.batch_size = "digits", batch_size
    config.model.name = "deit_digits_patch4_16"
    config.augment.policy = "none"
    return resolve(config)


def test_a_timing_is_of_one_call():
    def call():
        time.sleep(0.01)
        return np.zeros(1)

    t = benchmark.time_calls(call, samples=3, seconds=0.05)
    assert 0.01 <= t.minimum <= t.median <= t.maximum
    assert t.minimum < 0.02


def test_the_workload_trains():
    work = benchmark.Workload(digits_config(), num_classes=10)
    before = np.asarray(work.state["params"]["head"]["bias"])
    for expected in (1, 2):
        metrics = work.train()
        assert np.isfinite(metrics["loss"])
        assert work.state["step"] == expected
    assert not np.array_equal(before, work.state["params"]["head"]["bias"])
    assert work.forward()["cls"].shape == (64, 10)
    images, targets = work.augment()
    assert (images.shape, targets.shape) == ((64, 16, 16, 3), (64, 10))
    assert 2.8 < work.flops / work.forward_flops < 3


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_stored_labels_are_part_of_the_batch(kind):
    config = digits_config()
    config.distill.kind, config.distill.labels = kind, "somewhere"
    config.model.name = "deit_digits_distilled_patch4_16"
    assert np.isfinite(benchmark.Workload(config, num_classes=10).train()["loss"])


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(benchmark, "SAMPLES", 2)
    monkeypatch.setattr(benchmark.time_calls, "__defaults__", (2, 0.05))
    monkeypatch.setattr(benchmark.time_input, "__defaults__", (0.2,))
    monkeypatch.setattr(benchmark.share_of_waiting, "__defaults__", (0.5,))


def test_a_whole_benchmark(quick, monkeypatch, capsys):
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(hardware.ACCELERATORS, kind, hardware.Accelerator(peak=1e12, memory=2**30))
    config = digits_config()
    result = benchmark.benchmark(config)
    config.model.num_classes = 10
    work = benchmark.Workload(config)
    assert result["mfu"]["train"] == pytest.approx(work.flops / result["train"].median / (8 * 1e12))
    assert 0 <= result["waiting"] <= 1
    assert result["input"].one_core > 100
    assert result["forward"].median < result["train"].median
    printed = capsys.readouterr().out
    assert f"{64 / result['train'].median:,.0f}" in printed
    assert "is the limit" in printed


def test_without_data_the_rest_is_measured(quick, tmp_path, capsys):
    config = digits_config()
    config.data.name, config.data.root = "nowhere", str(tmp_path / "missing")
    config.model.num_classes = 10
    result = benchmark.benchmark(config)
    assert result["input"] is None
    assert result["train"].median > 0
    printed = capsys.readouterr().out
    assert "input: not measured: " in printed
    assert "missing" in printed or "nowhere" in printed
    assert "not known" in printed  # the peak of a CPU
