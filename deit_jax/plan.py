"""`--mode=plan`: what a training run needs of a machine, from its compiled step: memory, arithmetic, communication.

Nothing is trained, no data and no weights are read, and with `--topology=v5e:4x4` or `h100:8` the machine need not be
there. Of a GPU's program the kernels are read too, and with them a bound on its speed.
"""

import math
import operator
import time
from typing import Any, NamedTuple

import jax

from deit_jax import models
from deit_jax.abstract_step import abstract_step, step_flops
from deit_jax.config import IMAGENET_TRAIN_IMAGES, Config, validate
from deit_jax.distill.label_store import view_bytes
from deit_jax.errors import first_line
from deit_jax.losses import OBJECTIVES
from deit_jax.runtime import hardware, sharding, traffic
from deit_jax.runtime.collectives import Collective, bytes_sent, collectives
from deit_jax.runtime.mesh import mesh_sizes
from deit_jax.runtime.processes import print_once
from deit_jax.runtime.topologies import compiler_options, topology_devices
from deit_jax.train.optimizer import num_steps


class Plan(NamedTuple):
    """What `plan` found. Bytes and `kernels` are per device, the latter only of GPUs; `collectives` by kind."""

    devices: int
    device_kind: str
    parameters: int
    teacher_parameters: int
    arguments: int
    temporaries: int
    outputs: int
    available: float | None
    flops: int
    collectives: dict[str, Collective]
    compile_seconds: float
    kernels: tuple[traffic.Kernel, ...] = ()

    @property
    def needed(self) -> int:
        """Bytes of memory that a step takes on each device."""
        return self.arguments + self.temporaries + self.outputs

    @property
    def fits(self) -> bool:
        """Whether the device has that memory; where its size is unknown, a program that compiled is taken to fit."""
        return self.available is None or self.needed <= self.available


class DoesNotFit(Exception):
    """The compiler itself found no way to place the program in the device's memory; its own line."""


