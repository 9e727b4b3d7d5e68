"""Plans against what the arrays must take, on eight simulated devices; TPU topologies where libtpu is installed."""

import importlib.util
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import ROOT, SMALL, TINY, configured

from deit_jax import plan
from deit_jax.errors import UserError
from deit_jax.models import kernels
from deit_jax.runtime import hardware, topologies, traffic
from deit_jax.runtime.collectives import Collective, collectives
from deit_jax.runtime.flops import count_flops
from deit_jax.train.step import model_spec

HLO = """\
HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, %y)
}

%cond (c: (s32[], f32[8,128])) -> pred[] {
  %twelve = s32[]{:T(128)} constant(12)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%i, %twelve), direction=LT
}

%body (b: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %g = bf16[1,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%b), index=1
  %gathered = bf16[8,128]{1,0} all-gather(%g), channel_id=1, dimensions={0}
}

%chain (p: f32[8,128]) -> f32[8,128] {
  ROOT %again = f32[8,128]{1,0} all-reduce(%p), channel_id=2, to_apply=%add
}

%all-reduce-scatter.1 (p: f32[8,128]) -> f32[1,128] {
  %summed = f32[8,128]{1,0} all-reduce(%p), channel_id=3, to_apply=%add
  ROOT %own = f32[1,128]{1,0} dynamic-slice(%summed, %i)
}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %loop = (s32[], f32[8,128]) while(%t), condition=%cond, body=%body
  %known = (s32[], f32[8,128]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %reduced = f32[8,128]{1,0} all-reduce(%a), channel_id=2, to_apply=%add
  %fused = f32[8,128]{1,0} fusion(%a), kind=kLoop, calls=%chain
  %tpu = f32[1,128]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  %pair = (f32[4]{0}, f32[]) all-reduce(%u, %v), to_apply=%add
  %start = (f32[8,128]{1,0}, f32[64,128]{1,0}) all-gather-start(%a), dimensions={0}
  %done = f32[64,128]{1,0} all-gather-done(%start)
  ROOT %scattered = f32[1,128]{1,0} reduce-scatter(%a), to_apply=%add
}
"""


def test_collectives_of_a_text_by_hand():
    found = collectives(HLO)
    # one computation runs at its loop's rounds; the body's channel is one collective, run 12 times at most
    assert found["all-gather"] == Collective(12 + 1, 12 * 8 * 128 * 2 + 64 * 128 * 4)
    assert found["all-reduce"] == Collective(2, 8 * 128 * 4 + 5 * 4)  # channel 2 is one, though written twice
    assert found["reduce-scatter"] == Collective(2, 2 * 8 * 128 * 4)  # one of them as TPU programs write it
    assert "all-to-all" not in found


def small_config(**changes):
    """So that both heads learn."""
    settings = {"model.name": SMALL, "model.num_classes": 10, "batch_size": 64}
    settings |= {"augment.policy": "none", "augment.mixup": 0.0, "augment.cutmix": 0.0, "augment.erasing": 0.0}
    return configured(**settings | {"distill.kind": "hard", "distill.labels": "somewhere"} | changes)


