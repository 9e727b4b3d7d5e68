"""Distil a small DeiT from a small RegNetY on scikit-learn's 1,797 scanned digits, no download.

    python main.py --config=configs/digits.py --workdir=runs/digits

Trains teacher, plain student and distilled student on two cores (measured on a slow machine: 112 and 118 s, with its
programs compiled before 79 s), and reaches, mean of three seeds: teacher 98.2 %, plain 95.9 %, distilled 97.1 %.
`--mode=ablate` compares none, soft and hard distillation over several seeds.
"""

from deit_jax.config import arguments, default_config


def get_config(text: str = ""):
    given = arguments(text, ("distill",))
    c = default_config()
    c.data.name = "digits"  # 8 x 8 pixels, a fifth held out
    c.data.threads = 1  # cropping so small images, threads wait for each other
    c.batch_size, c.epochs, c.train_baseline = 64, 20, True
    c.model.name = "deit_mini_distilled_patch4_16"
    c.distill.kind = given.get("distill", "hard")
    if c.distill.kind == "none":
        c.model.name, c.train_baseline = "deit_mini_patch4_16", False
    if c.distill.kind == "soft":
        c.distill.alpha, c.distill.tau, c.distill.normalization = 0.1, 3.0, "paper"
    c.teacher.name, c.teacher.epochs, c.teacher.lr = "regnety_mini", 9, 0.04  # a peak of 5e-3

    # 440 steps: a rate of 2.25e-3 at the peak (0.018 x 64 / 512); beta2 and the EMA average over fewer than usual
    c.optimizer.lr, c.optimizer.lr_update, c.optimizer.warmup_epochs = 0.018, "step", 1.0
    c.optimizer.beta2, c.optimizer.ema_decay, c.model.drop_path_rate = 0.98, 0.96, 0.0
    # digits have no mirror images, and a crop of a corner is not a digit
    c.augment.flip, c.augment.policy, c.augment.erasing = 0.0, "none", 0.0
    c.augment.crop_scale, c.augment.crop_ratio = (0.45, 1.0), (0.8, 1.25)
    c.augment.mixup, c.augment.cutmix, c.augment.repeats = 0.2, 0.0, 1
    c.data.crop = 1.0
    c.evaluate.every, c.checkpoint.every, c.log.every = 5, 10, 20
    return c
