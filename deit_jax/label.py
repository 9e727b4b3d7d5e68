"""`--mode=label`: run the teacher once over the training stream, and store its labels for later runs.

The images are the train step's: the same batches, the same augmentation and mixing, from the same keys.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float

from deit_jax.augment import augment_train
from deit_jax.augment.mix import num_groups
from deit_jax.config import Config
from deit_jax.data import loader
from deit_jax.data.base import Source
from deit_jax.distill.label_reader import check_identity, image_identity, teacher_identity
from deit_jax.distill.label_store import CHUNK, MAX_CLASSES, LabelStore, read_header
from deit_jax.distill.teacher import Teacher, load_teacher
from deit_jax.errors import Interrupted, UserError
from deit_jax.losses import OBJECTIVES
from deit_jax.randomness import purpose_key
from deit_jax.runtime import atomic, sharding, storage
from deit_jax.runtime.processes import from_process_0, hold_folder, print_once, wait_for_process_0
from deit_jax.runtime.progress import track
from deit_jax.runtime.stop import Stop
from deit_jax.train.loop import train_teacher
from deit_jax.train.optimizer import num_steps
from deit_jax.train.run import open_data
from deit_jax.train.step import model_spec

SAME_TEACHER = 0.99  # agreement of --verify below which the labels are taken for another teacher's


def stored_form(logits: Float[Array, "batch classes"], header: dict[str, Any]) -> dict[str, Array]:
    """What a store of that header holds of a teacher's logits, and `finite`: whether these are.

    Of `topk` the logits as they are, and last the one that, given to every other class, leaves the k classes their
    probabilities at the header's temperature; -inf where there is no other.
    """
    logits, k, tau = logits.astype(jnp.float32), header["k"], header["tau"]
    finite = jnp.isfinite(logits.max(-1)).all()  # an average may hold log 0
    if header["kind"] == "hard":
        return {"label": logits.argmax(-1), "finite": finite}
    known, index = jax.lax.top_k(logits, k)
    others = logits.at[jnp.arange(len(logits))[:, None], index].set(-jnp.inf)
    rest = tau * (jax.nn.logsumexp(others / tau, -1, keepdims=True) - math.log(max(logits.shape[-1] - k, 1)))
    return {"index": index, "logit": jnp.append(known, rest, -1), "finite": finite}


def make_labeller(config: Config, teacher: Teacher, num_classes: int, header: dict[str, Any], mesh: Mesh) -> Callable:
    """(teacher's arrays, batch, step) → `stored_form` of one step, whose images are the train step's.

    A teacher that another library runs is called between two jitted functions, on a mesh of one device.
    """

    def augmented(batch, step):
        key = purpose_key(config.seed, "augment")
        return augment_train(batch, key, step, config.augment, num_classes, mesh.devices.size)[0]

    labels = lambda logits: stored_form(logits, header)
    if teacher.host:
        images, answers = jax.jit(augmented), jax.jit(labels)
        return lambda arrays, batch, step: answers(teacher.predict(arrays, {"image": images(batch, step)}))
    whole = lambda arrays, batch, step: labels(teacher.predict(arrays, {**batch, "image": augmented(batch, step)}))
    return jax.jit(whole, out_shardings=sharding.replicated(mesh))


def make_header(config: Config, source: Source, img_size: int, teacher: dict[str, Any] | None = None) -> dict[str, Any]:
    """What labels.json holds. Raises UserError for a setting that makes no labels.

    teacher: its identity, once it is loaded.
    """
    kind = config.label.kind
    if kind == "auto":
        kind = OBJECTIVES[config.distill.kind].store_kind
    if source.num_classes > MAX_CLASSES:
        raise UserError(f"the data has {source.num_classes} classes: stored labels hold {MAX_CLASSES} at most")
    if kind == "topk" and config.label.k > source.num_classes:
        raise UserError(f"label.k is {config.label.k}, the data has {source.num_classes} classes: use no more")
    header = {
        "kind": kind,
        "k": config.label.k,
        "dtype": config.label.dtype,
        "tau": config.distill.tau,
        "batch_size": config.batch_size,
        "group_size": config.batch_size // num_groups(config.batch_size, config.augment.mix_group),
        "images": image_identity(config, source, img_size),
        "teacher": teacher or {},
    }
    return header if kind == "topk" else header | {"k": 1, "dtype": "uint16", "tau": 1.0}


def label(config: Config, workdir: str | Path, *, verify: int = 0, teacher_init: str = "") -> dict[str, Any]:
    """Store the teacher's labels of the run that `config` describes in `workdir`, or finish the store it holds.

    Every process computes its own part of the chunks, whole batches on its own devices.

    Args:
        verify: compute this many stored batches again instead, and compare.
        teacher_init: weights of a teacher that was trained just before.

    Returns what was done: {"steps", "views"}, or with `verify` {"batches", "views", "same", "largest"}.
    Raises UserError for bad input, or a full disk (what was written stays usable), Interrupted after a signal.
    """
    config = config.copy_and_resolve_references()
    config.distill.labels = ""
    if not OBJECTIVES[config.distill.kind].store_kind:
        raise UserError(f"distill.kind is {config.distill.kind}: it has no teacher whose labels could be stored")
    folder = storage.as_path(workdir)
    data = open_data(config)
    source = data.train
    size = model_spec(config, source.num_classes).img_size
    per_epoch = loader.steps_per_epoch(config, source)
    total = config.label.views * per_epoch or num_steps(config, per_epoch)
    header = make_header(config, source, size)
    if verify or (folder / "labels.json").exists():  # before a teacher is trained for nothing
        check_store(folder, header)
    with hold_folder(folder):
        trained = teacher_init or train_teacher(config, folder, data)[0]
        teacher = load_teacher(config, source.class_names, size, trained, host=True)
        for note in [note for member in teacher.models for note in member.notes]:
            print_once(f"labels: {note}")
        identity = teacher_identity(config, size, teacher, config.teacher.init or "trained for it")
        header = make_header(config, source, size, identity)
        if (folder / "labels.json").exists():
            check_store(folder, header)
        from_process_0(lambda: prepare_store(folder, header, total))
        devices = jax.local_devices()
        store, mesh = LabelStore(folder), sharding.make_mesh(devices[:1] if teacher.host else devices)
        labeller = make_labeller(config, teacher, source.num_classes, store.header, mesh)
        arrays = teacher.arrays if teacher.host else jax.device_put(teacher.arrays, sharding.replicated(mesh))
        label_batch = lambda batch, step: labeller(arrays, sharding.place_batch(batch, mesh), step)
        batches = lambda start: loader.train_batches(config, source, size=size, start=start)
        if verify:
            return compare(store, label_batch, batches, verify, total)
        return fill(store, label_batch, batches, total)


def check_store(folder: Path, header: dict[str, Any]) -> None:
    """Raise UserError where the store in a folder is one of other labels than `header` describes."""
    theirs = read_header(folder)
    check_identity(folder, theirs, header["images"], header["teacher"])
    other = [k for k in ("kind", "k", "dtype", "tau") if theirs[k] != header[k]]
    if other:
        shown = "; ".join(f"{k}: {theirs[k]} there, {header[k]} here" for k in other)
        raise UserError(f"{folder} holds labels of another form ({shown}): choose another --workdir")


def prepare_store(folder: Path, header: dict, total: int) -> None:
    """Start or open the store, and remove what is damaged there, so that it is labelled again."""
    store = LabelStore.create(folder, header, total)
    for chunk, found in store.damaged().items():
        print(f"labels: chunk {chunk} is damaged ({found}): computing it again")
        store.remove(chunk)


def fill(store: LabelStore, label_batch: Callable, batches: Callable, total: int) -> dict[str, Any]:
    """Compute and store the missing chunks of the first `total` steps.

    label_batch: (batch, step) → labels. batches: first step → stream of batches.
    """
    batch_size, missing, index = store.header["batch_size"], store.missing(total), jax.process_index()
    wait_for_process_0("labels counted")  # before anyone adds to them
    mine = np.array_split(np.array(missing, int), jax.process_count())[index]  # neighbours, which one stream reads
    print_once(
        f"labels: {total:,} steps of {batch_size}, {total * batch_size:,} views, {store.header['kind']};"
        f" {len(missing):,} of {-(-total // CHUNK):,} chunks are missing"
    )
    stream, position, pending = None, -1, []
    with Stop() as stop, contextlib.ExitStack() as opened:
        for chunk in track(mine.tolist(), f"chunks of {CHUNK} steps", len(mine) if index == 0 else 0):
            steps = range(chunk * CHUNK, min((chunk + 1) * CHUNK, total))
            if stream is None or steps[0] != position:
                opened.close()
                stream = opened.enter_context(contextlib.closing(batches(steps[0])))
            position = steps[-1] + 1
            labels = make_chunk(store, label_batch, stream, steps, stop)
            finish(store, pending)
            if labels is None:
                break
            pending = store.write(chunk, labels)
        else:
            finish(store, pending)
    requested = bool(np.any(multihost_utils.process_allgather(np.bool_(stop.requested))))  # after all have written
    if requested or store.missing(total):
        done = min(store.steps_done(), total)
        raise Interrupted(f"labels: stopped with {done} of {total} steps stored; the same command resumes from there")
    print_once(f"labels: {total} steps stored in {store.folder}; train with --config.distill.labels={store.folder}")
    return {"steps": total, "views": total * batch_size}


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
        raise UserError(f"the teacher's logits are not finite in steps {steps[0]} to {steps[-1]}: check its weights")
    return {name: np.stack([m[name] for m in made]).astype(dtype) for name, (dtype, _) in store.arrays.items()}


def finish(store: LabelStore, writes: list) -> None:
    """Wait for a chunk's files. Raises UserError where they could not be written."""
    try:
        for write in writes:
            write.result()
    except Exception as error:  # tensorstore's errors are ValueError, RuntimeError and others
        raise UserError(
            f"{atomic.write_error(store.folder / 'labels', error)}; the first {store.steps_done()} steps are stored"
            " and stay usable, and the same command resumes from there"
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
        with contextlib.closing(batches(step)) as stream:
            made = jax.device_get(label_batch(next(stream), step))
        stored = store.read(step)
        ours, theirs = (x["label"] if "label" in x else x["index"][:, 0] for x in (made, stored))
        same, views = same + int((ours == theirs).sum()), views + len(ours)
        if "logit" in made:
            both = (jax.nn.softmax(x["logit"][:, :-1].astype(np.float32)) for x in (made, stored))
            largest = max(largest, float(jnp.abs(next(both) - next(both)).max()))
    text = f"{same} of {views} predictions agree ({100 * same / views:.3f} %)"
    if largest:
        text += f"; probabilities among the stored classes differ by {largest:.2g} at most"
    if same < SAME_TEACHER * views:
        raise UserError(f"the labels in {store.folder} are not this teacher's: {text}: make labels in another folder")
    print(f"labels: {len(steps)} of {done} batches computed again: {text}")
    return {"batches": len(steps), "views": views, "same": same, "largest": largest}
