"""What tests of several rooms share."""

import contextlib
import io
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import seeded
from absl.testing import flagsaver
from flax import nnx
from PIL import Image

from deit_jax import __main__, models
from deit_jax.config import resolve
from deit_jax.data import sources
from deit_jax.distill import teacher
from deit_jax.experiment import run
from deit_jax.weights.names import Timm, entries

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/golden"
SMALL = "deit_digits_distilled_patch4_16"


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


@contextlib.contextmanager
def compiling(*, optimized: bool) -> Iterator[None]:
    """Whether what is compiled within is worth optimizing."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", not optimized)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def digits_config():
    """The first command's config, one epoch long, as it is resolved for the `digits_run` fixture."""
    from configs.digits import get_config

    config = get_config()
    config.epochs, config.teacher.epochs, config.log.every = 1, 1, 5
    return resolve(config)


def make_digits_run(folder: Path) -> None:
    """Run the first command on one device; `opened.json` lists what it opened, in order."""
    opened = []
    with one_device(), compiling(optimized=True), pytest.MonkeyPatch.context() as patch:
        for module, name in ((sources, "open_sources"), (teacher, "load_weights")):
            original = getattr(module, name)
            patch.setattr(module, name, lambda *a, o=original, n=name, **k: (opened.append(n), o(*a, **k))[1])
        run(digits_config(), folder)
    (folder / "opened.json").write_text(json.dumps(opened))


def run_jitted(model: nnx.Module, images):
    """What a model returns, compiled as one: eager calls compile each operation by itself, which takes longer."""
    return nnx.jit(lambda model, images: model(images))(model, images)


def relative(ours, theirs) -> float:
    """Largest difference over the largest magnitude."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def state_of(name: str, seed: int = 0, naming=None, **overrides) -> dict[str, np.ndarray]:
    """A seeded state dict of any registry model, in timm's names unless said otherwise."""
    _, params, batch_stats = models.abstract(models.constructor(name, **overrides))
    shapes = {"params": params, "batch_stats": batch_stats}
    return seeded.checkpoint({e.key: list(e.shape) for e in entries(shapes, naming or Timm())}, seed)


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


def import_timm():
    """(torch, timm), or the test is skipped with the reason."""
    torch = pytest.importorskip("torch", reason="needs torch: the golden values carry the proof without it")
    try:
        import timm
    except Exception as error:  # without a torchvision of its kind, timm's import fails in its own ways
        pytest.skip(f"needs timm: {type(error).__name__}: {error}")
    return torch, timm