def make_plan(config: Config, devices: list[Any], options: dict[str, Any] | None = None) -> Plan:
    """The plan of a resolved config on these devices. Raises DoesNotFit where the compiler gives up.

    options: of the compiler.
    """
    kind = devices[0].device_kind
    try:
        with hardware.compiling_for(*devices):
            parts = abstract_step(config, sharding.make_mesh(devices, **config.mesh))
            begun = time.perf_counter()
            compiled = parts.step.lower(parts.state, parts.batch, parts.teacher_arrays).compile(options)
            seconds = time.perf_counter() - begun
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(first_line(error)) from None
    count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    memory = compiled.memory_analysis()
    assert memory is not None, "the CPU, GPU and TPU compilers of jax all give it"
    text = compiled.as_text() or ""
    here = sum(d.process_index == devices[0].process_index for d in devices)
    kept = -(-IMAGENET_TRAIN_IMAGES // here) * 3 * config.data.device_size**2  # each process keeps all images
    return Plan(
        devices=len(devices),
        device_kind=kind,
        parameters=count(parts.state.params),
        teacher_parameters=count([params for params, _ in parts.teacher_arrays]),
        arguments=memory.argument_size_in_bytes + kept,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        available=hardware.device_memory(kind, here),
        flops=step_flops(config),
        collectives=collectives(text),
        compile_seconds=seconds,
        kernels=tuple(traffic.kernels(text)) if devices[0].platform == "gpu" else (),
    )


def plan(config: Config, topology: str = "", price: float = 0.0) -> Plan | None:
    """`--mode=plan`: compile the train step of a resolved config and print what it needs, and whether that fits.

    Where it does not, what would make it fit is compiled too, and printed with its memory.

    Args:
        config: resolved and valid.
        topology: "" for the devices at hand, or one that is not ("v5e:4x4", "h100:8"), once `prepare_environment` was
            called.
        price: of a device's hour, for the forecast; 0: not known.

    Returns the plan; None where the compiler gave up on it.
    """
    devices = topology_devices(topology) if topology else jax.devices()
    options = compiler_options(topology)
    validate(config, num_devices=len(devices))
    try:
        result = make_plan(config, devices, options)
        print_once(plan_text(result, config, price))
        if result.fits:
            return result
        reason = f"{format_memory(result)} per device"
    except DoesNotFit as error:
        result, reason = None, f"{config.model.name}, batch {config.batch_size}: {error}"
    print_once(f"\ndoes not fit: {reason}. What would make it fit:")
    for changes in ways_to_fit(config, len(devices)):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        try:
            memory = format_memory(make_plan(changed, devices, options))
        except DoesNotFit:
            memory = "does not fit"
        flags = " ".join(f"--config.{name}={value}" for name, value in changes.items())
        print_once(f"  {flags:58} {memory}")
    return result


def ways_to_fit(config: Config, num_devices: int) -> list[dict[str, Any]]:
    """Changes of settings that save memory, {setting: value}, as far as they are valid here; the last one combines
    those that change neither the batch nor what is learned."""
    batch = config.batch_size
    ways: list[dict[str, Any]] = []
    if issubclass(models.find(config.model.name)[0], models.vit.ViT):
        ways += [{"model.remat": how} for how in ("dots", "full") if config.model.remat not in (how, "full")]
    if batch % (2 * config.accumulate * num_devices) == 0:
        ways.append({"accumulate": 2 * config.accumulate})
    if num_devices > 1 and config.mesh.fsdp == 1:
        ways.append({"mesh.fsdp": -1, "mesh.data": 1})
    free = [way for way in ways if way != {"model.remat": "dots"}]
    if batch % (2 * num_devices * config.accumulate) == 0:
        ways.append({"batch_size": batch // 2})
    if len(free) > 1:
        ways.append({name: value for way in free for name, value in way.items()})
    return ways


def format_memory(p: Plan) -> str:
    """ "21.50 GiB of 16.00 GiB" and whether that fits."""
    if p.available is None:
        return amount(p.needed)
    return f"{amount(p.needed)} of {amount(p.available).strip()}{': fits' if p.fits else ''}"


def plan_text(p: Plan, config: Config, price: float = 0.0) -> str:
    """Format the plan for the console."""
    teacher = f", teacher {config.teacher.name} {p.teacher_parameters:,}" if p.teacher_parameters else ""
    mesh = " x ".join(f"{n} {axis}" for axis, n in mesh_sizes(p.devices, **config.mesh).items() if n > 1)
    data = "batch, ImageNet" if config.data.device_size else "batch"
    lines = [
        f"{config.model.name}: {p.parameters:,} parameters{teacher}",
        f"batch {config.batch_size} on {p.devices} x {p.device_kind}" + (f" ({mesh})" if mesh else "") + ","
        f" remat {config.model.remat}, accumulate {config.accumulate}; compiled in {p.compile_seconds:.1f} s",
        "",
        "memory per device",
        f"  arguments (state, {data}, teacher)  {amount(p.arguments)}",
        f"  temporaries (activations)          {amount(p.temporaries)}",
        f"  outputs beyond the old state       {amount(p.outputs)}",
        f"  together                           {format_memory(p)}",
        "",
        f"arithmetic: {p.flops / 1e9:,.1f} GFLOP per step, {p.flops / config.batch_size / 1e9:,.2f} per image",
    ]
    lines += ["", "communication per step and device" + ("" if p.collectives else ": none")]
    lines += [f"  {name:18} {c.count:5} times, {amount(c.bytes)} in all" for name, c in p.collectives.items()]
    lines += bound_text(p)
    lines += forecast(p, config, price)
    lines += label_forecast(p, config)
    return "\n".join(lines)


def bound(p: Plan) -> float | None:
    """Seconds that the kernels of a GPU's step take at least; None where they or the device's rates are not known."""
    known = hardware.accelerator(p.device_kind)
    if not known or not known.bandwidth or not p.kernels:
        return None
    return traffic.total(p.kernels, known.peak, known.bandwidth).seconds


def bound_text(p: Plan) -> list[str]:
    """Lines on the kernels of a GPU's step: what they move, and the least time of each part and kind."""
    known, least = hardware.accelerator(p.device_kind), bound(p)
    if not known or least is None:
        return []
    rates = known.peak, known.bandwidth
    row = lambda name, t: f"  {name:14} {t.kernels:6,} {t.bytes / 1e9:9.2f} {t.seconds * 1e3:9.2f}"
    lines = [
        "",
        f"bound by kernels: each takes at least its arithmetic at {known.peak / 1e12:,.0f} TFLOP/s or its bytes at"
        f" {known.bandwidth / 1e12:.1f} TB/s",
        "(nothing ran; compiled with autotuning off where the GPU is not here)",
        f"  {'':14} {'kernels':>6} {'GB':>8} {'least ms':>9}",
    ]
    for by in ("kind", "part"):
        lines += [row(name, t) for name, t in traffic.totals(p.kernels, operator.attrgetter(by), *rates).items()]
        lines.append("")
    lines.append(row("whole step", traffic.total(p.kernels, *rates)))
    lines.append(f"  bound on MFU: {p.flops / p.devices / known.peak / least:.2f} of {known.peak / 1e12:,.0f} TFLOP/s")
    return lines


def forecast(p: Plan, config: Config, price: float = 0.0) -> list[str]:
    """Lines that estimate images/s and hours, and money at `price` per device and hour; none for devices of unknown
    rates.

    Computing takes the bound of the kernels, or where that is not known, half of the peak rate; communication (the
    collectives' bytes, by ring algorithms) the published link bandwidth.
    """
    known = hardware.accelerator(p.device_kind)
    if not known:
        return []
    least = bound(p)
    computing = least or p.flops / (p.devices * known.peak / 2)
    sent = bytes_sent(p.collectives, p.devices)
    sending = sent / known.link if known.link else 0.0
    steps = num_steps(config, max(1, IMAGENET_TRAIN_IMAGES // config.batch_size))

    def rate(seconds: float) -> str:
        hours = steps * seconds / 3600
        money = f", {hours * p.devices * price:,.0f} at {price:g} per device and hour" if price else ""
        return f"{config.batch_size / seconds:,.0f} images/s, {hours:,.1f} h{money}"

    limit = "communication" if sending > computing else "kernels"
    how = f"at the bound, limited by {limit}: no run is faster" if least else "at half of the peak rate"
    lines = [
        "",
        f"forecast for {steps:,} steps, {how}",
        f"  communication hidden: {rate(max(computing, sending))}",
    ]
    if sending:
        share = sending / (computing + sending)
        at = f"{sent / 1e9:,.2f} GB per device at {known.link / 1e9:,.0f} GB/s"
        lines.append(f"  nothing hidden:       {rate(computing + sending)} ({share:.0%} of it sending {at})")
    return lines


def label_forecast(p: Plan, config: Config) -> list[str]:
    """Lines on the labels that `--mode=label` would store of a run's live teacher: bytes of each form before
    compression, and the teacher's forward passes that a run which reads them saves; none without such a teacher."""
    if config.distill.labels or not OBJECTIVES[config.distill.kind].store_kind:
        return []
    stored, classes = config.copy_and_resolve_references(), config.model.num_classes or 1000
    stored.distill.labels = "stored"
    per_epoch = max(1, IMAGENET_TRAIN_IMAGES // config.batch_size)
    steps = num_steps(config, per_epoch)
    made = min(config.label.views * per_epoch or steps, steps)
    lines = ["", f"labels stored by --mode=label, of {made * config.batch_size:,} views, before compression"]
    top = {f"topk, label.k={k}": ("topk", k, config.label.dtype) for k in (min(config.label.k, classes), classes)}
    for name, form in {"hard": ("hard",), **top}.items():
        size = view_bytes(*form)
        lines.append(f"  {name:18} {size:6,} bytes per view, {amount(size * made * config.batch_size)} in all")
    saved, known = p.flops - step_flops(stored), hardware.accelerator(p.device_kind)
    lines.append(f"  teacher's forward pass: {saved / 1e9:,.1f} GFLOP per step")
    if known:
        live, once = (count * saved / (p.devices * known.peak / 2) / 3600 for count in (steps, made))
        lines.append(f"    at half of the peak rate {live:,.1f} h in each run with a live teacher, {once:,.1f} h once")
    return lines


def amount(count: float) -> str:
    """Bytes in words."""
    unit, name = (hardware.GIB, "GiB") if count >= hardware.GIB else (2**20, "MiB")
    return f"{count / unit:7.2f} {name}"
