"""The recipes: what to do where the paper's text, its released code and later work differ. A config completed by them,
and the configs of a teacher's training and of the student without one, which follow from it."""

from collections.abc import Collection
from typing import Any

from deit_jax.config.settings import SETTINGS, Config, default_config, flat
from deit_jax.errors import UserError, nearest
from deit_jax.losses import OBJECTIVES, add_objective
from deit_jax.own import is_own

# Where the paper's text and its released code differ, one named setting each (shared by every config); `tuned` is
# what later work reports as better for Ti and S (Touvron et al. 2022 and timm's notes); not verified here.
# What an objective sets otherwise stands in its entry (`deit_jax.losses.OBJECTIVES`).
NAMES = ("released", "paper", "tuned", "function_matching", "deit3")
TABLE: dict[str, tuple] = {  # values in the order of NAMES; the last two replace defaults, too: MATCHING and DEIT3
    "model.drop_path_rate": (0.1, 0.1, 0.0, 0.0, 0.05),
    "distill.alpha": (0.5, 0.5, 0.5, 0.5, 0.5),
    "distill.tau": (1.0, 1.0, 1.0, 1.0, 1.0),
    "distill.normalization": ("released", "paper", "paper", "paper", "released"),
    "optimizer.warmup_epochs": (5.0, 5.0, 20.0, 16.0, 5.0),
    "optimizer.scale_floors": (False, True, True, True, False),
    "optimizer.lr_update": ("epoch", "step", "step", "step", "epoch"),
    "optimizer.decay_dist_token": (True, False, False, False, True),
    "optimizer.clip_norm": (0.0, 0.0, 5.0, 1.0, 1.0),
    "augment.repeats": (3, 3, 1, 1, 3),
    "evaluate.fusion": ("logits", "probabilities", "logits", "logits", "logits"),
}
# Function matching (Beyer et al. 2022, arXiv 2106.05237): student and teacher see the same mixed view, and the
# divergence alone is learned. From big_vision's configs/proj/distill/bit_i1k.py: temperature 1 (`distance_kw`), 5,000
# steps of 4,096 images of warm-up (16 epochs of ImageNet), clipping at norm 1 (`grad_clip_norm`), no drop path, and
# what follows. Its Adam learning rate, 0.03, is a normalized ResNet's: a ViT keeps `optimizer.lr`.
MATCHING: dict[str, Any] = {
    "epochs": 1200,  # `num_epochs`, "a good middle-ground"
    "optimizer.weight_decay": 0.01,  # `wd` 0.0003, which is not multiplied by `lr` 0.03 there
    "optimizer.warmup_lr": 0.0,  # linear from 0
    "optimizer.min_lr": 0.0,  # cosine to 0
    "optimizer.ema_decay": 0.0,  # none
    "augment.crop_scale": (0.05, 1.0),  # `inception_crop`: 5 % of the image at least
    "augment.policy": "none",  # crop and flip alone (`pp_train`)
    "augment.erasing": 0.0,
    "augment.mixup": 1.0,  # `mixup` p=1: Beta(1, 1), the uniform distribution
    "augment.cutmix": 0.0,
    "augment.label_smoothing": 0.0,
}
# DeiT III (Touvron et al. 2022, arXiv 2204.07118) on ImageNet-1k: the command for ViT-S in README_revenge.md of
# facebookresearch/deit, whose flags are named here; configs/deit3.py has the other sizes and stages. A linear warm-up
# of 5 epochs from 1e-6, mixup 0.8, cutmix 1, jitter 0.3 and decay 0.05 are the defaults. apex's FusedLAMB clips the
# gradient at norm 1 by itself (`max_grad_norm`).
DEIT3: dict[str, Any] = {
    "epochs": 800,  # `--epochs 800`
    "batch_size": 2048,  # `--batch 256 --ngpus 8`
    "class_loss": "sigmoid",  # `--bce-loss`
    "optimizer.name": "lamb",  # `--opt fusedlamb`
    "optimizer.lr": 4e-3,  # `--lr 4e-3`
    "optimizer.lr_batch": 0,  # `--unscale-lr`
    "augment.policy": "three",  # `--ThreeAugment`
    "augment.erasing": 0.0,  # `--reprob 0.0`
    "augment.label_smoothing": 0.0,  # `--smoothing 0.0`
    "data.crop": 1.0,  # `--eval-crop-ratio 1.0`
}
REPLACED = {"function_matching": MATCHING, "deit3": DEIT3}  # what these recipes put in place of defaults
RECIPES: dict[str, dict[str, Any]] = {
    recipe: {path: values[i] for path, values in TABLE.items()} for i, recipe in enumerate(NAMES)
}


