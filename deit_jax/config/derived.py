"""Configs that follow from a run's config: its teacher's training, the same student without a teacher, fine-tuning.

Fine-tuning is at another resolution, 224 → 384 in the paper (section 6, after Touvron et al. 2019): batch 512, AdamW at
a constant 5e-6 after warm-up, decay 1e-8, 30 epochs, all augmentation kept, and the teacher kept.
"""

import re
from pathlib import Path

from deit_jax import models
from deit_jax.config.recipes import resolve
from deit_jax.config.settings import Config, default_config
from deit_jax.errors import UserError
from deit_jax.losses import OBJECTIVES


def teacher_config(config: Config) -> Config:
    """The config of training `teacher.name` on the student's data, by the `teacher.*` settings."""
    c, t = config.copy_and_resolve_references(), config.teacher
    c.model.name, c.epochs, c.steps, c.init, c.train_baseline = t.name, t.epochs, 0, "", False
    c.model.img_size = t.img_size or c.model.img_size or named_size(config.model.name)
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
    c.model.name, c.distill.kind, c.distill.labels, c.train_baseline = without_token(c.model.name), "none", "", False
    c.teacher.update(default_config().teacher)
    return c


def without_token(name: str) -> str:
    """The name of the same model without a distillation token."""
    return name.replace("_distilled", "")


def has_teacher(config: Config) -> bool:
    """Whether the objective has a teacher, live or as stored labels."""
    return OBJECTIVES[config.distill.kind].teacher is not None


def trains_teacher(config: Config) -> bool:
    """Whether the teacher is trained here, on the same data, before the student."""
    return bool(config.teacher.epochs and has_teacher(config) and not config.distill.labels)


def named_size(name: str) -> int:
    """The image size in pixels of a registered model."""
    return models.find(name)[1].get("img_size", 224)


def at_size(name: str, size: int) -> str:
    """The published name of a model at another size (`…_224` → `…_384`); other names stay."""
    return re.sub(r"(_patch16)_(224|384)$", rf"\1_{size}", name) if size in (224, 384) else name


def finetune_config(config: Config, init: str) -> Config:
    """The config of the fine-tuning that `config.finetune` describes, of a run of `config` whose weights are `init`.

    The teacher keeps its image size: at 384 px its images are resized on the device.
    """
    f, c = config.finetune, config.copy_and_resolve_references()
    c.init, c.batch_size, c.epochs, c.steps, c.train_baseline = init, f.batch_size, f.epochs, 0, False
    c.model.name, c.model.img_size = at_size(config.model.name, f.img_size), f.img_size
    c.teacher.img_size = config.teacher.img_size or config.model.img_size or named_size(config.model.name)
    c.distill.labels = f.labels
    o = c.optimizer
    o.lr, o.lr_batch, o.schedule = f.lr, 512, "constant"
    o.weight_decay, o.warmup_epochs = f.weight_decay, f.warmup_epochs
    c.finetune.update(default_config().finetune)
    return c


def stages(config: Config, workdir: Path) -> tuple[Config, Config]:
    """(config of the pretraining, config of the fine-tuning) of a resolved config with `finetune.epochs`.

    The first is that of the same run without fine-tuning, so that a finished run can be fine-tuned later. Raises
    UserError where the second would have no teacher.
    """
    pretraining = config.copy_and_resolve_references()
    pretraining.finetune.update(default_config().finetune)
    fine_tuning = finetune_config(config, str(workdir))
    if trains_teacher(config):
        fine_tuning.teacher.init, fine_tuning.teacher.epochs = str(workdir / "teacher"), 0
    elif has_teacher(config) and not (config.teacher.init or config.finetune.labels):
        raise UserError(
            "fine-tuning needs its teacher live, or labels of its own images: give --config.teacher.init= or"
            " --config.finetune.labels="
        )
    return pretraining, fine_tuning
