"""DeiT-B fine-tuned from 224 to 384 px, ImageNet-1k, 30 epochs. Reported top-1: 82.9 %; with `distill=hard` 85.2 %.

    python main.py --config=configs/deit_b_384.py --workdir=runs/deit_b_384
    python main.py --config=configs/deit_b_384.py:distill=hard,init=runs/deit_b_distilled --workdir=runs/deit_b_384d

It starts from the published weights, or from `init=` a workdir, file or hub name; the position embedding is resized.
85.2 % follows 1000 epochs at 224 px, 84.5 % the usual 300. An image costs 3.2 times the arithmetic of one at 224 px.
The teacher is kept and sees the images at 224 px, as it was trained; `--config.teacher.img_size=384` for one that was
adapted to 384, as the paper's was. Arguments: distill=none|soft|hard, teacher=WEIGHTS, init=WEIGHTS, epochs=N.
"""

from deit_jax.config import arguments, deit, finetune_config


def get_config(text: str = ""):
    given = arguments(text, ("distill", "teacher", "init", "epochs"))
    published = "facebook/deit-base-patch16-224"
    if given.get("distill", "none") != "none":
        published = "facebook/deit-base-distilled-patch16-224"
    c = deit("base", ",".join(f"{k}={v}" for k, v in given.items() if k != "init"))
    c.finetune.epochs = c.epochs if "epochs" in given else 30
    return finetune_config(c, given.get("init", published))
