"""The teacher, RegNetY-16GF, 84 M parameters, 224 px, ImageNet-1k. Reported top-1: 82.9 %.

    python main.py --config=configs/regnety_160.py --workdir=runs/regnety_160
    python main.py --config=configs/deit_b.py:distill=hard,teacher=runs/regnety_160 --workdir=runs/deit_b_distilled

The paper says that the teacher was trained "with the same data and same data-augmentation as DeiT" (section 5.2);
its optimizer, learning rate and epochs were never published. Here it is trained as DeiT is, all settings alike (but
RegNets have no drop path). Its published weights are timm/regnety_160.deit_in1k.
Arguments: epochs=N, model=regnety_080 (or another of the family).
"""

from deit_jax.config import arguments, deit


def get_config(text: str = ""):
    given = arguments(text, ("epochs", "model"))
    c = deit("base", ",".join(f"{k}={v}" for k, v in given.items() if k == "epochs"))
    c.model.name = given.get("model", "regnety_160")
    return c
