"""DeiT-B, 87 M parameters, 224 px, ImageNet-1k, 300 epochs. Reported top-1: 81.8 %; with `distill=hard` 83.4 %.

    python main.py --config=configs/deit_b.py --workdir=runs/deit_b
    python main.py --config=configs/deit_b.py:distill=hard --workdir=runs/deit_b_distilled

The teacher of the second, RegNetY-16GF with its published weights (82.9 %), runs in the same jit. On your own images:
`--config.data.root=FOLDER`. Arguments: distill=none|soft|hard, teacher=WEIGHTS, epochs=N.
"""

from deit_jax.config import deit


def get_config(text: str = ""):
    return deit("base", text)
