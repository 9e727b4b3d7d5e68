"""DeiT-S, 22 M parameters, 224 px, ImageNet-1k, 300 epochs. Top-1 in the paper: 79.8 %; with `distill=hard` 81.2 %.

    python main.py --config=configs/deit_s.py --workdir=runs/deit_s
    python main.py --config=configs/deit_s.py:distill=hard --workdir=runs/deit_s_distilled

The teacher of the second, RegNetY-16GF with its published weights (82.9 %), runs in the same jit. On your own images:
`--config.data.root=FOLDER`. Arguments: distill=none|soft|hard, teacher=WEIGHTS, epochs=N.
"""

from deit_jax.config import deit


def get_config(text: str = ""):
    return deit("small", text)
