"""`--mode=plan`: what a training run needs of a machine, from its compiled step: memory, arithmetic, communication.

Nothing is trained, no data and no weights are read, and with `--topology=v5e:4x4` the machine need not be there.
"""

import importlib.util
import math
import os
import re
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from deit_jax import models
from deit_jax.config import IMAGENET_TRAIN_IMAGES, recipe_differences, validate
from deit_jax.config.derived import has_teacher
from deit_jax.data import batch
from deit_jax.distill.teacher import TeacherModel, make_teacher, teacher_models, teacher_of
from deit_jax.errors import UserError
from deit_jax.runtime import hardware, sharding
from deit_jax.runtime.collectives import Collective, collectives
from deit_jax.runtime.flops import count_flops
from deit_jax.student import compute_dtype, make_student
from deit_jax.train.step import create_state, make_step

NO_LIBTPU = (
    "a plan for a TPU that is not here needs libtpu's compiler: pip install libtpu (Linux, x86-64), or leave --topology"
)


def prepare_environment(topology: str) -> None:
    """To be called before jax looks for devices: plan on the CPU, and let libtpu not look for a TPU.

    topology: as libtpu names them, "v5e:4x4"; "" changes nothing. Raises UserError for what is none.
    """
    if not topology:
        return
    if not re.fullmatch(r"v\d+\w?:\d+(x\d+)+", topology):
        raise UserError(f"topology '{topology}' is none: name chip and grid, as v5e:4x4, v5p:2x2x2 or v6e:4x4")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(NO_LIBTPU)
    chip, _, grid = topology.partition(":")
    chips = math.prod(map(int, grid.split("x")))
    count = chips if chip in ("v5e", "v6e") else 2 * chips  # older names count cores
    os.environ |= {
        "TPU_ACCELERATOR_TYPE": f"{chip.replace('v5e', 'v5litepod')}-{count}",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    jax.config.update("jax_platforms", "cpu")


def topology_devices(topology: str) -> list:
    """The devices of a TPU topology, for compiling only. Raises UserError where libtpu knows no such topology."""
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"topology '{topology}' is not known to libtpu: {reason}") from None


def abstract_batch(config, img_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a training batch of a resolved config."""
    return batch.abstract(batch.train_entries(img_size) | batch.teacher_entries(config), config.batch_size)


def unloaded_teacher(config, **sizes) -> tuple[Callable, list[TeacherModel]]:
    """(teacher, the models it runs live) that `config` asks for, no weights read."""
    sizes["dtype"] = compute_dtype(config.teacher.dtype)
    if not has_teacher(config) or config.distill.labels:
        return make_teacher(config, **sizes).logits, []
    members = teacher_models(config, **sizes)
    return teacher_of(config, members), members


class Step(NamedTuple):
    """A train step and the shapes of its arguments: step(state, batch, teacher's arrays)."""

    step: Callable
    state: dict
    batch: dict
    teacher_arrays: list


def abstract_step(config, num_devices: int = 1) -> Step:
    """The train step of a resolved config on ImageNet's schedule, nothing allocated."""
    classes = config.model.num_classes or 1000
    student = make_student(config, classes)
    teacher, members = unloaded_teacher(config, img_size=student.img_size, num_classes=classes)
    teacher_arrays = [models.abstract(member.build)[1:] for member in members]
    per_epoch = max(1, IMAGENET_TRAIN_IMAGES // config.batch_size)
    step = make_step(student, teacher, config, per_epoch, shards=num_devices)
    state = jax.eval_shape(lambda: create_state(student, config))
    return Step(step, state, abstract_batch(config, student.img_size), teacher_arrays)


def step_flops(config) -> int:
    """Arithmetic of one train step (forward, backward, teacher), without what remat computes again."""
    plain = config.copy_and_resolve_references()
    plain.model.remat, plain.model.attention = "none", "einsum"
    return count_flops(*abstract_step(plain))


def compile_step(config, mesh) -> tuple[jax.stages.Compiled, float]:
    """(the train step compiled for the devices of `mesh`, seconds it took), sharded as `train` shards it."""
    step, state, batch, teacher_arrays = abstract_step(config, mesh.devices.size)
    place = lambda tree, places: jax.tree.map(lambda x, s: x.update(sharding=s), tree, places)  # noqa: E731
    everywhere = lambda tree: jax.tree.map(lambda _: sharding.replicated(mesh), tree)  # noqa: E731
    state = place(state, sharding.place_params(state, mesh, config.sharding))
    batch = place(batch, jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch))
    teacher_arrays = place(teacher_arrays, everywhere(teacher_arrays))
    begun = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch, teacher_arrays).compile()
    return compiled, time.perf_counter() - begun


class Plan(NamedTuple):
    """What `plan` found. Bytes are a device's; `collectives` by kind."""

    devices: int
    device_kind: str
    parameters: int
    teacher_parameters: int
    arguments: int
    temporaries: int
    outputs: int
    flops: int
    collectives: dict[str, Collective]
    compile_seconds: float


def plan(config, topology: str = "") -> Plan:
    """`--mode=plan`: compile the train step of a resolved config and print what it needs.

    topology: "" for the devices at hand, or a TPU topology ("v5e:4x4"), once `prepare_environment` was called with it.
    Raises UserError where the step does not fit.
    """
    devices = topology_devices(topology) if topology else jax.devices()
    validate(config, num_devices=len(devices))
    if topology:
        config = hardware.settle(config, "tpu")
    mesh, kind = sharding.make_mesh(devices), devices[0].device_kind
    try:
        compiled, seconds = compile_step(config, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(does_not_fit(config, len(devices), kind, str(error))) from None
    parts = abstract_step(config)
    count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))  # noqa: E731
    memory = compiled.memory_analysis()
    result = Plan(
        devices=len(devices),
        device_kind=kind,
        parameters=count(parts.state["params"]),
        teacher_parameters=count([params for params, _ in parts.teacher_arrays]),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        flops=step_flops(config),
        collectives=collectives(compiled.as_text()),
        compile_seconds=seconds,
    )
    if jax.process_index() == 0:
        print(describe(result, config))
    return result


