"""Distilled DeiT-B, whole: 300 epochs at 224 px, 30 more at 384 px, evaluation after each. Reported top-1: 83.4 %, then
84.5 %; with `epochs=1000` 84.2 %, then 85.2 %.

    python main.py --config=configs/deit_b_chain.py:epochs=1000 --workdir=runs/deit_b_chain

The same command resumes where it was stopped, in either stage. The teacher, RegNetY-16GF with its published weights
(82.9 %), is kept in both. A workdir of configs/deit_b.py:distill=hard with the same epochs is fine-tuned as it is.
Any config does this with `--config.finetune.epochs=N`. Arguments: distill=soft|hard, teacher=WEIGHTS, epochs=N.
"""

from deit_jax.config import arguments, deit


def get_config(text: str = ""):
    given = {"distill": "hard"} | arguments(text, ("distill", "teacher", "epochs"))
    c = deit("base", ",".join(f"{k}={v}" for k, v in given.items()))
    c.finetune.epochs = 30
    return c