def value_of(recipe: str, path: str, kind: str) -> Any:
    """The value of the setting `path` by `recipe`, in a run whose `distill.kind` is `kind`."""
    of_objective = OBJECTIVES[kind].settings if kind in OBJECTIVES else {}  # an unknown kind is refused by `validate`
    return of_objective.get(recipe, {}).get(path, RECIPES[recipe][path])


def resolve(config: Config, given: Collection[str] = ()) -> Config:
    """A copy in which every setting left to the recipe has the recipe's value; an objective of the user's own is in the
    table then. Raises UserError for unknown recipes.

    given: settings of the command line. `REPLACED` changes neither these nor those of `recipe_keeps`, even where they
    equal the default. A resolved config, which leaves nothing to the recipe, keeps all of its values.
    """
    if config.recipe not in RECIPES:
        hint = nearest(config.recipe, NAMES)
        raise UserError(f"recipe is '{config.recipe}'{hint}: use one of {', '.join(NAMES)}")
    if is_own(config.distill.kind) and config.distill.kind not in OBJECTIVES:
        add_objective(config.distill.kind)
    config = config.copy_and_resolve_references()
    values, defaults = flat(config), flat(SETTINGS)
    if left := [path for path in TABLE if values[path] is None]:
        for path in left:
            group, name = path.split(".")
            config[group][name] = value_of(config.recipe, path, config.distill.kind)
        kept = {*given, *config.recipe_keeps.split(","), *(["epochs"] if config.steps else [])}
        replaced = REPLACED.get(config.recipe, {}).items()
        free = {path: value for path, value in replaced if path not in kept and values[path] == defaults[path].default}
        if free:
            config.update_from_flattened_dict(free)
    return config


def has_teacher(config: Config) -> bool:
    """Whether the objective has a teacher, live or as stored labels."""
    return OBJECTIVES[config.distill.kind].teacher is not None


def trains_teacher(config: Config) -> bool:
    """Whether the teacher is trained here, on the same data, before the student."""
    return bool(config.teacher.epochs and has_teacher(config) and not config.distill.labels)


def teacher_config(config: Config) -> Config:
    """The config of training `teacher.name` on the student's data, by the `teacher.*` settings."""
    c, t = config.copy_and_resolve_references(), config.teacher
    c.model.name, c.epochs, c.steps, c.init, c.train_baseline = t.name, t.epochs, 0, t.init, False
    c.model.img_size = t.img_size or c.model.img_size or named_size(config.model.name)
    c.model.drop_path_rate, c.model.dtype = t.drop_path_rate, t.dtype
    c.optimizer.lr = t.lr or c.optimizer.lr
    c.augment.mean, c.augment.std = t.mean or c.augment.mean, t.std or c.augment.std
    if t.augment == "light":
        a = c.augment
        a.policy, a.erasing, a.mixup, a.cutmix, a.repeats = "none", 0.0, 0.0, 0.0, 1
    c.distill.update(default_config().distill)  # kind "none"
    c.teacher.update(default_config().teacher)
    return resolve(c, given=flat(SETTINGS))  # all settings count as given: the student's config is resolved already


def plain_config(config: Config) -> Config:
    """The config of the same student without distillation token and teacher."""
    c = config.copy_and_resolve_references()
    c.model.name, c.distill.kind, c.distill.labels, c.train_baseline = without_token(c.model.name), "none", "", False
    c.teacher.update(default_config().teacher)
    return c


def without_token(name: str) -> str:
    """The name of the same model without a distillation token."""
    return name.replace("_distilled", "")


def named_size(name: str) -> int:
    """The image size in pixels of a registered model."""
    from deit_jax import models  # here: flags are checked without the models

    return models.find(name)[1].get("img_size", 224)
