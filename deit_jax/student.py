"""The student: the model that a config describes, its structure, and the sizes its data must have."""

import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from deit_jax import models
from deit_jax.config import RECIPES, Config
from deit_jax.config.recipes import value_of
from deit_jax.errors import UserError
from deit_jax.models.layout import Layout, with_layout
from deit_jax.runtime import hardware


class Student(NamedTuple):
    """The model that is trained.

    Attributes:
        build: its constructor, a function of `rngs`.
        graphdef: its structure, to be merged with arrays.
        img_size: height and width in pixels.
        num_classes: of each head.
        layout: how its arrays and its computation are split over devices; None: not at all.
    """

    build: functools.partial
    graphdef: nnx.GraphDef
    img_size: int
    num_classes: int
    layout: Layout | None = None

    def on(self, layout: Layout) -> "Student":
        """The same student, its computation split over devices as `layout` says."""
        if layout.mesh.size == 1:
            return self
        model = nnx.merge(*models.abstract(self.build))
        return self._replace(graphdef=nnx.graphdef(with_layout(model, layout)), layout=layout)


def compute_dtype(name: str) -> jnp.dtype:
    """The compute type that a config names; "auto" is bfloat16 on accelerators and float32 on CPU."""
    return jnp.dtype(hardware.best("dtype", name, jax.default_backend()))


def dropout_options(config: Config, module: type[nnx.Module]) -> dict[str, float]:
    """The module's arguments for `model.drop_rate` and `model.drop_path_rate`.

    Raises UserError where one of them is set and the module has none (a RegNet); the recipe's is passed over.
    """
    taken, options = inspect.signature(module.__init__).parameters, {}
    for name in ("drop_rate", "drop_path_rate"):
        value, path = config.model[name], f"model.{name}"
        if name in taken:
            options[name] = value
        elif value and not (
            path in RECIPES[config.recipe] and value == value_of(config.recipe, path, config.distill.kind)
        ):
            raise UserError(f"{path} is {value}, but {config.model.name} has none: leave it out")
    return options


def make_student(config: Config, num_classes: int) -> Student:
    """The model that `config.model` describes, for data of `num_classes`.

    Raises UserError for settings that do not make a model, or a model that does not fit the objective.
    """
    m = config.model
    module, defaults = models.find(m.name)
    options = {"num_classes": num_classes, "img_size": m.img_size or defaults.get("img_size", 224)}
    options["dtype"] = compute_dtype(m.dtype)
    if issubclass(module, models.vit.ViT):
        options |= {k: m[k] for k in ("attention", "remat", "scan_unroll")}
        for name in ("attention", "scan_unroll"):
            options[name] = hardware.best(name, m[name], jax.default_backend())
    options |= dropout_options(config, module)
    if config.distill.kind == "second_cls" and not defaults.get("distilled"):
        raise UserError(f"distill.kind second_cls needs two heads, {m.name} has one: use the distilled one")
    build = models.constructor(m.name, **options)
    return Student(build, models.abstract(build)[0], options["img_size"], num_classes)
