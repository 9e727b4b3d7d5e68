"""The paper's ablation on CIFAR-10: a small RegNetY teaches a small DeiT, by none, soft and hard distillation.

    python main.py --config=configs/cifar10.py:scale=cpu --mode=ablate --workdir=runs/cifar10

CIFAR-10 comes from TFDS, or from an image folder by `--config.data.root=`. `scale=gpu` (default) is the full study:
all images, 100 epochs, five seeds; `scale=cpu` a small one for two cores: fewer epochs and seeds, smaller models.
"""

from deit_jax.config import arguments, default_config
from deit_jax.errors import UserError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def get_config(text: str = ""):
    scale = arguments(text, ("scale",)).get("scale", "gpu")
    if scale not in ("cpu", "gpu"):
        raise UserError(f"config argument scale={scale} is not known: use scale=cpu or scale=gpu")
    c = default_config()
    c.data.name, c.data.crop = "cifar10", 1.0
    c.distill.kind = "hard"
    c.optimizer.per, c.optimizer.warmup_epochs = "step", 5.0
    c.augment.mean, c.augment.std, c.teacher.mean, c.teacher.std = MEAN, STD, MEAN, STD
    c.augment.crop_scale = (0.25, 1.0)  # 8 % of 32 x 32 pixels is 9 x 9
    c.augment.repeats = 3
    c.ablate.arms = ("none", "soft", "hard_no_token", "hard", "second_cls")
    if scale == "gpu":
        c.model.name = "deit_cifar_distilled_patch4_32"
        c.batch_size, c.epochs, c.ablate.seeds = 512, 100, (0, 1, 2, 3, 4)
        c.optimizer.lr, c.optimizer.ema_decay = 1e-3, 0.999
        c.teacher.name, c.teacher.epochs, c.teacher.lr = "regnety_cifar", 60, 4e-3
    else:
        c.model.name = "deit_nano_distilled_patch4_32"
        c.batch_size, c.epochs, c.ablate.seeds = 128, 10, (0, 1, 2)
        c.optimizer.lr, c.optimizer.ema_decay, c.optimizer.warmup_epochs = 4e-3, 0.99, 2.0
        c.teacher.name, c.teacher.epochs, c.teacher.lr = "regnety_cifar_small", 12, 8e-3
        c.evaluate.every = c.checkpoint.every = 5
    return c
