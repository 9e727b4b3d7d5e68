"""Fine-tuning at another resolution, as settings: 224 → 384 in the paper (section 6, after Touvron et al. 2019).

Batch 512, AdamW at a constant 5e-6 after warm-up, decay 1e-8, 30 epochs, all augmentation kept, and the teacher kept.
"""

import re
from pathlib import Path

from deit_jax import models
from deit_jax.config import Config, default_config
from deit_jax.config.derived import has_teacher
from deit_jax.errors import UserError


def named_size(name: str) -> int:
    """The image size in pixels that a model of this name is made for."""
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
    """(config of the training, config of the fine-tuning after it) of a resolved config with `finetune.epochs`.

    The first is that of the same run without fine-tuning, so that a finished run can be fine-tuned later. Raises
    UserError where the second would have no teacher.
    """
    first = config.copy_and_resolve_references()
    first.finetune.update(default_config().finetune)
    then = finetune_config(config, str(workdir))
    taught = has_teacher(config)
    if taught and config.teacher.epochs and not config.distill.labels:
        then.teacher.init, then.teacher.epochs = str(workdir / "teacher"), 0
    elif taught and not (config.teacher.init or config.finetune.labels):
        raise UserError(
            "fine-tuning needs its teacher live, or labels of its own images: give --config.teacher.init= or"
            " --config.finetune.labels="
        )
    return first, then
