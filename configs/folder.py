"""Your own images, a folder for each class: fine-tune a published model, with or without a teacher.

    python main.py --config=configs/folder.py:data=photos --workdir=runs/photos
    python main.py --config=configs/folder.py:data=photos,model=regnety_160 --workdir=runs/regnety_160
    python main.py --config=configs/folder.py:data=photos,teacher=runs/regnety_160 --workdir=runs/photos_distilled

`data` holds train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg, of which a tenth is then held out. The second
command makes a teacher that knows your classes, the third distils from it. Cost:
30 passes over your images; what it reaches depends on them. Arguments: data=FOLDER, model=NAME, init=WEIGHTS or none
(train from scratch: raise epochs to 300 or more), teacher=WEIGHTS, epochs=N.
"""

from deit_jax.config import arguments, default_config, model_of
from deit_jax.errors import UserError


def get_config(text: str = ""):
    given = arguments(text, ("data", "model", "init", "teacher", "epochs"))
    c = default_config()
    c.data.root = given.get("data", "")
    c.batch_size, c.epochs = 128, 30
    if "epochs" in given:
        if not given["epochs"].isdigit():
            raise UserError(f"config argument epochs={given['epochs']} is no number: use epochs=30")
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

    # few steps: a short memory for the averaged weights, views of more images instead of more views of an image
    c.optimizer.lr, c.optimizer.lr_update, c.optimizer.warmup_epochs, c.optimizer.ema_decay = 5e-5, "step", 3.0, 0.999
    c.augment.repeats = 1
    c.data.exif = True  # phones store photos as the sensor lies
    return c
