"""Fine-tune a published DeiT on another data set, at 224 px.

    python main.py --config=configs/transfer.py:data=cifar10 --workdir=runs/cifar10
    python main.py --config=configs/transfer.py:data=inat18,settings=later --workdir=runs/inat18

Data sets and the paper's top-1 for DeiT-B (Table 7): cifar10 99.1 %, cifar100 90.8 %, flowers 98.4 %, cars 92.1 %,
inat18 73.2 %, inat19 77.7 % (no TFDS data set: give its image folder as data.root), pets (not in the paper).
`settings`, as the authors gave them on their repository, since the paper does not:
  paper  those behind the paper's figures: SGD for 1,000 epochs without erasing and drop path, said of cifar10 and cars
         and used for the other small ones (issue 45); for iNaturalist AdamW for 360 epochs (issue 105)
  later  AdamW for the small ones too (issue 81 of DINO's repository); shorter for iNaturalist (issue 171 there)
Neither has been run here. 1,000 epochs of CIFAR are 50 M images, as many as 39 of ImageNet: try `--config.epochs=100`
first. Arguments: data=NAME, settings=paper|later, model=NAME, init=WEIGHTS.
"""

from deit_jax.config import arguments, default_config
from deit_jax.errors import UserError, nearest

DATA = {  # name: (TFDS name, training split, evaluation split)
    "cifar10": ("cifar10", "train", "test"),
    "cifar100": ("cifar100", "train", "test"),
    "flowers": ("oxford_flowers102", "train+validation", "test"),
    "cars": ("cars196", "train", "test"),
    "inat18": ("i_naturalist2018", "train", "validation"),
    "inat19": ("inat19", "train", ""),
    "pets": ("oxford_iiit_pet", "train", "test"),
}


def get_config(text: str = ""):
    given = arguments(text, ("data", "settings", "model", "init"))
    data, settings = given.get("data", "cifar10"), given.get("settings", "paper")
    if data not in DATA:
        raise UserError(f"config argument data={data} is not known{nearest(data, DATA)}: use {', '.join(DATA)}")
    if settings not in ("paper", "later"):
        raise UserError(f"config argument settings={settings} is not known: use paper or later")
    c = default_config()
    c.data.name, c.data.train_split, c.data.eval_split = DATA[data]
    c.model.name = given.get("model", "deit_base_patch16_224")
    c.init = given.get("init", "facebook/" + c.model.name.replace("_", "-"))
    if "_distilled" in c.model.name:
        c.distill.kind = "second_cls"  # no teacher knows these classes: both heads learn the labels

    # the rates that were given are those in use at their batch
    o, c.batch_size = c.optimizer, 768
    o.lr_batch = c.batch_size
    if data.startswith("inat"):
        o.lr, c.epochs, c.augment.erasing = 7.5e-5, 360, 0.1
        if settings == "later":
            o.lr, o.lr_batch, c.batch_size, c.epochs, c.augment.erasing = 5e-5, 512, 1024, 300, 0.25
    elif settings == "paper":
        c.epochs, c.augment.erasing, c.model.drop_path_rate = 1000, 0.0, 0.0
        o.name, o.lr, o.weight_decay = "sgd", 0.01, 1e-4
    else:
        c.epochs, o.lr = 1000, 5e-6 if data == "cifar100" else 7.5e-6
        o.min_lr = 1e-6  # the default lies above these rates
    return c
