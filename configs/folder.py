"""Your own images, a folder for each class: fine-tune a published model, with or without a teacher.

    python main.py --config=configs/folder.py:data=photos --workdir=runs/photos
    python main.py --config=configs/folder.py:data=photos,model=regnety_160 --workdir=runs/regnety_160
    python main.py --config=configs/folder.py:data=photos,teacher=runs/regnety_160 --workdir=runs/photos_distilled

`data` holds train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg, of which a tenth is then held out (docs/data.md).
The second command makes a teacher that knows your classes, the third distils from it. Batch and length follow the
number of images: about 20 steps per pass (batches of 16 to 128) and at least 600 in all. 200 photos take 48 passes in
batches of 16, 20,000 take 30 in batches of 128. What it reaches depends on your images. Arguments: data=FOLDER,
model=NAME, init=WEIGHTS or none (from scratch: 300 passes at the paper's rate), teacher=WEIGHTS, epochs=N.
"""

import math
import os
from pathlib import Path

from deit_jax.config import arguments, default_config, model_of
from deit_jax.data.files import EXTENSIONS
from deit_jax.errors import UserError

MIN_STEPS = 600
FINETUNE_LR = 1e-3  # per 512 images


def count_images(root: str) -> int:
    """Training images below `root`, 0 where it is not there (another machine's); the run itself counts exactly."""
    split = next((p for p in sorted(Path(root).glob("*")) if p.name.lower() in ("train", "training")), Path(root))
    return sum(os.path.splitext(name)[1].lower() in EXTENSIONS for _, _, names in os.walk(split) for name in names)


def get_config(text: str = ""):
    given = arguments(text, ("data", "model", "init", "teacher", "epochs"))
    c = default_config()
    c.data.root = given.get("data", "")
    images = count_images(c.data.root) if c.data.root else 0
    # about 20 steps per pass: a batch of 128 leaves one step, and up to 127 images unseen, of a folder of 200
    c.batch_size = min(128, max(16, 2 ** round(math.log2(max(images, 1) / 20)))) if images else 128
    from_scratch = given.get("init") == "none"
    shortest = math.ceil(MIN_STEPS * c.batch_size / images) if images else 0
    c.epochs = max(300 if from_scratch else 30, shortest)
    if "epochs" in given:
        if not given["epochs"].isdigit():
            raise UserError(f"config argument epochs={given['epochs']} is not a whole number: use epochs=30")
        c.epochs = int(given["epochs"])

    taught = "teacher" in given
    c.model.name = given.get("model", "deit_small_distilled_patch16_224" if taught else "deit_small_patch16_224")
    published = "facebook/" + c.model.name.replace("_", "-")
    if c.model.name.startswith("regnety"):
        published = f"timm/{c.model.name}.{'deit_in1k' if c.model.name == 'regnety_160' else 'pycls_in1k'}"
    c.init = given.get("init", published).replace("none", "")
    if taught:
        c.distill.kind, c.teacher.init = "hard", given["teacher"]
        c.teacher.name = model_of(c.teacher.init)

    o = c.optimizer
    o.lr_update, o.scale_floors, o.ema_decay, o.ema_warmup = "step", True, 0.999, True
    if not from_scratch:
        o.lr, o.warmup_epochs = FINETUNE_LR, 3.0
    c.augment.repeats = 1  # views of more images instead of more views per image
    c.data.drop_last = False  # each pass holds all images
    c.data.exif = True  # phones store photos as the sensor lies
    return c
