"""What tests of several rooms share."""

import contextlib
import io
import json
import random
import runpy
import socket
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import seeded
from absl.testing import flagsaver
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file
from scipy.io import savemat

from deit_jax import __main__, models
from deit_jax.config import Config, default_config, resolve
from deit_jax.data import sources
from deit_jax.distill import teacher
from deit_jax.errors import UserError
from deit_jax.evaluate import evaluation_command
from deit_jax.experiment import train_and_report
from deit_jax.runtime import sharding
from deit_jax.train.step import create_state, make_train_step
from deit_jax.weights import fit_weights, load_weights
from deit_jax.weights.metadata import Metadata, to_header
from deit_jax.weights.names import Timm, entries

evaluation_command.TIMED_SECONDS = 0.01  # a second for each set of weights, whose figure no test looks at
ROOT = Path(__file__).parents[1]
SLURM_PORTS = range(2**16 - 2**12, 2**16)
GOLDEN = ROOT / "tests/golden"
SMALL = "deit_digits_distilled_patch4_16"

# the smallest that still has several blocks and heads: what most tests train, in half the time of the digits models
TINY, TINY_PLAIN = "deit_test_distilled_patch4_16", "deit_test_patch4_16"
SIZES = {"embed_dim": 48, "num_heads": 3, "depth": 2, "patch_size": 4, "img_size": 16}
models.vit.CONFIGS.update({name: SIZES | {"distilled": name == TINY} for name in (TINY, TINY_PLAIN)})

# XLA as users have it, against `compiling` and the flags of conftest.py: `jax.jit(…, compiler_options=AS_USERS)`
AS_USERS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}


def configured(**changes) -> Config:
    """The default config with `changes` by dotted names, as in `**{"data.limit": 128}`."""
    config = default_config()
    config.update_from_flattened_dict(changes)
    return resolve(config)


def tiny_config(**changes) -> Config:
    """Two epochs of 22 steps on digits, of a student with two heads; `changes` by dotted names, as in `**{"data.limit":
    128}`."""
    c = default_config()
    c.data.name, c.model.name, c.batch_size, c.epochs = "digits", TINY, 64, 2
    c.augment.policy, c.augment.repeats = "none", 1  # RandAugment takes longest to compile
    c.optimizer.lr, c.optimizer.lr_update, c.optimizer.warmup_epochs = 8e-3, "step", 1.0
    c.optimizer.ema_decay, c.log.every, c.log.tensorboard = 0.9, 5, False
    c.update_from_flattened_dict(changes)
    return resolve(c)


def whole_config(**changes) -> Config:
    """Of the `whole_run` fixture: a teacher, a plain and a distilled student that learn something, unmixed images."""
    unmixed = {"flip": 0.0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0, "crop_scale": (0.9, 1.0)}
    teacher = {"name": TINY_PLAIN, "epochs": 5, "lr": 3.2e-2}
    settings = {
        "batch_size": 32, "epochs": 6, "optimizer.lr": 3.2e-2, "train_baseline": True, "distill.kind": "hard",
        "data.crop": 1.0, "evaluate.every": 99, "checkpoint.every": 99, "log.tensorboard": True,
    }  # fmt: skip
    settings |= {f"augment.{k}": v for k, v in unmixed.items()} | {f"teacher.{k}": v for k, v in teacher.items()}
    return tiny_config(**settings | changes)


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """One of the eight simulated devices is all there is: whole runs that are not about devices take a fraction."""
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: first)
        patch.setattr(jax, "local_devices", lambda *_, **__: first)
        patch.setattr(jax, "device_count", lambda *_: 1)
        patch.setattr(jax, "local_device_count", lambda *_: 1)
        yield


def optimize(wanted: bool) -> bool:
    """Set whether what is compiled is worth optimizing; returns what was set before. jax would go on with what it
    compiled the other way, whose results differ in the last bit: that is forgotten."""
    before = not jax.config.values["jax_disable_most_optimizations"]
    if wanted != before:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", not wanted)
    return before


def make_whole_run(folder: Path) -> None:
    """Train `whole_config` on one device; `opened.json` lists what was opened, in order."""
    opened, before = [], optimize(True)
    with one_device(), pytest.MonkeyPatch.context() as patch:
        for module, name in ((sources, "open_sources"), (teacher, "load_weights")):
            original = getattr(module, name)
            patch.setattr(module, name, lambda *a, o=original, n=name, **k: (opened.append(n), o(*a, **k))[1])
        train_and_report(whole_config(), folder)
    optimize(before)
    (folder / "opened.json").write_text(json.dumps(opened))


def run_jitted(model: nnx.Module, images):
    """What a model returns, compiled as one, as for users: eager calls compile each operation by itself."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, images: nnx.merge(graphdef, state)(images), compiler_options=AS_USERS)(state, images)


def relative(ours, theirs) -> float:
    """Largest difference over the largest magnitude."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def same_weights(path, other, **options) -> None:
    """Assert that two files hold the same weights. options: of `load_weights`, for the first."""
    jax.tree.map(np.testing.assert_array_equal, load_weights(path, **options).tree, load_weights(other).tree)