def does_not_fit(config, count: int, kind: str, error: str) -> str:
    """One line out of the compiler's many."""
    used = re.search(r"[Uu]sed ([\d.]+\w) of ([\d.]+\w)", error)
    amounts = f" ({used[1]} of {used[2]})" if used else ""
    return (
        f"batch_size {config.batch_size} does not fit {count} x {kind}{amounts}: use --config.model.remat=full,"
        " --config.accumulate=2, --config.sharding=fsdp or a smaller batch"
    )


def describe(p: Plan, config) -> str:
    """A plan, for people."""
    known = hardware.accelerator(p.device_kind)
    teacher = f", teacher {config.teacher.name} {p.teacher_parameters:,}" if p.teacher_parameters else ""
    together = amount(p.arguments + p.temporaries + p.outputs)
    lines = [
        f"{config.model.name}: {p.parameters:,} parameters{teacher}",
        f"batch {config.batch_size} on {p.devices} x {p.device_kind}, parameters {config.sharding},"
        f" remat {config.model.remat}, accumulate {config.accumulate}; compiled in {p.compile_seconds:.1f} s",
        "",
        "memory a device",
        f"  arguments (state, batch, teacher)  {amount(p.arguments)}",
        f"  temporaries (activations)          {amount(p.temporaries)}",
        f"  outputs beyond the old state       {amount(p.outputs)}",
        f"  together                           {together}" + (f" of {amount(known.memory)}" if known else ""),
        "",
        f"arithmetic: {p.flops / 1e9:,.1f} GFLOP a step, {p.flops / config.batch_size / 1e9:,.2f} an image",
    ]
    if known:
        rate = known.peak * p.devices / p.flops * config.batch_size
        lines.append(f"  at half of the peak rate: {rate / 2:,.0f} images/s")
    lines += ["", "communication a step and device" + ("" if p.collectives else ": none")]
    lines += [f"  {name:18} {c.count:5} times, {amount(c.bytes)} in all" for name, c in p.collectives.items()]
    lines += ["", f"recipe {config.recipe}: where paper and released code differ"]
    lines += [f"  {line}" for line in recipe_differences(config)]
    return "\n".join(lines)


def amount(count: float) -> str:
    """Bytes in words."""
    unit, name = (hardware.GIB, "GiB") if count >= hardware.GIB else (2**20, "MiB")
    return f"{count / unit:7.2f} {name}"
