"""`--mode=label`: run the teacher once over the training stream, and store its labels for later runs.

The images are the train step's: the same batches, the same augmentation and mixing, from the same keys.
"""

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
from deit_jax.distill.label_store import CHUNK, MAX_CLASSES, LabelStore, digest, read_header, size_forecast
from deit_jax.distill.teacher import TeacherFunction, live_teacher, load_teacher
from deit_jax.errors import Interrupted, UserError
from deit_jax.losses import OBJECTIVES
from deit_jax.randomness import purpose_key
from deit_jax.runtime import atomic, sharding, storage
from deit_jax.runtime.hardware import compute_dtype
from deit_jax.runtime.processes import from_process_0, hold_folder, print_once, wait_for_process_0
from deit_jax.runtime.progress import track
from deit_jax.runtime.stop import Stop
from deit_jax.train.loop import train_teacher
from deit_jax.train.optimizer import num_steps
from deit_jax.train.run import Data, open_data
from deit_jax.train.student import Student, make_student

SAME_TEACHER = 0.99  # agreement of --verify below which the labels are taken for another teacher's


def make_labeller(
    config: Config, teacher: TeacherFunction, num_classes: int, header: dict[str, Any], devices: int
) -> Callable:
    """(teacher's arrays, batch, step) → the store's arrays for one step, to be jitted; images as the train step's.

    Beside them `finite`: whether all logits of the teacher are.
    """

    def label_batch(arrays, batch, step):
        key = purpose_key(config.seed, "augment")
        images, _ = augment_train(batch, key, step, config.augment, num_classes, devices)
        logits = teacher(arrays, {**batch, "image": images}).astype(jnp.float32)
        finite = jnp.isfinite(logits.max(-1)).all()  # an average may hold log 0
        if header["kind"] == "hard":
            return {"label": logits.argmax(-1), "finite": finite}
        probability, index = jax.lax.top_k(jax.nn.softmax(logits / header["tau"]), header["k"])
        return {"index": index, "probability": probability, "finite": finite}

    return label_batch


