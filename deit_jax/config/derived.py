"""Configs that follow from a run's config: its teacher's training, and the same student without a teacher."""

from deit_jax import models
from deit_jax.config.recipes import resolve
from deit_jax.config.settings import Config, default_config


def teacher_config(config: Config) -> Config:
    """The config of training `teacher.name` on the student's data, by the `teacher.*` settings."""
    c, t = config.copy_and_resolve_references(), config.teacher
    c.model.name, c.epochs, c.steps, c.init, c.train_baseline = t.name, t.epochs, 0, "", False
    c.model.img_size = t.img_size or c.model.img_size or models.find(config.model.name)[1].get("img_size", 224)
    c.model.drop_path_rate, c.model.dtype = t.drop_path_rate, t.dtype
    c.optimizer.lr = t.lr or c.optimizer.lr
    c.augment.mean, c.augment.std = t.mean or c.augment.mean, t.std or c.augment.std
    if t.augment == "light":
        a = c.augment
        a.policy, a.erasing, a.mixup, a.cutmix, a.repeats = "none", 0.0, 0.0, 0.0, 1
    c.distill.update(default_config().distill)
    c.teacher.update(default_config().teacher)
    return resolve(c)


def plain_config(config: Config) -> Config:
    """The config of the same student without distillation token and teacher."""
    c = config.copy_and_resolve_references()
    c.model.name, c.distill.kind, c.distill.labels, c.train_baseline = plain_name(c.model.name), "none", "", False
    c.teacher.update(default_config().teacher)
    return c


def plain_name(name: str) -> str:
    return name.replace("_distilled", "")


def has_teacher(config: Config) -> bool:
    """Whether the objective has a teacher, live or as stored labels."""
    return config.distill.kind in ("soft", "hard")


def trains_teacher(config: Config) -> bool:
    """Whether the teacher is trained here, on the same data, before the student."""
    return bool(config.teacher.epochs and has_teacher(config) and not config.distill.labels)