def state_of(name: str, seed: int = 0, naming=None, **overrides) -> dict[str, np.ndarray]:
    """A seeded state dict of any registry model, in timm's names unless said otherwise."""
    _, params, batch_stats = models.abstract(models.constructor(name, **overrides))
    shapes = {"params": params, "batch_stats": batch_stats}
    return seeded.checkpoint({e.key: list(e.shape) for e in entries(shapes, naming or Timm())}, seed)


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """A port for jax's coordinator, one that jax derives from a Slurm job's number. It is kept from other programs but
    not from the coordinator, which shares its port as all of gRPC's servers do."""
    for port in random.sample(SLURM_PORTS, 100):
        with socket.socket() as held:
            try:
                held.bind(("localhost", port))
            except OSError:
                continue
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            yield port
            return
    raise OSError("a hundred ports are all in use")


def seeded_arrays(build: Callable, seed: int = 0) -> dict:
    """{"params", "batch_stats"}: seeded weights of a model; to compile its initialization would take longer."""
    _, params, batch_stats = models.abstract(build)
    tree = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), {"params": params, "batch_stats": batch_stats})
    for entry in entries(tree, Timm()):
        entry.view(tree)[...] = seeded.tensor(entry.key, tuple(entry.shape), seed)
    return tree


def train_steps(student, config: Config, mesh, count: int = 3):
    """(state, metrics) after some steps of a student on noise, which is the same for every mesh."""
    rng, size = np.random.default_rng(0), config.batch_size
    step = jax.jit(make_train_step(student.on(mesh), None, config, 10))
    state = jax.jit(lambda: create_state(student, config, seed=1))()
    state = jax.device_put(state, sharding.param_shardings(state, mesh))
    for i in range(count):
        batch = {
            "image": rng.integers(0, 256, (size, 16, 16, 3), np.uint8),
            "label": rng.integers(0, student.num_classes, size, np.int32),
            "index": np.arange(size, dtype=np.int32),
            **{name: np.full(size, i, np.int32) for name in ("epoch", "repeat")},
        }
        state, metrics = step(state, sharding.place_batch(batch, mesh), [])
    return state, {name: float(value) for name, value in metrics.items()}


VIEW = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "crop": 0.9, "interpolation": "bilinear"}
ANIMALS = ["cat", "dog", "newt"]


def save_weights(path: Path, name: str = TINY, class_names: Sequence[str] = ANIMALS, view=VIEW, **arguments) -> str:
    """Write seeded weights whose header says their view, classes, and the model's arguments that differ from it."""
    module, config = models.find(name)
    metadata = Metadata("" if arguments else name, module.__name__, config | arguments, class_names=class_names, **view)
    save_file(state_of(name, num_classes=len(class_names), **arguments), path, to_header(metadata))
    return str(path)


class Ended(NamedTuple):
    """A command that has ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


def ended(start: Callable[[], object], *arguments: object) -> Ended:
    """Run a command in this process, on eight devices, from the repository's root: starting another takes seconds."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        flagsaver.flagsaver(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        try:
            start()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Ended(code, out.getvalue(), err.getvalue())


def main(*arguments: object) -> Ended:
    """`python main.py ARGUMENTS` in this process."""
    return ended(__main__.main, *arguments)


def tool(name: str, *arguments: object) -> Ended:
    """`python -m deit_jax.NAME ARGUMENTS` in this process."""
    return ended(lambda: runpy.run_module(f"deit_jax.{name}", run_name="__main__"), *arguments)


def folder_of_images(root: Path, classes: int = 2, images: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(images):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(root / f"class{c}" / f"{i}.png")
    return root


def photo(path: Path, width: int = 150, height: int = 110) -> str:
    """Write a photo-like image: smooth colours, edges, noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8)).resize((width, height))
    noise = rng.integers(-20, 20, (height, width, 3))
    Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(path)
    return str(path)


def numbered_image(number: int) -> bytes:
    """A small PNG file whose bytes are no other number's."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue() + number.to_bytes(4, "big")


def tar_of(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def devkit(wnids: dict[int, str], truth: Sequence[int]) -> dict[str, bytes]:
    """The files of ImageNet's development kit. wnids: WordNet id by ILSVRC2012_ID; truth: that number per image."""
    meta = io.BytesIO()
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O")]
    savemat(meta, {"synsets": np.array([*wnids.items()], kinds)})
    lines = "".join(f"{number}\n" for number in truth).encode()
    return {"kit/data/meta.mat": meta.getvalue(), "kit/data/ILSVRC2012_validation_ground_truth.txt": lines}


def opened(root: object = "", **data):
    """The training and the evaluation images of `config.data`."""
    config = default_config()
    config.data.update({"root": str(root), **data})
    return sources.open_sources(config)


def held(source) -> list[tuple[str, bytes]]:
    """[(class, the image's bytes)] of a source, sorted."""
    return sorted((source.class_names[x["label"]], x["image"]) for x in map(source.__getitem__, range(len(source))))


def refusal(root: object = "", **data) -> str:
    """The one line that refuses to open a data set."""
    with pytest.raises(UserError) as error:
        opened(root, **data)
    assert str(error.value).isprintable()
    return str(error.value)


def import_timm():
    """(torch, timm), or the test is skipped with the reason."""
    torch = pytest.importorskip("torch", reason="needs torch: the golden values carry the proof without it")
    try:
        import timm
    except Exception as error:  # without a torchvision of its kind, timm's import fails in its own ways
        pytest.skip(f"needs timm: {type(error).__name__}: {error}")
    return torch, timm


def fit_named(weights, name: str, *, num_classes: int | None = None, img_size=None, **options):
    """`fit_weights` into a registered model, of the weights' own classes unless given."""
    classes = (weights.num_classes or None) if num_classes is None else num_classes
    return fit_weights(weights, models.constructor(name, num_classes=classes, img_size=img_size), **options)
