"""Where parameters lie on a mesh: logical axes, rules, and what a step of FSDP stores and sends."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import deit_jax
from deit_jax import models
from deit_jax.config import default_config, resolve
from deit_jax.errors import UserError
from deit_jax.models.layout import logical_axes, make_layout, place_params
from deit_jax.runtime import sharding
from deit_jax.runtime.collectives import collectives
from deit_jax.train.run import make_student
from deit_jax.train.step import create_state, make_train_step

SMALL = {"embed_dim": 64, "num_heads": 4, "depth": 3, "num_classes": 16}


def layout(rules=None, smallest=1, **sizes):
    return make_layout(sharding.make_mesh(**sizes), rules, smallest)


@pytest.mark.parametrize(
    ("path", "rank", "expected"),
    [
        ("blocks/attn/qkv/kernel", 3, ("layers", "embed", "heads")),
        ("0/mu/blocks/mlp/fc2/kernel", 3, ("layers", "mlp", "embed")),
        ("blocks/1/attn/proj/kernel", 2, ("heads", "embed")),  # a list of blocks, not stacked
        ("blocks/norm1/scale", 2, ("layers", None)),
        ("head/kernel", 2, ("embed", "classes")),
        ("s1/b1/conv1/conv/kernel", 4, (None, None, None, None)),
        ("step", 0, ()),
    ],
)
def test_logical_axes_follow_the_path(path, rank, expected):
    assert logical_axes(path, rank) == expected


def test_weights_are_stored_over_fsdp_and_used_over_tensor():
    both = layout(fsdp=4, tensor=2)
    path, shape = "blocks/attn/qkv/kernel", (3, 64, 192)
    assert both.stored(path, shape) == P(None, "fsdp", "tensor")
    assert both.used(path, shape) == P(None, None, "tensor")
    assert both.batch_shards == 4


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("blocks/attn/proj/kernel", (8, 60, 60), P(None, None, None)),  # never over layers, even where they divide
        ("blocks/mlp/fc1/kernel", (8, 60, 240), P(None, None, "fsdp")),  # embed does not divide: mlp does
        ("conv/kernel", (3, 3, 32, 64), P(None, None, None, "fsdp")),
        ("conv/kernel", (8, 3, 30, 62), P("fsdp", None, None, None)),
        ("head/bias", (10,), P(None)),
    ],
)
def test_what_does_not_divide_is_split_elsewhere_or_not_at_all(path, shape, expected):
    assert layout(fsdp=8).stored(path, shape) == expected


def test_small_arrays_stay_whole():
    assert layout(fsdp=8, smallest=65).stored("norm/scale", (64,)) == P(None)
    assert layout(fsdp=8, smallest=64).stored("norm/scale", (64,)) == P("fsdp")


def test_foreign_axes_and_rules():
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    by_default = make_layout(mesh)
    assert by_default.stored("blocks/mlp/fc1/kernel", (3, 64, 256)) == P(None, None, "model")
    over_data = make_layout(mesh, {"embed": "data"})
    assert over_data.stored("blocks/mlp/fc1/kernel", (3, 64, 256)) == P(None, "data", "model")
    assert over_data.used("blocks/mlp/fc1/kernel", (3, 64, 256)) == P(None, None, "model")
    with pytest.raises(UserError, match=r"rule 'head' is not a logical axis \(did you mean heads\?\)"):
        make_layout(mesh, {"head": "model"})
    with pytest.raises(UserError, match="rule heads: the mesh has no axis 'tensor', but data, model"):
        make_layout(mesh, {"heads": "tensor"})


def config_of(unroll: int = 1, **mesh):
    config = resolve(default_config())
    config.batch_size, config.model.scan_unroll = 16, unroll
    config.augment.policy, config.augment.mixup, config.augment.cutmix, config.augment.erasing = "none", 0.0, 0.0, 0.0
    config.distill.kind, config.optimizer.ema_decay = "second_cls", 0.9
    config.model.name, config.model.num_classes = "deit_digits_distilled_patch4_16", 16
    config.mesh.update(mesh)
    return config


def small_student(config):
    student = make_student(config, 16)
    build = models.constructor(config.model.name, **(student.build.keywords | SMALL))
    return student._replace(build=build, graphdef=models.abstract(build)[0])


def compiled_step(config):
    """(the train step compiled, placed state's shapes, parameters)."""
    student = small_student(config)
    placed = make_layout(sharding.make_mesh(**config.mesh), smallest=1024)
    state = jax.eval_shape(lambda: create_state(student, config))
    places = place_params(state, placed)
    with_places = jax.tree.map(lambda x, s: x.update(sharding=s), state, places)
    rows = sharding.batch_sharding(placed.mesh)
    array = lambda dtype, *axes: jax.ShapeDtypeStruct((16, *axes), dtype, sharding=rows)
    batch = {name: array(np.int32) for name in ("label", "index", "epoch", "repeat")}
    batch["image"] = array(np.uint8, 16, 16, 3)
    step = make_train_step(student.on(placed), None, config, 10, placed.batch_shards)
    jitted = jax.jit(step, out_shardings=(places, None), donate_argnums=0)
    return jitted.lower(with_places, batch, []).compile(), state


@pytest.mark.parametrize("unroll", [1, 64], ids=["loop", "unrolled"])
def test_fsdp_stores_a_share_and_sends_three_times_the_parameters(unroll):
    """Weights are gathered for the forward and for the backward pass, gradients reduced: nothing else is large."""
    compiled, state = compiled_step(config_of(unroll, fsdp=-1))
    parameters = 4 * sum(x.size for x in jax.tree.leaves(state["params"]))
    whole_state = 4 * parameters  # parameters, two moments, average
    memory = compiled.memory_analysis()
    batch = 2 * (16 * 16 * 3 + 4 * 4)
    assert memory.argument_size_in_bytes - batch < 1.15 * whole_state / 8  # biases and norms stay whole
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
    parameters = 4 * sum(x.size for x in jax.tree.leaves(state["params"]))
    text = compiled.as_text()
    found = collectives(text)
    assert sum(c.bytes for c in found.values()) < 2 * 3.2 * parameters
    assert 2 * 1.8 * parameters < found["all-gather"].bytes
    kernels = [x.shape for x in jax.tree.leaves(state["params"]["blocks"]) if x.ndim == 3]
    loops = [line for line in text.splitlines() if " while(" in line]
    split = ["[3,8,192]", "[3,64,8]", "[3,8,256]", "[3,256,8]"]
    assert any(all(f"f32{shape}" in line for shape in split) for line in loops), "the sums, an eighth on each device"
    for shape in (*kernels, *(shape[1:] for shape in kernels)):
        assert not any(f"[{','.join(map(str, shape))}]" in line for line in loops), shape


def run_step(config, devices=None, count: int = 2):
    placed = make_layout(sharding.make_mesh(devices, **config.mesh), smallest=1024)
    student = small_student(config)
    state = jax.jit(lambda: create_state(student, config, seed=1))()
    state = jax.device_put(state, place_params(state, placed))
    step = jax.jit(make_train_step(student.on(placed), None, config, 10, placed.batch_shards))
    rng = np.random.default_rng(0)
    for i in range(count):
        batch = {name: np.full(16, i, np.int32) for name in ("epoch", "repeat")}
        batch |= {"index": np.arange(16, dtype=np.int32), "label": rng.integers(0, 16, 16, np.int32)}
        batch["image"] = rng.integers(0, 256, (16, 16, 16, 3), np.uint8)
        state, metrics = step(state, sharding.place_batch(batch, placed.mesh), [])
    return state, float(metrics["loss"]), float(metrics["grad_norm"])


@pytest.fixture(scope="module")
def on_one_device():
    return run_step(config_of(), jax.devices()[:1])


@pytest.mark.parametrize(
    "mesh", [{"fsdp": -1}, {"tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["fsdp", "tensor", "all"]
)
def test_any_mesh_trains_as_one_device(mesh, on_one_device):
    alone, loss, norm = on_one_device
    split, split_loss, split_norm = run_step(config_of(**mesh))
    np.testing.assert_allclose(split_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(split_norm, norm, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(alone["ema"]), jax.tree.leaves(split["ema"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    kernel = split["params"]["blocks"]["mlp"]["fc1"]["kernel"]
    devices = mesh.get("fsdp", 1) * mesh.get("tensor", 1)
    assert kernel.addressable_shards[0].data.size == kernel.size // (8 if devices < 0 else devices)


def test_heads_must_divide():
    config = config_of(tensor=8)
    with pytest.raises(UserError, match="num_heads 4 is not a multiple of the 8 devices along tensor"):
        run_step(config)


def test_shard_says_what_it_takes():
    from flax import linen

    with pytest.raises(UserError, match="Dense is not a module of deit_jax.to_linen: shard its variables"):
        deit_jax.shard(linen.Dense(3), sharding.make_mesh())
