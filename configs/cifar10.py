"""The paper's Tables 2 and 3 on CIFAR-10: a small RegNetY teaches a small DeiT.

    python main.py --config=configs/cifar10.py:scale=cpu --mode=ablate --workdir=runs/cifar10

CIFAR-10 comes from TFDS, or from an image folder by `--config.data.root=`. `scale=gpu` (default) is the full study:
100 epochs, five seeds; nobody has run it yet. `scale=cpu` is a small one for two cores: smaller models, 1,000 steps a
run, three seeds. Start the command twice, each on its own core (`taskset -c 0`, `taskset -c 1`), and the two share out
the runs: about two hours, which gave results/cifar10. `--config.steps=` makes it longer and the students better.
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
    c.optimizer.lr_update = "step"
    c.augment.mean, c.augment.std, c.teacher.mean, c.teacher.std = MEAN, STD, MEAN, STD
    c.augment.repeats = 3
    c.ablate.store_labels = True
    arms = ("none", "second_cls", "soft_no_token", "hard_no_token", "hard", "hard_live")
    if scale == "gpu":
        c.model.name = "deit_cifar_distilled_patch4_32"
        c.batch_size, c.epochs, c.ablate.seeds = 512, 100, (0, 1, 2, 3, 4)
        c.optimizer.lr, c.optimizer.ema_decay, c.optimizer.warmup_epochs = 1e-3, 0.999, 5.0
        c.augment.crop_scale = (0.25, 1.0)  # 8 % of 32 x 32 pixels is 9 x 9
        c.teacher.name, c.teacher.epochs, c.teacher.lr = "regnety_cifar", 60, 4e-3
        others = ("hard@deit_cifar_patch4_32:100", "hard@regnety_cifar_small:20")
    else:
        c.model.name = "deit_nano_distilled_patch4_32"
        c.batch_size, c.steps, c.ablate.seeds = 128, 1000, (0, 1, 2)
        c.optimizer.lr, c.optimizer.ema_decay, c.optimizer.warmup_epochs = 4e-3, 0.99, 0.5
        c.augment.crop_scale, c.augment.mix_prob = (0.5, 1.0), 0.5  # all mixed, 1,000 steps teach too little
        c.teacher.name, c.teacher.epochs, c.teacher.lr = "regnety_cifar_small", 8, 8e-3
        c.teacher.augment = "light"
        c.evaluate.every = 4
        others = ("hard@deit_nano_patch4_32:5", "hard@regnety_cifar_small:1")
    c.ablate.arms = arms + others
    return c
