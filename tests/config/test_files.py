"""Every file of configs/ starts: on images of 16 px, with models and teachers for digits."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers import ROOT, folder_of_images, state_of
from safetensors.numpy import save_file

from deit_jax import models
from deit_jax.config import flat, resolve, validate
from deit_jax.config.recipes import named_size
from deit_jax.errors import UserError
from deit_jax.runtime import sharding
from deit_jax.train.loop import training_batches
from deit_jax.train.optimizer import schedule
from deit_jax.train.run import open_run

CASES = [
    ("deit_ti", ""),
    ("deit_s", "distill=soft,epochs=1000"),
    ("deit_b", "distill=hard"),
    ("deit_b_384", "distill=hard"),
    ("regnety_160", ""),
    ("transfer", "data=cars"),
    ("folder", "teacher=runs/regnety_160"),
    ("digits", ""),
    ("cifar10", "scale=cpu"),
    ("deit3", "size=L,stage=21k"),
]


def get_config(name: str, text: str = ""):
    return importlib.import_module(f"configs.{name}").get_config(text)


pytestmark = pytest.mark.usefixtures("single")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Sixteen training images of two classes, and eight more."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 8), ("validation", 4), ("test", 4)):
        folder_of_images(root / split, images=count)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    """Random weights of two classes, by model."""
    folder = tmp_path_factory.mktemp("weights")
    names = ("deit_digits_patch4_16", "deit_digits_distilled_patch4_16", "regnety_digits")
    for name in names:
        save_file(state_of(name, num_classes=2), folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in names}


def tiny(config, photos: Path, weights: dict[str, Path]):
    """The config with the smallest model of its kind, on the small images; all else stays."""
    c = config
    distilled, kind = "_distilled" in c.model.name, "regnety" if "regnety" in c.model.name else "deit"
    size = 32 if "_384" in c.model.name else 16
    small = "regnety_digits" if kind == "regnety" else f"deit_digits{'_distilled' if distilled else ''}_patch4_16"
    c.model.name, c.model.img_size = small, size
    c.init = str(weights[small]) if c.init else ""
    if c.distill.kind in ("soft", "hard"):
        c.teacher.name, c.teacher.init, c.teacher.epochs = "regnety_digits", str(weights["regnety_digits"]), 0
        c.teacher.img_size = 16
    c.data.root, c.batch_size, c.epochs, c.steps, c.data.limit = str(photos), 8, 1, 0, 0
    if c.model.name != "deit_digits_patch4_16":  # RandAugment takes longest to compile: the plain students keep it
        c.augment.policy = "none"
    c.log.every, c.log.tensorboard, c.train_baseline = 1, False, False
    return resolve(c)


def test_every_config_is_tried():
    assert {name for name, _ in CASES} == {p.stem for p in (ROOT / "configs").glob("*.py")}


@pytest.mark.parametrize(("name", "text"), CASES)
def test_a_config_starts_and_its_step_has_a_loss(name, text, photos, weights, tmp_path):
    """Up to the first step, which is traced; a whole run: tests/test_main.py."""
    config = tiny(get_config(name, text), photos, weights)
    validate(config, num_devices=jax.device_count())
    run = open_run(config, tmp_path / "run")
    stream = training_batches(run, 0)
    batch = sharding.place_batch(next(stream)[0], run.mesh)
    arrays = list(run.teacher.arrays) if run.teacher else []
    state, metrics = jax.eval_shape(run.program.step, run.program.abstract_state, batch, arrays)
    stream.close()
    assert (metrics["loss"].shape, run.total_steps) == ((), 2)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, run.program.abstract_state)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_a_config_is_valid_as_it_is_and_its_docstring_names_its_command(path):
    config = resolve(get_config(path.stem))
    validate(config)
    models.find(config.model.name)
    for name in config.teacher.name.split(","):
        models.find(name)
    lines = importlib.import_module(f"configs.{path.stem}").__doc__.splitlines()
    commands = [line for line in lines if line.startswith("    python main.py ")]
    assert commands
    for command in commands:
        assert "--workdir=runs/" in command
        argument = next(a for a in command.split() if a.startswith("--config="))
        file, _, text = argument.removeprefix("--config=").partition(":")
        assert (ROOT / file).is_file()
        get_config(Path(file).stem, text)


def test_fine_tuning_at_384_is_the_papers():
    config = get_config("deit_b_384", "distill=hard,init=runs/b")
    assert config.model.name == "deit_base_distilled_patch16_384"
    assert config.init == "runs/b"
    o = config.optimizer
    assert (config.batch_size, config.epochs, o.lr, o.lr_batch, o.weight_decay) == (512, 30, 5e-6, 512, 1e-8)
    assert (o.schedule, o.warmup_epochs) == ("constant", 5.0)
    plain = get_config("deit_b")
    assert flat(config.augment) == flat(plain.augment), "all augmentation stays"
    assert config.teacher.init == "timm/regnety_160.deit_in1k"
    assert config.teacher.img_size == 224, "the teacher stays at its own resolution"
    assert get_config("deit_b_384").init == "facebook/deit-base-patch16-224"
    assert get_config("deit_b_384", "epochs=10").epochs == 10


def test_a_named_model_has_its_size():
    assert [named_size(n) for n in ("deit_digits_patch4_16", "deit_tiny_patch16_384", "regnety_160")] == [16, 384, 224]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("transfer", "data=flower", "data=flower is not known (did you mean flowers?)"),
        ("transfer", "settings=new", "settings=new is not known: use paper or later"),
        ("folder", "epochs=many", "epochs=many is not a whole number"),
        ("deit_b_384", "lr=1", "'lr=1' is not known"),
        ("regnety_160", "epochs=-1", "epochs=-1 is not a whole number"),
        ("deit3", "size=M", "no settings are published for size=M, stage=1k: use stage=1k for size=S, B, L, H"),
        ("deit3", "size=B,stage=1k_384", "give init= the workdir of stage=1k"),
    ],
)
def test_bad_arguments_end_in_one_line(name, text, message):
    with pytest.raises(UserError) as error:
        get_config(name, text)
    assert message in str(error.value)


@pytest.mark.parametrize("epochs", [300, 301])
def test_a_recipe_leaves_the_epochs_that_a_file_was_asked_for(epochs):
    """300 is the default, which recipes replace where nothing was asked for."""
    config = resolve(get_config("deit3", f"size=S,epochs={epochs}"))
    rate = schedule(config, steps_per_epoch=10)
    assert config.epochs == epochs
    assert rate(10 * epochs - 1) < 1.1e-5, "the cosine ends with the run"
