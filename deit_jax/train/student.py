"""The student: the model that a config describes. It needs no data, so that a step can be planned without any."""

import functools
import inspect
from typing import NamedTuple

from flax import nnx
from jax.sharding import Mesh

from deit_jax import models
from deit_jax.config import RECIPES, Config
from deit_jax.config.recipes import value_of
from deit_jax.errors import UserError
from deit_jax.losses import OBJECTIVES
from deit_jax.models.kernels import best_attention
from deit_jax.runtime import hardware, sharding


class Student(NamedTuple):
    """The model that is trained.

    Attributes:
        build: its constructor, a function of `rngs`.
        graphdef: its structure, to be merged with arrays.
        img_size: height and width in pixels.
        num_classes: number of classes per head.
        mesh: the devices its arrays are split over; None: one device.
    """

    build: functools.partial
    graphdef: nnx.GraphDef
    img_size: int
    num_classes: int
    mesh: Mesh | None = None

    def on(self, mesh: Mesh) -> "Student":
        """The same student, which computes with arrays that are split over the devices of `mesh`."""
        if mesh.size == 1:
            return self
        model = nnx.merge(*models.abstract(self.build))
        return self._replace(graphdef=nnx.graphdef(sharding.gather_kernels(model, mesh)), mesh=mesh)


def make_student(config: Config, num_classes: int) -> Student:
    """The model that `config.model` describes, for data of `num_classes`.

    Raises:
        UserError: settings that do not make a model, or a model that does not fit the objective.
    """
    m = config.model
    module, defaults = models.find(m.name)
    options = {"num_classes": num_classes, "img_size": m.img_size or defaults.get("img_size", 224)}
    options["dtype"] = hardware.compute_dtype(m.dtype)
    if issubclass(module, models.vit.ViT):
        head_dim = defaults["embed_dim"] // defaults["num_heads"]
        options["attention"] = best_attention(m.attention, options["dtype"], head_dim)
        options |= {"scan_unroll": hardware.best("scan_unroll", m.scan_unroll), "remat": m.remat}
    options |= dropout_options(config, module)
    if OBJECTIVES[config.distill.kind].two_heads and not defaults.get("distilled"):
        raise UserError(
            f"distill.kind {config.distill.kind} needs two heads, {m.name} has one: use the distilled model"
        )
    build = models.constructor(m.name, **options)
    return Student(build, models.abstract(build)[0], options["img_size"], num_classes)


def dropout_options(config: Config, module: type[nnx.Module]) -> dict[str, float]:
    """The module's arguments for `model.drop_rate` and `model.drop_path_rate`.

    Raises UserError where one of them is set and the module has none (a RegNet); the recipe's value is ignored there.
    """
    taken, options = inspect.signature(module.__init__).parameters, {}
    for name in ("drop_rate", "drop_path_rate"):
        value, path = config.model[name], f"model.{name}"
        by_recipe = path in RECIPES[config.recipe] and value == value_of(config.recipe, path, config.distill.kind)
        if name in taken:
            options[name] = value
        elif value and not by_recipe:
            raise UserError(f"{path} is {value}, but {config.model.name} has none: leave it out")
    return options
