"""DeiT III (Touvron et al. 2022, arXiv 2204.07118): ViTs of sizes S, B, L and H, on ImageNet-1k or 21k, fine-tuned.

    python main.py --config=configs/deit3.py:size=S --workdir=runs/deit3_s
    python main.py --config=configs/deit3.py:size=B --workdir=runs/deit3_b
    python main.py --config=configs/deit3.py:size=B,stage=1k_224,init=runs/deit3_b --workdir=runs/deit3_b_224
    python main.py --config=configs/deit3.py:size=B,stage=21k --config.data.root=/data/imagenet21k --workdir=runs/b_21k
    python main.py --config=configs/deit3.py:size=B,stage=21k_1k,init=runs/b_21k --workdir=runs/b_21k_1k

Every number is of the authors' commands in README_revenge.md of facebookresearch/deit, which reports top-1 of 81.4 (S),
83.8 (B), 84.9 (L) and 85.2 % (H) at 224 px, of 83.4 (S), 85.0 (B) and 85.8 % (L) at 384 px, and by way of ImageNet-21k
of 83.1 (S), 85.7 (B), 87.0 (L) and 87.2 % (H) at 224 px. Nobody has run them here. For size M and for 384 px after 21k
no command is published. The stages:
  1k      from random weights, 800 epochs; B, L and H at a smaller size, for 1k_224 or 1k_384 to follow
  1k_224  fine-tuning of that for 20 epochs
  1k_384  the same at 384 px
  21k     from random weights on the folder of ImageNet-21k
  21k_1k  fine-tuning of that on ImageNet-1k for 50 epochs
Arguments: size=S|B|L|H, stage=, init=WEIGHTS (those that are fine-tuned), epochs=N.
"""

from deit_jax.config import arguments, default_config
from deit_jax.config.files import epochs_of
from deit_jax.errors import UserError

MODELS = {"S": "small_patch16", "B": "base_patch16", "L": "large_patch16", "H": "huge_patch14"}
DROP_PATH = {  # `--drop-path`, of every block alike
    "1k": {"S": 0.05, "B": 0.2, "L": 0.45, "H": 0.6},
    "1k_224": {"B": 0.2, "L": 0.45, "H": 0.55},
    "1k_384": {"S": 0.0, "B": 0.15, "L": 0.4},
    "21k": {"S": 0.05, "B": 0.1, "L": 0.3, "H": 0.5},
    "21k_1k": {"S": 0.05, "B": 0.15, "L": 0.4, "H": 0.45},
}
# `--input-size` where it is not 224 or 384. H has 160 and 128 there: its patches of 14 px see 154 and 126 of them
PIXELS = {("1k", "B"): 192, ("1k", "L"): 192, ("1k", "H"): 154, ("21k", "H"): 126}


def get_config(text: str = ""):
    given = arguments(text, ("size", "stage", "init", "epochs"))
    size, stage = given.get("size", "S"), given.get("stage", "1k")
    if size not in DROP_PATH.get(stage, {}):
        known = "; ".join(f"stage={stage} for size={', '.join(sizes)}" for stage, sizes in DROP_PATH.items())
        raise UserError(f"no settings are published for size={size}, stage={stage}: use {known}")
    if "_" in stage and "init" not in given:
        raise UserError(f"stage={stage} fine-tunes weights: give init= the workdir of stage={stage.split('_')[0]}")
    c = default_config()
    c.epochs = 800  # `--epochs 800`
    c.model.name = f"deit3_{MODELS[size]}_{384 if stage == '1k_384' else 224}"
    c.model.img_size, c.model.drop_path_rate = PIXELS.get((stage, size), 0), DROP_PATH[stage][size]
    c.init, c.data.resize = given.get("init", ""), "fast"
    o, a = c.optimizer, c.augment
    if stage == "1k":
        c.recipe = "deit3"  # the rest is in deit_jax/config/recipes.py
        if size != "S":
            o.lr = 3e-3  # `--lr 3e-3`
    else:
        o.lr_batch, a.repeats, a.erasing = 0, 1, 0.0  # `--unscale-lr --no-repeated-aug --reprob 0.0`
        c.data.crop = 1.0  # `--eval-crop-ratio 1.0`
    if stage.startswith("1k_"):
        c.epochs, c.batch_size = 20, 512  # `--epochs 20`; `--batch` times GPUs
        o.lr, o.weight_decay = 1e-5, 0.1  # `--opt adamw --lr 1e-5 --weight-decay 0.1`
        o.schedule = "constant"  # `--sched cosine`, down to the default floor of 1e-5
    elif stage.startswith("21k"):
        c.epochs, c.batch_size = (90 if size == "H" else 240), 2048  # `--epochs`; `--batch` times GPUs
        o.lr = 1e-3  # `--lr 0.001`
        if stage == "21k_1k":
            c.epochs, o.lr = 50, 3e-4  # `--epochs 50 --lr 0.0003`
        o.name, o.clip_norm, o.weight_decay = "lamb", 1.0, 0.02  # `--opt fusedlamb --weight-decay 0.02`
        a.policy, a.crop, a.mixup = "three", "simple", 0.0  # `--ThreeAugment --src --mixup 0`
    c.epochs, c.recipe_keeps = epochs_of(given, c.epochs), "epochs"  # also where they are the default's 300
    return c
