"""Distil a small DeiT from a small RegNetY on scikit-learn's 1,797 scanned digits, no download.

    python main.py --config=configs/digits.py --workdir=runs/digits

Trains teacher, plain student and distilled student in three to five minutes on two cores (measured: 175, 212, 283 s).
`--mode=ablate` compares none, soft and hard distillation over several seeds.
"""

from deit_jax.config import arguments, default_config


def get_config(text: str = ""):
    given = arguments(text, ("distill",))
    c = default_config()
    c.data.name = "digits"
    c.batch_size, c.epochs, c.train_baseline = 128, 40, True
    c.model.name = "deit_digits_distilled_patch4_16"
    c.distill.kind = given.get("distill", "hard")
    if c.distill.kind == "none":
        c.model.name, c.train_baseline = "deit_digits_patch4_16", False
    if c.distill.kind == "soft":
        c.distill.alpha, c.distill.tau, c.distill.normalization = 0.1, 3.0, "paper"
    c.teacher.name, c.teacher.epochs, c.teacher.lr = "regnety_digits", 16, 0.03

    c.optimizer.lr, c.optimizer.lr_update, c.optimizer.warmup_epochs = 8e-3, "step", 3.0
    c.optimizer.ema_decay = 0.96
    # digits have no mirror images, and a crop of a corner is not a digit
    c.augment.flip, c.augment.policy, c.augment.erasing = 0.0, "none", 0.0  # ImageNet's mean and std normalize them
    c.augment.crop_scale, c.augment.crop_ratio = (0.6, 1.0), (0.8, 1.25)
    c.augment.mixup, c.augment.cutmix, c.augment.repeats = 0.2, 0.0, 1
    c.data.crop = 1.0
    c.evaluate.every, c.checkpoint.every, c.log.every = 5, 5, 20
    return c
