"""Where parameters lie on a mesh: their largest axis, and what a step of FSDP stores and sends."""

import jax
import numpy as np
import pytest
from helpers import train_steps
from jax.sharding import PartitionSpec as P

from deit_jax import models
from deit_jax.config import default_config, resolve
from deit_jax.runtime import sharding
from deit_jax.runtime.collectives import collectives
from deit_jax.runtime.sharding import param_shardings, param_spec
from deit_jax.train.step import create_state, make_train_step, model_spec

SMALL = {"embed_dim": 64, "num_heads": 4, "depth": 3, "num_classes": 16}


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("blocks/attn/qkv/kernel", (3, 64, 192), P(None, None, "fsdp")),
        ("0/mu/blocks/mlp/fc2/kernel", (3, 256, 64), P(None, "fsdp")),
        ("blocks/attn/proj/kernel", (8, 60, 60), P()),  # never over the stacked blocks, even where they divide
        ("blocks/1/attn/proj/kernel", (64, 64), P("fsdp")),  # a list of blocks is not stacked
        ("blocks/mlp/fc1/kernel", (8, 60, 240), P(None, None, "fsdp")),  # the width does not divide
        ("conv/kernel", (3, 3, 32, 64), P(None, None, None, "fsdp")),
        ("conv/kernel", (8, 3, 30, 62), P("fsdp")),
        ("conv/kernel", (3, 3, 1, 64), P()),  # too small
        ("head/bias", (4096,), P()),
        ("step", (), P()),
    ],
)
def test_large_kernels_are_split_where_they_divide(path, shape, expected):
    assert param_spec(path, shape, sharding.make_mesh(fsdp=8)) == expected
    assert param_spec(path, shape, sharding.make_mesh()) == P()


def config_of(unroll: int = 1, **mesh):
    config = resolve(default_config())
    config.batch_size, config.model.scan_unroll = 16, unroll
    config.augment.policy, config.augment.mixup, config.augment.cutmix, config.augment.erasing = "none", 0.0, 0.0, 0.0
    config.distill.kind, config.optimizer.ema_decay = "second_cls", 0.9
    config.model.name, config.model.num_classes = "deit_digits_distilled_patch4_16", 16
    config.mesh.update(mesh)
    return config


def small_student(config):
    student = model_spec(config, 16)
    build = models.constructor(config.model.name, **(student.build.keywords | SMALL))
    return student._replace(build=build, graphdef=models.abstract(build)[0])


def compiled_step(config):
    """(the train step compiled, placed state's shapes, parameters)."""
    student = small_student(config)
    mesh = sharding.make_mesh(**config.mesh)
    state = jax.eval_shape(lambda: create_state(student, config))
    places = param_shardings(state, mesh)
    with_places = jax.tree.map(lambda x, s: x.update(sharding=s), state, places)
    rows = sharding.batch_sharding(mesh)
    array = lambda dtype, *axes: jax.ShapeDtypeStruct((16, *axes), dtype, sharding=rows)
    batch = {name: array(np.int32) for name in ("label", "index", "epoch", "repeat")}
    batch["image"] = array(np.uint8, 16, 16, 3)
    step = make_train_step(student.on(mesh), None, config, 10)
    jitted = jax.jit(step, out_shardings=(places, None), donate_argnums=0)
    return jitted.lower(with_places, batch, []).compile(), state


@pytest.mark.parametrize("unroll", [1, 64], ids=["loop", "unrolled"])
def test_fsdp_stores_a_share_and_sends_three_times_the_parameters(unroll):
    """Weights are gathered for the forward and for the backward pass, gradients reduced: nothing else is large."""
    compiled, state = compiled_step(config_of(unroll, fsdp=-1))
    parameters = 4 * sum(x.size for x in jax.tree.leaves(state.params))
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    kernels = 4 * sum(x.size for path, x in leaves if path[-1].key == "kernel")
    memory = compiled.memory_analysis()
    batch = 2 * (16 * 16 * 3 + 4 * 4)
    stored = 4 * (kernels / 8 + parameters - kernels)  # parameters, two moments, EMA; biases and norms are whole
    assert memory.argument_size_in_bytes - batch == pytest.approx(stored, rel=0.02)
    found = collectives(compiled.as_text())
    assert sum(c.bytes for c in found.values()) < 3.2 * parameters
    # every block's weights twice, never kept from one pass to the other: all but what lies outside the blocks
    assert 1.8 * parameters < found["all-gather"].bytes <= 2 * parameters


@pytest.mark.parametrize("unroll", [1, 64], ids=["loop", "unrolled"])
def test_parts_of_a_batch_gather_again_and_sum_gradients_where_weights_are_stored(unroll):
    """accumulate=2: nothing that goes from one part to the next is a whole weight or the whole gradient of one."""
    config = config_of(unroll, fsdp=-1)
    config.accumulate = 2
    compiled, state = compiled_step(config)
    parameters = 4 * sum(x.size for x in jax.tree.leaves(state.params))
    text = compiled.as_text()
    found = collectives(text)
    assert sum(c.bytes for c in found.values()) < 2 * 3.2 * parameters
    assert 2 * 1.8 * parameters < found["all-gather"].bytes
    kernels = [x.shape for x in jax.tree.leaves(state.params["blocks"]) if x.ndim == 3]
    loops = [line for line in text.splitlines() if " while(" in line]
    split = ["[3,64,24]", "[3,8,64]", "[3,64,32]", "[3,32,64]"]
    assert any(all(f"f32{shape}" in line for shape in split) for line in loops), "the sums, an eighth on each device"
    for shape in (*kernels, *(shape[1:] for shape in kernels)):
        assert not any(f"[{','.join(map(str, shape))}]" in line for line in loops), shape


@pytest.fixture(scope="module")
def on_one_device():
    config = config_of()
    return train_steps(small_student(config), config, sharding.make_mesh(jax.devices()[:1]))


@pytest.mark.parametrize("mesh", [{}, {"fsdp": -1}, {"data": 4, "fsdp": 2}], ids=["data", "fsdp", "both"])
def test_any_mesh_trains_as_one_device(mesh, on_one_device):
    config, (alone, metrics) = config_of(**mesh), on_one_device
    split, split_metrics = train_steps(small_student(config), config, sharding.make_mesh(**mesh))
    np.testing.assert_allclose(split_metrics["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(split_metrics["grad_norm"], metrics["grad_norm"], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(alone.ema), jax.tree.leaves(split.ema), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    kernel = split.params["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // sharding.make_mesh(**mesh).shape["fsdp"]
