"""The same models for code written in Flax Linen."""

import functools
from collections.abc import Mapping
from typing import Any

from flax import linen, nnx
from jaxtyping import Array, Float

from deit_jax import models
from deit_jax.models.inputs import Images


class LinenModel(linen.Module):
    """A registry model as a Linen module; made by `to_linen`.

    Its variables are the NNX model's arrays under the same names, in "params" and (RegNet) "batch_stats".
    """

    model_name: str
    arguments: Mapping[str, Any]

    @linen.compact
    def __call__(self, images: Images, train: bool = False) -> Float[Array, "batch classes"]:
        """Logits."""
        return self.run("__call__", images, train)

    @linen.compact
    def heads(
        self, images: Images, train: bool = False
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch classes"] | None]:
        """(class logits, distillation logits or None)."""
        return self.run("heads", images, train)

    def run(self, method: str, images: Images, train: bool) -> Any:
        build = models.constructor(self.model_name, **self.arguments)
        graphdef, *shapes = models.abstract(build)
        drawn = functools.cache(lambda: models.init_arrays(build, self.make_rng("params")))
        variables = [
            {name: self.variable(collection, name, lambda i=i, name=name: drawn()[i][name]) for name in shapes[i]}
            for i, collection in enumerate(("params", "batch_stats"))
        ]
        model = nnx.merge(graphdef, *({name: v.value for name, v in part.items()} for part in variables))
        draws = train and any(build.keywords.get(rate) for rate in ("drop_rate", "drop_path_rate"))
        key = self.make_rng("dropout") if draws and not self.is_initializing() else None
        out = getattr(model, method)(images, train=train, key=key)
        if train and not self.is_initializing():
            for name, value in nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)).items():
                variables[1][name].value = value
        return out


def to_linen(
    name: str, *, num_classes: int | None = None, img_size: models.ImgSize | None = None, **overrides: Any
) -> LinenModel:
    """A registry model as a Linen module, with `init` and `apply`, alone or inside another Linen module.

        model = to_linen("deit_tiny_distilled_patch16_224", drop_path_rate=0.1)
        variables = model.init(jax.random.key(0), images)                   # {"params": …}, RegNet also "batch_stats"
        logits = model.apply(variables, images)
        logits = model.apply(variables, images, train=True, rngs={"dropout": key})         # drop path and dropout act
        cls, dist = model.apply(variables, images, method="heads")
        logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"])  # RegNet's statistics

    Args are `create_model`'s. Names of rngs: "params" at init, "dropout" in training. Weights carry over, whole:

        variables = linen_variables(deit_jax.load_model(source))

    or in part, by top-level names, the missing rest being drawn:

        partial = {"params": {"blocks": variables["params"]["blocks"]}}
        logits, variables = model.apply(partial, images, rngs={"params": key}, mutable=["params", "batch_stats"])
    """
    overrides |= {"num_classes": num_classes, "img_size": img_size}
    models.constructor(name, **overrides)  # an unknown name raises here, not at init
    return LinenModel(name, {k: v for k, v in overrides.items() if v is not None})


def linen_variables(model: nnx.Module) -> dict:
    """The Linen variables of an NNX model: {"params": …} and, where it has statistics, {"batch_stats": …}."""
    _, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    variables = {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(batch_stats)}
    return {collection: tree for collection, tree in variables.items() if tree}
