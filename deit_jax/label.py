"""`--mode=label`: the teacher runs once over the training stream, and later runs read its stored labels.

The images are the train step's: the same batches, the same augmentation and mixing, from the same keys.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from deit_jax.augment import augment_train
from deit_jax.config import Config
from deit_jax.config.derived import has_teacher
from deit_jax.data import loader
from deit_jax.data.base import Source
from deit_jax.distill.label_reader import check_identity, image_identity, teacher_identity
from deit_jax.distill.label_store import CHUNK, MAX_CLASSES, LabelStore, digest, read_header, runs, size_forecast
from deit_jax.distill.runs import train_teacher
from deit_jax.distill.teacher import load_teacher, teacher_of
from deit_jax.errors import Interrupted, UserError
from deit_jax.evaluate.tables import duration
from deit_jax.randomness import purpose_key
from deit_jax.runtime import atomic, sharding, storage
from deit_jax.runtime.processes import from_process_0, hold_folder
from deit_jax.runtime.stop import Stop
from deit_jax.student import Student, compute_dtype, make_student
from deit_jax.train.optimizer import num_steps
from deit_jax.train.setup import Data, open_data

SAME_TEACHER = 0.99  # agreement of --verify below which the labels are taken for another teacher's


def make_labeller(config: Config, teacher: Callable, num_classes: int, header: dict, devices: int) -> Callable:
    """(teacher's arrays, batch, step) → the store's arrays for one step, and `finite`: whether the teacher's answers
    are; to be jitted. Images as the train step's."""

    def labels(arrays, batch, step):
        key = purpose_key(config.seed, "augment")
        images, _ = augment_train(batch, key, step, config.augment, num_classes, devices)
        logits = teacher(arrays, batch, images).astype(jnp.float32)
        finite = jnp.isfinite(logits.max(-1)).all()  # an average may hold log 0
        if header["kind"] == "hard":
            return {"decision": logits.argmax(-1), "finite": finite}
        probability, index = jax.lax.top_k(jax.nn.softmax(logits / header["tau"]), header["k"])
        return {"index": index, "probability": probability, "finite": finite}

    return labels


def make_header(config: Config, source: Source, student: Student, teacher: dict) -> dict[str, Any]:
    """What labels.json holds. Raises UserError for a setting that makes no labels."""
    kind = config.label.kind
    if kind == "auto":
        kind = "topk" if config.distill.kind == "soft" else "hard"
    if source.num_classes > MAX_CLASSES:
        raise UserError(f"the data has {source.num_classes} classes: stored labels hold {MAX_CLASSES} at most")
    if kind == "topk" and config.label.k > source.num_classes:
        raise UserError(f"label.k is {config.label.k}, the data has {source.num_classes} classes: use no more")
    both = {"images": image_identity(config, source, student.img_size), "teacher": teacher}
    header = {
        "kind": kind,
        "k": config.label.k,
        "dtype": config.label.dtype,
        "tau": config.distill.tau,
        "batch_size": config.batch_size,
        "chunk_steps": CHUNK,
        "hash": digest(both),
        **both,
    }
    return header if kind == "topk" else header | {"k": 1, "dtype": "uint16", "tau": 1.0}


def label(config: Config, workdir: str | Path, *, verify: int = 0, teacher_init: str = "") -> dict[str, Any]:
    """Store the teacher's labels of the run that `config` (resolved and valid) describes in `workdir`, or finish the
    store it holds. With `verify`, make that many batches again instead and compare. teacher_init: weights of a teacher
    that was trained just before, as `train`'s.

    Every process makes its own share of the chunks, whole batches on its own devices. Returns what was done. Raises
    UserError for bad input and a full disk (what was written stays usable), Interrupted after a signal.
    """
    config = config.copy_and_resolve_references()
    config.distill.labels = ""
    if not has_teacher(config):
        raise UserError(f"distill.kind is {config.distill.kind}: without a teacher there is nothing to label with")
    folder = storage.as_path(workdir)
    data = open_data(config)
    source = data.train
    student = make_student(config, source.num_classes)
    total = num_steps(config, loader.steps_per_epoch(config, source))
    make_header(config, source, student, {})
    if verify or (folder / "labels.json").exists():  # before a teacher is trained for nothing
        header = read_header(folder)
        check_identity(folder, header, config, source, student, header["teacher"])
    with hold_folder(folder):
        return make_labels(config, folder, data, student, total, verify, teacher_init)


def make_labels(
    config: Config, folder: Path, data: Data, student: Student, total: int, verify: int, teacher_init: str
) -> dict[str, Any]:
    """As `label`, in a folder that is held by this run and with what was opened to check the config."""
    source = data.train
    trained = teacher_init or train_teacher(config, folder, data)[0]
    classes = {"num_classes": source.num_classes, "class_names": source.class_names}
    dtype = compute_dtype(config.teacher.dtype)
    members, arrays = load_teacher(config, trained, img_size=student.img_size, dtype=dtype, **classes)
    if jax.process_index() == 0:
        for note in [note for member in members for note in member.notes]:
            print(f"labels: {note}")
    init = config.teacher.init or "trained for it"
    header = make_header(config, source, student, teacher_identity(config, student.img_size, members, arrays, init))
    store = open_store(folder, header, total, config, source, student)
    mesh = sharding.make_mesh(jax.local_devices())
    labeller = make_labeller(config, teacher_of(config, members), source.num_classes, store.header, mesh.devices.size)
    arrays = jax.device_put(arrays, sharding.replicated(mesh))
    jitted = jax.jit(labeller, out_shardings=sharding.replicated(mesh))
    one = lambda batch, step: jitted(arrays, sharding.place_batch(batch, mesh), step)
    batches = lambda start: loader.train_batches(config, source, size=student.img_size, start=start)
    if verify:
        return compare(store, one, batches, verify, total)
    return fill(store, one, batches, total)


def open_store(folder: Path, header: dict, total: int, config: Config, source: Source, student: Student) -> LabelStore:
    """The store in `folder`, new or to be finished. Raises UserError where it is one of other labels."""
    if (folder / "labels.json").exists():
        theirs = read_header(folder)
        check_identity(folder, theirs, config, source, student, header["teacher"])
        other = [k for k in ("kind", "k", "dtype", "tau") if theirs[k] != header[k]]
        if other:
            shown = "; ".join(f"{k}: {theirs[k]} there, {header[k]} here" for k in other)
            raise UserError(f"{folder} holds labels of another form ({shown}): choose another --workdir")
    from_process_0(lambda: prepare_store(folder, header, total))
    return LabelStore(folder)


def prepare_store(folder: Path, header: dict, total: int) -> None:
    """Start the store or make room in it, and remove what is damaged there, so that it is labelled again."""
    store = LabelStore.create(folder, header, total)
    for chunk, found in store.damaged().items():
        print(f"labels: chunk {chunk} is damaged ({found}): computing it again")
        store.remove(chunk)


def wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def my_share(chunks: list[int], index: int, count: int) -> list[int]:
    """The part of the chunks that process `index` of `count` computes: neighbours, which one stream reads."""
    return [int(c) for c in np.array_split(chunks, count)[index]]


def fill(store: LabelStore, one: Callable, batches: Callable, total: int) -> dict[str, Any]:
    """Compute and store the missing chunks. one: (batch, step) → labels; batches: first step → stream of batches."""
    header, batch_size = store.header, store.header["batch_size"]
    missing = store.missing(total)
    wait_for_all("labels counted")  # before anyone adds to them
    mine = my_share(missing, jax.process_index(), jax.process_count())
    progress = Progress(len(mine), batch_size)
    size = size_forecast(total * batch_size, header["kind"], header["k"], header["dtype"])
    free = atomic.free_space(store.folder)
    progress.say(
        f"labels: {total:,} steps of {batch_size}, {total * batch_size:,} views, {header['kind']}: "
        f"{size / 1e9:.2f} GB before compression"
        + (f", {free / 1e9:.1f} GB free" if free < math.inf else "")
        + (" — that may not be enough" if free < size * len(missing) * CHUNK / total else "")
    )
    if store.stored(total):
        progress.say(f"labels: {store.stored(total)} steps are there already")
    pending: list = []
    with Stop() as stop:
        for first, end in runs(mine):
            stream = batches(first * CHUNK)
            for chunk in range(first, end):
                steps = range(chunk * CHUNK, min((chunk + 1) * CHUNK, total))
                labels = make_chunk(store, one, stream, steps, stop)
                if labels is None:
                    break
                pending.append(store.write(chunk, labels))
                if len(pending) > 2:
                    finish(store, pending.pop(0))
                progress.chunk(len(steps))
            stream.close()
            if stop.requested:
                break
        for writes in pending:
            finish(store, writes)
    requested = bool(np.any(multihost_utils.process_allgather(np.bool_(stop.requested))))  # after all have written
    if requested or store.missing(total):
        done = store.stored(total)
        raise Interrupted(f"labels: stopped with {done} of {total} steps stored; the same command resumes from there")
    local = [] if storage.is_bucket(store.folder) else storage.files(store.folder)
    written = sum(path.stat().st_size for path in local)
    size = f", {written / 1e6:,.1f} MB" if local else ""
    progress.say(
        f"labels: {total} steps stored in {store.folder}{size}; train with --config.distill.labels={store.folder}"
    )
    return {"steps": total, "views": total * batch_size, "bytes": written}


def make_chunk(store: LabelStore, one: Callable, stream: Iterator, steps: range, stop: Stop) -> dict | None:
    """The store's arrays for some steps, or None where a signal asks to stop."""
    made = []
    for step in steps:
        made.append(one(next(stream), step))
        if len(made) > 2:  # a little ahead of the device, not a chunk ahead
            jax.block_until_ready(made[-3])
        if stop.poll():
            return None
    made = jax.device_get(made)
    if not all(m.get("finite", True) for m in made):
        raise UserError(
            f"the teacher's answers are not finite in steps {steps[0]} to {steps[-1]}: check its weights, or use"
            " --config.teacher.dtype=float32"
        )
    return {name: np.stack([m[name] for m in made]).astype(dtype) for name, (dtype, _) in store.arrays().items()}


def finish(store: LabelStore, writes: list) -> None:
    """Wait for a chunk's files. Raises UserError where they could not be written."""
    try:
        for write in writes:
            write.result()
    except Exception as error:  # tensorstore's errors are ValueError, RuntimeError and others
        raise UserError(
            f"labels could not be written ({atomic.write_error(store.folder / 'labels', error)}): the first"
            f" {store.steps_done()} steps are stored and stay usable, and the same command resumes from there"
        ) from error


def compare(store: LabelStore, one: Callable, batches: Callable, count: int, total: int) -> dict[str, Any]:
    """Compute `count` stored batches again, spread over the run, and say how many decisions agree."""
    done = min(store.steps_done(), total)
    if not done:
        raise UserError(f"{store.folder} has no labels yet: make them with --mode=label")
    steps = sorted({int(s) for s in np.linspace(0, done - 1, count)})
    same = views = 0
    largest = 0.0
    for step in steps:
        stream = batches(step)
        made = jax.device_get(one(next(stream), step))
        stream.close()
        stored = store.read(step)
        decided = [(x["decision"] if "decision" in x else x["index"][:, 0]).astype(np.int64) for x in (made, stored)]
        same, views = same + int((decided[0] == decided[1]).sum()), views + len(decided[0])
        if "probability" in made:
            difference = np.abs(made["probability"] - stored["probability"].astype(np.float32))
            largest = max(largest, float(difference.max()))
    probabilities = f"; probabilities differ by {largest:.2g} at most" if store.header["kind"] == "topk" else ""
    text = f"{same} of {views} decisions agree ({100 * same / views:.3f} %){probabilities}"
    if same < SAME_TEACHER * views:
        raise UserError(f"the labels in {store.folder} are not this teacher's: {text}: make labels in another folder")
    print(f"labels: {len(steps)} of {done} batches computed again: {text}")
    return {"batches": len(steps), "views": views, "same": same, "largest": largest}


class Progress:
    """The progress line of process 0, about its own share."""

    def __init__(self, chunks: int, batch_size: int):
        self.chunks, self.batch_size, self.done, self.steps = chunks, batch_size, 0, 0
        self.tty, self.begun, self.said = sys.stdout.isatty(), None, 0.0
        self.writes = jax.process_index() == 0

    def say(self, text: str, *, passing: bool = False) -> None:
        if self.writes:
            print(("\r\x1b[K" if self.tty else "") + text, end="" if passing and self.tty else "\n", flush=True)

    def chunk(self, steps: int) -> None:
        now = time.perf_counter()
        self.done += 1
        if self.begun is None:  # the first chunk holds the compilation
            self.begun = now
            return
        self.steps += steps
        if not self.tty and now - self.said < 10:
            return
        self.said = now
        rate = self.steps / (now - self.begun)
        left = duration((self.chunks - self.done) * CHUNK / rate)
        share = 100 * self.done / self.chunks
        self.say(f"labels  {share:.1f} %  {rate * self.batch_size:,.0f} images/s  {left} left", passing=True)
