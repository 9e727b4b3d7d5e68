"""The recipes: what to do where the paper's text, its released code and later work differ."""

from typing import Any

from deit_jax.config.settings import Config, flat
from deit_jax.errors import UserError, nearest
from deit_jax.losses import OBJECTIVES
from deit_jax.runtime import storage

# Where the paper's text and its released code differ, one named setting each (shared by every config); `tuned` is
# what later work reports as better for Ti and S (Touvron et al. 2022 and timm's notes); not verified here.
# What an objective sets otherwise stands in its entry (`deit_jax.losses.OBJECTIVES`).
NAMES = ("released", "paper", "tuned")
TABLE: dict[str, tuple] = {  # values in the order of NAMES
    "model.drop_path_rate": (0.1, 0.1, 0.0),
    "distill.alpha": (0.5, 0.5, 0.5),
    "distill.tau": (1.0, 1.0, 1.0),
    "distill.normalization": ("released", "paper", "paper"),
    "optimizer.warmup_epochs": (5.0, 5.0, 20.0),
    "optimizer.scale_floors": (False, True, True),
    "optimizer.lr_update": ("epoch", "step", "step"),
    "optimizer.decay_dist_token": (True, False, False),
    "optimizer.clip_norm": (0.0, 0.0, 5.0),
    "augment.repeats": (3, 3, 1),
    "evaluate.fusion": ("logits", "probabilities", "logits"),
}
RECIPES: dict[str, dict[str, Any]] = {
    recipe: {path: values[i] for path, values in TABLE.items()} for i, recipe in enumerate(NAMES)
}


def value_of(recipe: str, path: str, kind: str) -> Any:
    """The value of the setting `path` by `recipe`, in a run whose `distill.kind` is `kind`."""
    of_objective = OBJECTIVES[kind].settings if kind in OBJECTIVES else {}  # an unknown kind is refused by `validate`
    return of_objective.get(recipe, {}).get(path, RECIPES[recipe][path])


def resolve(config: Config) -> Config:
    """A copy in which every setting left to the recipe has the recipe's value, and every `file://` address is the path
    that it means. Raises UserError for unknown recipes, and for other addresses than `gs://`."""
    if config.recipe not in RECIPES:
        hint = nearest(config.recipe, NAMES)
        raise UserError(f"recipe is '{config.recipe}'{hint}: use one of {', '.join(NAMES)}")
    config = config.copy_and_resolve_references()
    for path in TABLE:
        group, name = path.split(".")
        if config[group][name] is None:
            config[group][name] = value_of(config.recipe, path, config.distill.kind)
    for path, value in flat(config).items():
        if isinstance(value, str) and "://" in value:
            parts = [storage.local_text(path, part) for part in value.split(",")]
            config.update_from_flattened_dict({path: ",".join(parts)})
    return config


def recipe_differences(config: Config) -> list[str]:
    """Lines on each choice of a resolved config where paper and released code differ, or where it differs from both.

    Settings without effect in this run (a second head's, soft distillation's) are left out.
    """
    values, lines, objective = flat(config), [], OBJECTIVES[config.distill.kind]
    idle = set() if "_distilled" in config.model.name else {"optimizer.decay_dist_token", "evaluate.fusion"}
    idle |= set() if objective.teacher == "logits" else {"distill.tau", "distill.normalization"}
    idle |= set() if objective.term else {"distill.alpha"}
    for path in TABLE:
        released, paper = (value_of(recipe, path, config.distill.kind) for recipe in ("released", "paper"))
        ours = values[path]
        if path not in idle and not ours == paper == released:
            lines.append(f"{path} = {ours} (paper: {paper}, release: {released})")
    return lines
