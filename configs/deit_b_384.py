"""DeiT-B fine-tuned from 224 to 384 px, ImageNet-1k, 30 epochs. Reported top-1: 82.9 %; with `distill=hard` 85.2 %.

    python main.py --config=configs/deit_b_384.py --workdir=runs/deit_b_384
    python main.py --config=configs/deit_b_384.py:distill=hard,init=runs/deit_b_distilled --workdir=runs/deit_b_384d

It starts from the published weights, or from `init=` a workdir, file or hub name; the position embedding is resized.
The second fine-tunes what `configs/deit_b.py:distill=hard` has trained: 85.2 % after 1000 epochs at 224 px, 84.5 %
after the usual 300. The teacher is kept and sees the images at 224 px, as it was trained; for one that was adapted to
384, as the paper's was, `--config.teacher.img_size=384`. An image costs 3.2 times the arithmetic of one at 224 px.
Arguments: distill=none|soft|hard, teacher=WEIGHTS, init=WEIGHTS, epochs=N.
"""

from deit_jax.config import arguments, deit
from deit_jax.config.files import epochs_of


def get_config(text: str = ""):
    given = arguments(text, ("distill", "teacher", "init", "epochs"))
    c = deit("base", ",".join(f"{k}={v}" for k, v in given.items() if k != "init"))
    c.init = given.get("init", "facebook/" + c.model.name.replace("_", "-"))
    c.model.name = c.model.name.replace("_224", "_384")
    c.teacher.img_size = 224
    # section 6, after Touvron et al. 2019; all augmentation is kept
    c.batch_size, c.epochs = 512, epochs_of(given, 30)
    c.optimizer.lr, c.optimizer.schedule, c.optimizer.weight_decay = 5e-6, "constant", 1e-8
    c.optimizer.warmup_epochs = 5.0
    return c
