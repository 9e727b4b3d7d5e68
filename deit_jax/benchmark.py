"""`--mode=benchmark`: how fast a run's parts are on this machine, and which of them is the bottleneck.

Weights and, for all but the input, images are random: speed does not depend on them.
"""

import time
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from deit_jax import models
from deit_jax.abstract_step import abstract_teacher, step_flops
from deit_jax.augment import augment_train
from deit_jax.config import Config, validate
from deit_jax.data.batch import teacher_entries, train_entries, zeros
from deit_jax.errors import UserError
from deit_jax.evaluate.inference import forward_flops, head_logits
from deit_jax.randomness import purpose_key
from deit_jax.runtime import hardware, sharding
from deit_jax.runtime.timing import time_calls
from deit_jax.train.step import ModelSpec, make_program, model_spec

if TYPE_CHECKING:  # the data packages are optional
    from deit_jax.data.base import Source


def random_batch(config: Config, student: ModelSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """This process's rows of a training batch of noise, on the host; with a teacher's labels where these are stored."""
    rng, rows = np.random.default_rng(seed), config.batch_size // jax.process_count()
    batch = zeros(train_entries(student.img_size, rows) | teacher_entries(config, rows))
    batch["image"] = rng.integers(0, 256, batch["image"].shape, np.uint8)
    batch["label"] = rng.integers(0, student.num_classes, rows, np.int32)
    batch["index"] = np.arange(rows, dtype=np.int32)
    return batch


class Workload:
    """A run's student, state, batch and functions on this machine's devices, ready to be timed.

    Attributes: `step` the compiled train step; `compile_seconds` of it; `batch` in the devices' memory.
    """

    def __init__(self, config: Config, num_classes: int = 1000) -> None:
        config = config.copy_and_resolve_references()
        config.model.num_classes = config.model.num_classes or num_classes
        self.config, self.mesh = config, sharding.make_mesh(**config.mesh)
        student = model_spec(config, config.model.num_classes)
        sizes = {"img_size": student.img_size, "num_classes": student.num_classes}
        teacher = abstract_teacher(config, **sizes)
        members = teacher.models if teacher else ()
        random_weights = jax.jit(
            lambda seed: [models.init_arrays(member.build, jax.random.key(seed)) for member in members],
            out_shardings=sharding.replicated(self.mesh),
        )
        self.teacher_arrays = random_weights(1)
        self.batch = sharding.place_batch(random_batch(config, student), self.mesh)
        program = make_program(student, teacher.predict if teacher else None, config, 1000, self.mesh)
        self.student = program.model
        self.state = program.initialize(None, 0)
        begun = time.perf_counter()
        self.step = program.step.lower(self.state, self.batch, self.teacher_arrays).compile()
        self.compile_seconds = time.perf_counter() - begun
        self._augment = jax.jit(lambda b, key: augment_train(b, key, 0, config.augment, sizes["num_classes"]))

    def train(self, batch: dict[str, jax.Array] | None = None) -> dict[str, jax.Array]:
        """Take one step on a batch, None: on `batch`; returns its metrics."""
        self.state, metrics = self.step(self.state, batch or self.batch, self.teacher_arrays)
        return metrics

    def forward(self) -> dict[str, jax.Array]:
        """The logits per head, in evaluation mode."""
        weights = {"params": self.state.params, "batch_stats": self.state.batch_stats}
        mean, std = tuple(self.config.augment.mean), tuple(self.config.augment.std)
        return head_logits(self.student.graphdef, weights, self.batch["image"], mean, std)

    def augment(self) -> tuple[jax.Array, jax.Array]:
        """The augmented images and their targets."""
        return self._augment(self.batch, purpose_key(0, "augment"))

    def flops(self) -> dict[str, int]:
        """Floating-point operations of one call of `train` and `forward`."""
        size = self.student.img_size
        forward = self.config.batch_size * forward_flops(self.student.build, size)
        return {"train": step_flops(self.config), "forward": forward}


def time_input(config: Config, source: "Source", size: int, seconds: float = 5.0) -> float:
    """Images/s of the training streams of all processes, if all are as fast as this one's, from the second batch on."""
    from deit_jax.data import loader  # here: the data packages are optional, the step needs none

    index, processes = jax.process_index(), jax.process_count()
    stream = loader.train_batches(config, source, size=size, process_index=index, process_count=processes)
    next(stream)
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        count += len(next(stream)["label"])
    rate = count / (time.perf_counter() - begun)
    stream.close()
    return rate * processes


def benchmark(config: Config) -> dict[str, Any]:
    """`--mode=benchmark`: time a resolved config's parts, print a table and say what limits the run.

    Returns {"input": images/s, "augment", "forward", "train": Timing of a batch, "mfu": {"train", "forward"} shares of
    the devices' peak or None where it is not known}. Raises UserError for data that cannot be opened, and for stored
    labels, whose stream is that of the run they were made for.
    """
    from deit_jax.data import cache, device_crops, sources  # here: they are optional, a workload needs none

    validate(config, num_devices=jax.device_count())
    if config.distill.labels:
        raise UserError("distill.labels is set: a benchmark times a run with a live teacher or without one, unset it")
    source = device_crops.keep_on_devices(config, *cache.keep_decoded(config, sources.open_sources(config)[0]))
    work = Workload(config, source.num_classes)
    result: dict[str, Any] = {"input": time_input(config, source, work.student.img_size)}
    for name in ("augment", "forward", "train"):
        result[name] = time_calls(getattr(work, name))
    known = hardware.accelerator(jax.devices()[0].device_kind)
    peak = known.peak * jax.device_count() if known else None
    result["mfu"] = {name: n / result[name].median / peak if peak else None for name, n in work.flops().items()}
    if jax.process_index() == 0:
        print(describe(result, config, work))
    return result


def describe(result: dict[str, Any], config: Config, work: Workload) -> str:
    """Format the benchmark for the console."""
    from deit_jax.data.assemble import decoding_threads  # here: as in `benchmark`

    device, cores = f"{jax.device_count()} x {jax.devices()[0].device_kind}", hardware.cores()
    lines = [
        f"{config.model.name}, {work.student.img_size} px, batch {config.batch_size} on {device}, {cores} CPU cores;"
        f" train step compiled in {work.compile_seconds:.1f} s",
        f"{'':26}{'images/s':>10}  {'ms per batch: median (min .. max)':34}share of peak",
    ]
    for name, title in (("augment", "augmentation on the device"), ("forward", "forward"), ("train", "train step")):
        t = result[name]
        spread = f"{1e3 * t.median:.1f} ({1e3 * t.minimum:.1f} .. {1e3 * t.maximum:.1f})"
        share = result["mfu"].get(name)
        shown = f"{share:.1%}" if share else "not known" if name in result["mfu"] else ""
        lines.append(f"{title:26}{config.batch_size / t.median:10,.0f}  {spread:34}{shown}".rstrip())
    rate, step = result["input"], config.batch_size / result["train"].median
    threads = decoding_threads(config)
    limit = "input" if rate < step else "step"
    lines.append(f"{f'input, {threads} threads':26}{rate:10,.0f}")
    lines.append(f"the {limit} is the limit")
    if limit == "input":
        lines.append(
            f"  an input {step / rate:.1f}x as fast would keep up: see data.threads, data.workers, data.resize"
        )
    return "\n".join(lines)