def size_of(config) -> int:
    _, state, _, _ = plan.abstract_step(config)
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_a_plan_of_eight_devices(capsys):
    config = small_config(**{"model.name": TINY, "data.cache": "device", "data.device_size": 2})
    p = plan.plan(config)
    assert p.devices == 8
    assert p.parameters == size_of(config)
    state = 4 * 4 * p.parameters  # parameters, two moments, average
    batch = (64 // 8) * (16 * 16 * 3 + 5 * 4)
    assert p.arguments == pytest.approx(state + batch + 160_146 * 3 * 2**2, rel=0.001)  # an eighth of ImageNet
    # data parallelism: every gradient is summed once, and little else is sent
    assert set(p.collectives) == {"all-reduce"}
    assert 0 <= p.collectives["all-reduce"].bytes - 4 * p.parameters < 100
    printed = capsys.readouterr().out
    assert f"{p.parameters:,} parameters" in printed
    assert "arguments (state, batch, ImageNet, teacher)" in printed


def test_arithmetic_of_a_step_by_hand():
    config = small_config()
    depth, dim, tokens, patches = 4, 96, 18, 16
    block = 12 * tokens * dim**2 + 2 * tokens**2 * dim
    heads = 2 * dim * 10
    embedding = patches * 48 * dim  # whose images need no gradient
    assert plan.step_flops(config) == 2 * 64 * (3 * (depth * block + heads) + 2 * embedding)
    config.model.remat = "full"
    assert plan.step_flops(config) == 2 * 64 * (3 * (depth * block + heads) + 2 * embedding)


def test_a_teacher_adds_its_forward_pass():
    config = small_config()
    alone = plan.step_flops(config)
    config.distill.labels, config.teacher.name = "", "regnety_digits"
    teacher = config.copy_and_resolve_references()
    teacher.model.name = "regnety_digits"
    student = model_spec(teacher, 10)
    _, state, _, _ = plan.abstract_step(teacher)
    images = jax.ShapeDtypeStruct((64, 16, 16, 3), np.float32)
    forward = lambda params, batch_stats, images: nnx.merge(student.graphdef, params, batch_stats)(images)
    assert plan.step_flops(config) - alone == count_flops(forward, state.params, state.batch_stats, images)


@pytest.mark.parametrize(("kind", "keys"), [("hard", {"teacher"}), ("soft", {"teacher", "teacher_logit"})])
def test_stored_labels_come_with_the_batch(kind, keys):
    parts = plan.abstract_step(small_config(**{"distill.kind": kind}))
    assert parts.batch.keys() - {"image", "label", "index", "epoch", "repeat"} == keys
    jax.eval_shape(*parts)
    assert parts.teacher_arrays == []


def test_ways_to_fit_are_valid_and_cost_nothing_twice():
    config = small_config()
    assert plan.ways_to_fit(config, 8) == [
        {"model.remat": "dots"},
        {"model.remat": "full"},
        {"accumulate": 2},
        {"mesh.fsdp": -1, "mesh.data": 1},
        {"batch_size": 32},
        {"model.remat": "full", "accumulate": 2, "mesh.fsdp": -1, "mesh.data": 1},
    ]
    config.model.remat, config.mesh.fsdp, config.batch_size = "full", 8, 8
    assert plan.ways_to_fit(config, 8) == []
    config.model.name = "regnety_digits"
    assert all("model.remat" not in way for way in plan.ways_to_fit(config, 1))


@pytest.mark.slow
def test_what_makes_it_fit_is_compiled(monkeypatch, capsys):
    """A device is given too little memory for the whole state."""
    config = small_config(batch_size=8, **{"model.remat": "full", "model.scan_unroll": 1})  # leaves FSDP alone
    state = 4 * 4 * size_of(config)
    monkeypatch.setattr(hardware, "device_memory", lambda kind, here=1: 0.9 * state)
    whole = plan.plan(config)
    printed = capsys.readouterr().out
    assert whole is not None
    assert whole.needed > state
    assert f"does not fit: {plan.amount(whole.needed)} of " in printed
    ways = re.findall(r"^  (--config\S+.*\S) +([\d.]+) MiB of [\d.]+ MiB(.*)$", printed, re.MULTILINE)
    assert [(way, fits) for way, _, fits in ways] == [("--config.mesh.fsdp=-1 --config.mesh.data=1", ": fits")]
    assert state / 8 < 2**20 * float(ways[0][1]) < 0.6 * whole.needed


def test_a_step_that_the_compiler_cannot_place(monkeypatch, capsys):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 21.50G of 15.75G hbm.\nmore")

    monkeypatch.setattr(plan, "abstract_step", exhausted)
    assert plan.plan(small_config()) is None
    printed = capsys.readouterr().out
    assert f"does not fit: {SMALL}, batch 64: RESOURCE_EXHAUSTED: Used 21.50G" in printed
    assert re.search(r"--config.accumulate=2 +does not fit\n", printed)


def example(**changes):
    values = {"devices": 16, "device_kind": "TPU v5 lite", "parameters": 10, "teacher_parameters": 0}
    values |= {"arguments": 3 * 2**30, "temporaries": 2**30, "outputs": 0, "available": 16 * 2**30}
    values |= {"flops": 16 * 197 * 10**12, "compile_seconds": 1.0}
    values |= {"collectives": {"all-reduce": Collective(1, 32 * 10**11)}}
    return plan.Plan(**(values | changes))


def test_forecast_by_hand():
    config = small_config(batch_size=1024, steps=3600)
    # 2 s of arithmetic at half of the peak; 2 x 15/16 x 3.2 TB over the 200 GB/s that a v5e sends are 30 s
    lines = plan.forecast(example(), config)
    assert "communication hidden: 34 images/s, 30.0 h" in lines[2]
    assert re.search(
        "nothing hidden: +32 images/s, 32.0 h .94% of it sending 6,000.00 GB per device at 200 GB/s", lines[3]
    )
    assert plan.forecast(example(device_kind="cpu"), config) == []
    assert example(available=2**30).fits is False


def test_stored_labels_by_hand(monkeypatch):
    """A teacher of 5 % of the arithmetic, in 3,600 steps of 2 s at half of the peak rate."""
    config = small_config(batch_size=1024, steps=3600, **{"distill.labels": "", "label.k": 3, "model.num_classes": 20})
    assert plan.label_forecast(example(), small_config()) == []  # it reads a store
    monkeypatch.setattr(plan, "step_flops", lambda stored: example().flops * 19 // 20)
    text = "\n".join(plan.label_forecast(example(), config))
    assert "of 3,686,400 views" in text
    assert re.search(r"hard +2 bytes per view, +7.03 MiB in all\n.*k=3 +14 bytes .*\n.*k=20 +82 bytes", text)
    assert "157,600.0 GFLOP per step" in text
    assert "0.1 h in each run with a live teacher, 0.1 h once" in text
    config.label.views = 1
    assert "of 1,281,024 views" in "\n".join(plan.label_forecast(example(), config))


def test_a_gpus_bound_is_printed_by_kind_and_part():
    """On two H100: 79 ms of products, 30 ms of copies; 45 GB sent at 450 GB/s take 0.1 s."""
    found = (
        traffic.Kernel("gemm", "products", "mlp", 10, 79 * 10**11, 10),
        traffic.Kernel("copy", "copies", "norm", 1, 0, 9 * 10**10),
    )
    p = example(
        devices=2,
        device_kind="NVIDIA H100 80GB HBM3",
        flops=2 * 79 * 10**12,
        kernels=found,
        collectives={"all-reduce": Collective(1, 45 * 10**9)},
    )
    config = small_config(batch_size=1024, steps=36000)
    text = plan.plan_text(p, config, price=2.0)
    assert re.search(r"products +10 +0\.00 +100\.00\n +copies +1 +90\.00 +30\.00\n", text)
    assert re.search(r"mlp +10 .*\n +norm +1 ", text)
    assert re.search(r"whole step +11 +90\.00 +130\.00\n +bound on MFU: 0\.77 of 790 TFLOP/s", text)
    assert "at the bound, limited by kernels: no run is faster" in text
    assert "communication hidden: 7,877 images/s, 1.3 h, 5 at 2 per device and hour" in text
    assert "measured" not in text
    assert plan.bound_text(example()) == []


def test_settings_follow_the_target():
    """An H100 that is not here: cuDNN's attention where it can run, another where not."""
    gpu = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    with hardware.compiling_for(gpu):
        assert hardware.compute_dtype("auto") == np.dtype("bfloat16")
        assert kernels.best_attention("auto", "bfloat16", 64) == "cudnn"
        assert kernels.best_attention("auto", "float32", 64) == "recompute"
        assert kernels.best_attention("auto", "bfloat16", 36) == "recompute"
        assert kernels.best_attention("einsum", "bfloat16", 64) == "einsum"
        gpu.compute_capability = "7.5"
        assert kernels.best_attention("auto", "bfloat16", 64) == "recompute"
    assert kernels.best_attention("auto", "bfloat16", 64) == "einsum"


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("pod", "not a chip and its grid: write v5e:4x4"),
        ("h100:16", "1 to 8 GPUs of one machine, h100:8"),
        ("v5e:2x2", "pip install libtpu"),
        ("h100:8", r"pip install 'deit-jax\[plan-gpu\]'"),
    ],
)
def test_topologies_that_cannot_be_planned(topology, message, monkeypatch):
    find, compilers = importlib.util.find_spec, ("libtpu", "jax_cuda12_plugin")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in compilers else find(name))
    with pytest.raises(UserError, match=message):
        topologies.prepare_environment(topology)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install libtpu")