def make_header(config: Config, source: Source, img_size: int, teacher: dict) -> dict[str, Any]:
    """What labels.json holds. Raises UserError for a setting that makes no labels."""
    kind = config.label.kind
    if kind == "auto":
        kind = OBJECTIVES[config.distill.kind].labels
    if source.num_classes > MAX_CLASSES:
        raise UserError(f"the data has {source.num_classes} classes: stored labels hold {MAX_CLASSES} at most")
    if kind == "topk" and config.label.k > source.num_classes:
        raise UserError(f"label.k is {config.label.k}, the data has {source.num_classes} classes: use no more")
    both = {"images": image_identity(config, source, img_size), "teacher": teacher}
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
    """Store the teacher's labels of the run that `config` describes in `workdir`, or finish the store it holds.

    Every process computes its own part of the chunks, whole batches on its own devices.

    Args:
        config: resolved and valid.
        workdir: folder of the store.
        verify: compute this many stored batches again instead, and compare.
        teacher_init: weights of a teacher that was trained just before.

    Returns what was done: {"steps", "views", "bytes"}, or with `verify` {"batches", "views", "same", "largest"}.

    Raises:
        UserError: bad input, or a full disk (what was written stays usable).
        Interrupted: after a signal.
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
    make_header(config, source, student.img_size, {})
    if verify or (folder / "labels.json").exists():  # before a teacher is trained for nothing
        header = read_header(folder)
        check_identity(folder, header, config, source, student.img_size, header["teacher"])
    with hold_folder(folder):
        trained = teacher_init or train_teacher(config, folder, data)[0]
        return make_labels(config, folder, data, student, total, verify, trained)


def make_labels(
    config: Config, folder: Path, data: Data, student: Student, total: int, verify: int, teacher_init: str
) -> dict[str, Any]:
    """`label`, in a folder that is locked by this run and with what was opened to check the config."""
    source, size = data.train, student.img_size
    classes = {"num_classes": source.num_classes, "class_names": source.class_names}
    dtype = compute_dtype(config.teacher.dtype)
    members, arrays = load_teacher(config, teacher_init, img_size=size, dtype=dtype, **classes)
    for note in [note for member in members for note in member.notes]:
        print_once(f"labels: {note}")
    init = config.teacher.init or "trained for it"
    header = make_header(config, source, size, teacher_identity(config, size, members, arrays, init))
    store = open_store(folder, header, total, config, source, size)
    mesh = sharding.make_mesh(jax.local_devices())
    labeller = make_labeller(config, live_teacher(config, members), source.num_classes, store.header, mesh.devices.size)
    arrays = jax.device_put(arrays, sharding.replicated(mesh))
    jitted = jax.jit(labeller, out_shardings=sharding.replicated(mesh))

    def label_batch(batch: loader.Batch, step: int) -> dict[str, jax.Array]:
        return jitted(arrays, sharding.place_batch(batch, mesh), step)

    def batches(start: int) -> Any:
        return loader.train_batches(config, source, size=size, start=start)

    if verify:
        return compare(store, label_batch, batches, verify, total)
    return fill(store, label_batch, batches, total)


def open_store(folder: Path, header: dict, total: int, config: Config, source: Source, img_size: int) -> LabelStore:
    """The store in `folder`, new or to be finished. Raises UserError where it is one of other labels."""
    if (folder / "labels.json").exists():
        theirs = read_header(folder)
        check_identity(folder, theirs, config, source, img_size, header["teacher"])
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


def own_chunks(chunks: list[int], index: int, count: int) -> list[int]:
    """The part of the chunks that process `index` of `count` computes: neighbours, which one stream reads."""
    return [int(c) for c in np.array_split(chunks, count)[index]]


def fill(store: LabelStore, label_batch: Callable, batches: Callable, total: int) -> dict[str, Any]:
    """Compute and store the missing chunks of the first `total` steps.

    label_batch: (batch, step) → labels. batches: first step → stream of batches.
    """
    header, batch_size = store.header, store.header["batch_size"]
    missing = store.missing(total)
    wait_for_process_0("labels counted")  # before anyone adds to them
    mine = own_chunks(missing, jax.process_index(), jax.process_count())
    size = size_forecast(total * batch_size, header["kind"], header["k"], header["dtype"])
    first = jax.process_index() == 0
    if first:  # the others need not look at the store again
        print(
            f"labels: {total:,} steps of {batch_size}, {total * batch_size:,} views, {header['kind']}: "
            f"{size / 1e9:.2f} GB before compression, {atomic.free_space(store.folder) / 1e9:.1f} GB free;"
            f" {store.stored(total)} steps are stored already",
            flush=True,
        )
    stream, position, pending = None, -1, []
    with Stop() as stop:
        for chunk in track(mine, f"chunks of {CHUNK} steps", len(mine) if first else 0):
            steps = range(chunk * CHUNK, min((chunk + 1) * CHUNK, total))
            if stream is None or steps[0] != position:
                if stream is not None:
                    stream.close()
                stream = batches(steps[0])
            position = steps[-1] + 1
            labels = make_chunk(store, label_batch, stream, steps, stop)
            if labels is None:
                break
            pending.append(store.write(chunk, labels))
            if len(pending) > 2:
                finish(store, pending.pop(0))
        if stream is not None:
            stream.close()
        for writes in pending:
            finish(store, writes)
    requested = bool(np.any(multihost_utils.process_allgather(np.bool_(stop.requested))))  # after all have written
    if requested or store.missing(total):
        done = store.stored(total)
        raise Interrupted(f"labels: stopped with {done} of {total} steps stored; the same command resumes from there")
    local = [] if storage.is_bucket(store.folder) else storage.files(store.folder)
    written = sum(path.stat().st_size for path in local)
    size = f", {written / 1e6:,.1f} MB" if local else ""
    print_once(
        f"labels: {total} steps stored in {store.folder}{size}; train with --config.distill.labels={store.folder}"
    )
    return {"steps": total, "views": total * batch_size, "bytes": written}


def make_chunk(store: LabelStore, label_batch: Callable, stream: Iterator, steps: range, stop: Stop) -> dict | None:
    """The store's arrays for some steps, or None where a signal asks to stop."""
    made = []
    for step in steps:
        made.append(label_batch(next(stream), step))
        if len(made) > 2:  # a little ahead of the device, not a chunk ahead
            jax.block_until_ready(made[-3])
        if stop.poll():
            return None
    made = jax.device_get(made)
    if not all(m.get("finite", True) for m in made):
        raise UserError(
            f"the teacher's logits are not finite in steps {steps[0]} to {steps[-1]}: check its weights, or use"
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


def compare(store: LabelStore, label_batch: Callable, batches: Callable, count: int, total: int) -> dict[str, Any]:
    """Compute `count` stored batches again, spread over the run, and report how many predictions agree."""
    done = min(store.steps_done(), total)
    if not done:
        raise UserError(f"{store.folder} has no labels yet: make them with --mode=label")
    steps = sorted({int(s) for s in np.linspace(0, done - 1, count)})
    same = views = 0
    largest = 0.0
    for step in steps:
        stream = batches(step)
        made = jax.device_get(label_batch(next(stream), step))
        stream.close()
        stored = store.read(step)
        predicted = [(x["label"] if "label" in x else x["index"][:, 0]).astype(np.int64) for x in (made, stored)]
        same, views = same + int((predicted[0] == predicted[1]).sum()), views + len(predicted[0])
        if "probability" in made:
            difference = np.abs(made["probability"] - stored["probability"].astype(np.float32))
            largest = max(largest, float(difference.max()))
    probabilities = f"; probabilities differ by {largest:.2g} at most" if store.header["kind"] == "topk" else ""
    text = f"{same} of {views} predictions agree ({100 * same / views:.3f} %){probabilities}"
    if same < SAME_TEACHER * views:
        raise UserError(f"the labels in {store.folder} are not this teacher's: {text}: make labels in another folder")
    print(f"labels: {len(steps)} of {done} batches computed again: {text}")
    return {"batches": len(steps), "views": views, "same": same, "largest": largest}