def test_a_tpu_that_is_not_here():
    flags = ["--config=configs/digits.py", "--mode=plan", "--topology=v5e:2x2", "--config.distill.kind=none"]
    done = subprocess.run([sys.executable, "main.py", *flags], cwd=ROOT, capture_output=True, text=True)
    assert "4 x TPU v5 lite" in done.stdout, done.stderr
    assert "all-reduce" in done.stdout


WHEELS = ("jax_cuda12_plugin", "nvidia")


@pytest.mark.skipif(not all(map(importlib.util.find_spec, WHEELS)), reason="needs the extra plan-gpu")
def test_a_gpu_that_is_not_here():
    """The digits step with cuDNN's attention, a live teacher and accumulation compiles for an H100."""
    flags = ["--config=configs/digits.py", "--mode=plan", "--topology=h100:1", "--config.accumulate=2"]
    done = subprocess.run([sys.executable, "main.py", *flags], cwd=ROOT, capture_output=True, text=True)
    assert "1 x NVIDIA H100" in done.stdout, done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith("  ")}
    for name in ("products", "attention", "elementwise", "teacher", "mlp", "norm", "optimizer", "augment"):
        assert int(rows[name][0].replace(",", "")) > 0, done.stdout
    # of cuDNN: forward and backward of each of 4 blocks in each of 2 microbatches
    assert re.search(r"^  attention +16 ", done.stdout, re.MULTILINE), done.stdout
    assert "bound on MFU" in done.stdout
    assert "measured" not in done.stdout
