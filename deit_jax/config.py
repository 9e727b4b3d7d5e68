"""Every setting: its default, what it means, what it may be; the recipes; and the checks made before any compile.

`python -m deit_jax.config` prints the whole table. A file in `configs/` starts from `default_config()` and changes
only what is particular to its run. A default of None means "as `recipe` says" (see `RECIPES`).
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError, nearest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_TRAIN_IMAGES = 1_281_167


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting. `kind` is its type; needed where `default` is None (the recipe's). `runtime` settings may differ
    between a run and its continuation, because they change neither the images nor the weights."""

    default: Any
    doc: str
    choices: tuple | None = None
    kind: type | None = None
    runtime: bool = False


S = Setting
SETTINGS: dict[str, Any] = {
    "seed": S(0, "every random number of a run is a function of it"),
    "recipe": S("released", "where paper and released code differ, which to follow", ("paper", "released", "tuned")),
    "init": S("", "weights to start from: hub name, .safetensors, .pth or Orbax folder; '' draws new ones"),
    "batch_size": S(1024, "images a step, over all devices and processes"),
    "epochs": S(300, "passes; with repeated augmentation still len(dataset) views a pass"),
    "steps": S(0, "steps of training; 0: as many as `epochs` makes"),
    "accumulate": S(1, "parts a batch is cut into, one after the other, to save memory"),
    "compare": S(False, "also train the same student without a teacher, for the report", runtime=True),
    "model": {
        "name": S("deit_base_patch16_224", "a name of deit_jax.list_models()"),
        "num_classes": S(0, "0: the dataset's"),
        "img_size": S(0, "pixels a side of training and evaluation images; 0: the one in the model's name"),
        "drop_path_rate": S(None, "of the last block; rises linearly from 0 over the depth", kind=float),
        "drop_rate": S(0.0, "dropout after attention's and the MLP's projections"),
        "dtype": S("auto", "compute type; auto: bfloat16 on accelerators", ("auto", "float32", "bfloat16")),
        "attention": S("auto", "by two products, kept or computed again in the backward pass, or fused; auto: the best",
                       ("auto", "einsum", "recompute", "cudnn"), runtime=True),
        "remat": S("none", "what the backward pass recomputes: nothing, all but products, whole blocks",
                   ("none", "dots", "full"), runtime=True),
        "scan_unroll": S(0, "blocks an iteration of the scan holds; 0: on CPU all, elsewhere one", runtime=True),
    },
    "distill": {
        "kind": S("none", "objective, see deit_jax/losses.py", ("none", "soft", "hard", "second_cls")),
        "alpha": S(0.5, "weight of the teacher's term; the paper's soft lambda is 0.1"),
        "tau": S(1.0, "temperature of soft distillation; the paper's is 3"),
        "normalization": S(None, "of the soft term: batch mean (paper) or also / classes (released)",
                           ("paper", "released"), kind=str),
        "labels": S("", "folder of stored teacher labels (--mode=label makes one); '' runs the teacher live",
                    runtime=True),  # they say themselves what they are of
    },
    "teacher": {
        "name": S("regnety_160", "a name of deit_jax.list_models(), several, comma-separated, are averaged; '': what "
                  "its weights are"),
        "init": S("", "its weights, as `init`; several, comma-separated"),
        "epochs": S(0, "train the teacher on the same data first, for so many epochs; 0: `teacher.init` has it"),
        "lr": S(0.0, "learning rate of that training, per 512 images; 0: the student's"),
        "drop_path_rate": S(0.0, "drop path of that training"),
        "augment": S("student", "of that training: the student's, or its crops and flips alone (fewer epochs do)",
                     ("student", "light")),
        "img_size": S(0, "input size of the teacher; 0: the student's"),
        "mean": S((), "pixel mean the teacher was trained with; (): what its weights say"),
        "std": S((), "pixel deviation the teacher was trained with; (): what its weights say"),
        "dtype": S("auto", "compute type of the teacher", ("auto", "float32", "bfloat16")),
    },
    "label": {
        "kind": S("auto", "--mode=label stores decisions, or the k likeliest classes; auto: as distill.kind needs",
                  ("auto", "hard", "topk"), runtime=True),
        "k": S(10, "classes a view of a topk store", runtime=True),
        "dtype": S("float16", "of a topk store's probabilities", ("float16", "float32"), runtime=True),
    },
    "optimizer": {
        "lr": S(5e-4, "learning rate per `lr_batch` images: used is lr x batch_size / lr_batch"),
        "lr_batch": S(512, "the batch `lr` is given for"),
        "name": S("adamw", "AdamW, or SGD with Nesterov's momentum and coupled decay", ("adamw", "sgd")),
        "momentum": S(0.9, "SGD"),
        "schedule": S("cosine", "after warm-up", ("cosine", "constant")),
        "warmup_epochs": S(None, "linear rise from warmup_lr", kind=float),
        "warmup_lr": S(1e-6, "learning rate at step 0"),
        "min_lr": S(1e-5, "learning rate at the end"),
        "scale_floors": S(None, "scale warmup_lr and min_lr with the batch as lr (the release does not)", kind=bool),
        "per": S(None, "the rate moves every step (paper), or every epoch, one epoch late (released)",
                 ("step", "epoch"), kind=str),
        "weight_decay": S(0.05, "decoupled; not on biases, norms, cls_token, pos_embed"),
        "decay_dist_token": S(None, "decay the distillation token too (the release does)", kind=bool),
        "beta1": S(0.9, "AdamW"),
        "beta2": S(0.999, "AdamW"),
        "eps": S(1e-8, "AdamW"),
        "clip_norm": S(None, "largest global gradient norm; 0: no clipping", kind=float),
        "ema_decay": S(0.99996, "of the averaged weights, which are evaluated too; 0: none"),
    },
    "augment": {
        "crop_scale": S((0.08, 1.0), "share of the image's area a training crop covers"),
        "crop_ratio": S((3 / 4, 4 / 3), "aspect ratios of a training crop"),
        "flip": S(0.5, "probability of a horizontal flip"),
        "policy": S("rand", "RandAugment, DeiT-III's 3-Augment, or neither", ("rand", "three", "none")),
        "rand_ops": S(2, "RandAugment: ops an image, drawn with replacement"),
        "rand_magnitude": S(9.0, "RandAugment: mean magnitude, of 10"),
        "rand_magnitude_std": S(0.5, "RandAugment: its deviation"),
        "rand_prob": S(0.5, "RandAugment: probability that a drawn op is applied"),
        "rand_resampling": S("bicubic", "RandAugment: of warps; random: a coin", ("bicubic", "bilinear", "random")),
        "color_jitter": S(0.3, "3-Augment: brightness, contrast, saturation"),
        "erasing": S(0.25, "probability of random erasing"),
        "mixup": S(0.8, "alpha of mixup's Beta; 0: off"),
        "cutmix": S(1.0, "alpha of cutmix's Beta; 0: off"),
        "mix_switch": S(0.5, "probability of cutmix where both are on"),
        "mix_prob": S(1.0, "probability that a group of images is mixed at all"),
        "mix_group": S(64, "images that are mixed among themselves (the release's batch a GPU)"),
        "label_smoothing": S(0.1, "of the true labels"),
        "repeats": S(None, "views of an image a pass (repeated augmentation)", kind=int),
        "mean": S(IMAGENET_MEAN, "pixel mean"),
        "std": S(IMAGENET_STD, "pixel deviation"),
    },
    "data": {
        "name": S("imagenet2012", "digits, or a TFDS name; `root` wins where it is a folder of images, .csv or shards"),
        "root": S("", "image folder (class by folder), .csv of path,label, ArrayRecord folder, or TFDS data_dir",
                  runtime=True),  # what it holds is known by its fingerprint
        "train_split": S("train", "folder or TFDS split to train on"),
        "eval_split": S("", "split to evaluate on; '': validation, val or test, whichever exists"),
        "holdout": S(0.1, "share held out for evaluation where the data has no such split"),
        "limit": S(0, "use so many training images, drawn by seed; 0: all"),
        "resize": S("exact", "of training crops: PIL's, or cykooz-resizer's, 5 times as fast and 0.03 levels off",
                    ("exact", "fast")),
        "crop": S(0.875, "evaluation: centre crop's side / resized short side"),
        "eval_batch_size": S(0, "0: batch_size", runtime=True),
        "workers": S(0, "processes that decode and crop; 0: threads of this process", runtime=True),
        "threads": S(0, "decoding threads a process; 0: one a core, 16 at most", runtime=True),
        "prefetch": S(4, "batches held ready", runtime=True),
        "max_broken": S(0.001, "share of unreadable training images above which a run stops", runtime=True),
    },
    "evaluate": {
        "every": S(1, "epochs between evaluations; the last epoch always is", runtime=True),
        "fusion": S(None, "of the two heads: mean of logits (released) or of probabilities (paper)",
                    ("logits", "probabilities"), kind=str, runtime=True),
    },
    "checkpoint": {
        "every": S(1, "epochs between checkpoints", runtime=True),
        "keep": S(2, "newest ones kept, beside the best", runtime=True),
    },
    "log": {
        "every": S(50, "steps between log lines", runtime=True),
        "tensorboard": S(True, "write TensorBoard events", runtime=True),
    },
    "stability": {
        "patience": S(10, "non-finite steps in a row (each is skipped) before rolling back to the last checkpoint"),
        "rollbacks": S(3, "roll-backs before the run stops"),
    },
    "sharding": S("replicated", "parameters on every device, or split over them (fsdp)", ("replicated", "fsdp"),
                  runtime=True),
    "finetune": {
        "epochs": S(0, "fine-tune at another size afterwards, for so many epochs (deit_jax/chain.py); 0: do not"),
        "img_size": S(384, "pixels a side of it"),
        "batch_size": S(512, "images a step of it"),
        "lr": S(5e-6, "its learning rate per 512 images, constant after warm-up"),
        "warmup_epochs": S(5.0, "its warm-up"),
        "weight_decay": S(1e-8, "its weight decay"),
        "labels": S("", "its stored teacher labels; '': the live teacher", runtime=True),
    },
    "ablate": {
        "seeds": S((0, 1, 2), "seeds of --mode=ablate", runtime=True),
        "arms": S(("none", "soft", "hard"), "arms of --mode=ablate, see deit_jax/ablate.py", runtime=True),
        "store_labels": S(False, "store the teacher's labels once per seed, for all its arms", runtime=True),
        "teacher_split": S("", "split that the study's teachers are evaluated and chosen on, so that the students' "
                           "evaluation split chooses nothing; '': the same one", runtime=True),
    },
}  # fmt: skip

# Where the paper's text and its released code differ, one named setting each (shared by every config); `tuned` is
# what later work reports as better for Ti and S (Touvron et al. 2022 and timm's notes); not verified here.
RECIPES: dict[str, dict[str, Any]] = {
    "released": {
        "model.drop_path_rate": 0.1,
        "distill.normalization": "released",
        "optimizer.warmup_epochs": 5.0,
        "optimizer.scale_floors": False,
        "optimizer.per": "epoch",
        "optimizer.decay_dist_token": True,
        "optimizer.clip_norm": 0.0,
        "augment.repeats": 3,
        "evaluate.fusion": "logits",
    },
    "paper": {
        "model.drop_path_rate": 0.1,
        "distill.normalization": "paper",
        "optimizer.warmup_epochs": 5.0,
        "optimizer.scale_floors": True,
        "optimizer.per": "step",
        "optimizer.decay_dist_token": False,
        "optimizer.clip_norm": 0.0,
        "augment.repeats": 3,
        "evaluate.fusion": "probabilities",
    },
    "tuned": {
        "model.drop_path_rate": 0.0,
        "distill.normalization": "paper",
        "optimizer.warmup_epochs": 20.0,
        "optimizer.scale_floors": True,
        "optimizer.per": "step",
        "optimizer.decay_dist_token": False,
        "optimizer.clip_norm": 5.0,
        "augment.repeats": 1,
        "evaluate.fusion": "logits",
    },
}


def flat(tree, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of a nested dictionary, a table of settings or a ConfigDict."""
    out = {}
    for key, value in tree.items():
        if hasattr(value, "items"):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def default_config():
    """A locked ConfigDict with every setting at its default; assigning an unknown name raises."""
    import ml_collections  # only here: models, losses and the train step work on machines that lack it
    from ml_collections import config_dict

    def build(table):
        config = ml_collections.ConfigDict()
        for key, setting in table.items():
            if isinstance(setting, dict):
                config[key] = build(setting)
            else:
                config[key] = config_dict.placeholder(setting.kind) if setting.default is None else setting.default
        return config

    return build(SETTINGS).lock()


def arguments(text: str | None, allowed: tuple[str, ...]) -> dict[str, str]:
    """Parse what follows the colon of `--config=FILE:key=value,…`. Raises UserError for a key not in `allowed`."""
    out = {}
    for part in filter(None, (text or "").split(",")):
        key, equals, value = part.partition("=")
        if key not in allowed or not equals or not value:
            takes = ", ".join(f"{k}=…" for k in allowed)
            raise UserError(f"config argument '{part}' is not known{nearest(key, allowed)}: this config takes {takes}")
        out[key] = value
    return out


def model_of(weights: str) -> str:
    """The registry name that weights' own name starts with (`timm/regnety_160.deit_in1k`), or "": what they are."""
    from deit_jax.models import list_models

    stem = weights.rstrip("/").split("/")[-1].split(".")[0]
    return stem if stem in list_models() else ""


def deit(size: str, text: str | None = ""):
    """The config of a DeiT on ImageNet-1k: `size` tiny, small or base; `text` the arguments of `--config=FILE:text`.

    distill=none|soft|hard; teacher= weights, of a model named alike (default RegNetY-16GF as released); epochs=.
    """
    given = arguments(text, ("distill", "teacher", "epochs"))
    kind = given.get("distill", "none")
    c = default_config()
    c.model.name = f"deit_{size}{'' if kind == 'none' else '_distilled'}_patch16_224"
    c.distill.kind = kind
    if kind == "soft":
        c.distill.alpha, c.distill.tau = 0.1, 3.0
    if kind != "none":
        c.teacher.init = given.get("teacher", "timm/regnety_160.deit_in1k")
        c.teacher.name = model_of(c.teacher.init)
    epochs = given.get("epochs", "300")
    if not epochs.isdigit():
        raise UserError(f"config argument epochs={epochs} is no number: use epochs=300")
    c.epochs = int(epochs)
    c.data.resize = "fast"  # three times what timm's loader gives a core
    return c


def resolve(config):
    """A copy in which every setting left to the recipe has the recipe's value."""
    if config.recipe not in RECIPES:
        raise UserError(
            f"recipe is '{config.recipe}'{nearest(config.recipe, RECIPES)}: use one of {', '.join(RECIPES)}"
        )
    config = config.copy_and_resolve_references()
    for path, value in RECIPES[config.recipe].items():
        group, name = path.split(".")
        if config[group][name] is None:
            config[group][name] = value
    return config


def recipe_differences(config) -> list[str]:
    """What of a resolved config is decided where paper and released code differ, or differs from both: a line each.

    Settings without effect in this run (a second head's, soft distillation's) are left out.
    """
    values, idle = flat(config), set()
    if "_distilled" not in config.model.name:
        idle |= {"optimizer.decay_dist_token", "evaluate.fusion"}
    if config.distill.kind != "soft":
        idle.add("distill.normalization")
    lines = []
    for path, released in RECIPES["released"].items():
        paper, ours = RECIPES["paper"][path], values[path]
        if path in idle or ours == paper == released:
            continue
        if paper == released:
            lines.append(f"{path} = {ours} (paper and release: {paper})")
        elif ours == released:
            lines.append(f"{path} = {ours}, as released (paper: {paper})")
        elif ours == paper:
            lines.append(f"{path} = {ours}, as in the paper (release: {released})")
        else:
            lines.append(f"{path} = {ours} (paper: {paper}, release: {released})")
    return lines


def check_tuple(path: str, value: tuple, default: tuple) -> None:
    """Raise UserError unless `value` has the elements its default shows: as many numbers, or any number of names or
    seeds; three numbers where the default is empty."""
    if path.startswith("ablate."):
        kind, what = type(default[0]), {int: "whole numbers, as (0, 1, 2)", str: "names, as ('none', 'hard')"}
        right = len(value) > 0 and all(type(x) is kind for x in value)
        what = what[kind]
    else:
        lengths = (len(default),) if default else (0, 3)
        right = len(value) in lengths and all(isinstance(x, int | float) and math.isfinite(x) for x in value)
        what = f"{lengths[-1]} numbers" + (f", as {default}" if default else "")
    if not right:
        raise UserError(f"{path} is {value}: it must be {what}")


def validate(config, *, num_devices: int = 1) -> None:
    """Check a resolved config by itself: choices, ranges, divisibility. Raises UserError with the mend."""
    values = flat(config)
    for path, setting in flat(SETTINGS).items():
        value = values[path]
        if setting.choices and value not in setting.choices:
            hint = nearest(str(value), setting.choices)
            raise UserError(f"{path} is '{value}'{hint}: use one of {', '.join(setting.choices)}")
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise UserError(f"{path} is {value}: it must be a number from 0 on")
        if isinstance(setting.default, tuple):
            check_tuple(path, value, setting.default)
    at_least_one = (
        "batch_size accumulate augment.mix_group augment.repeats log.every evaluate.every"
        " checkpoint.every checkpoint.keep optimizer.lr_batch label.k finetune.img_size finetune.batch_size"
    ).split()
    for path in at_least_one:
        if values[path] < 1:
            raise UserError(f"{path} is {values[path]}: it must be at least 1")
    if not (config.steps or config.epochs):
        raise UserError("steps and epochs are both 0: set --config.epochs or --config.steps")
    probabilities = (
        "augment.flip augment.rand_prob augment.erasing augment.mix_switch augment.mix_prob augment.label_smoothing"
        " distill.alpha data.holdout data.crop data.max_broken model.drop_rate model.drop_path_rate optimizer.ema_decay"
        " optimizer.momentum optimizer.beta1 optimizer.beta2 teacher.drop_path_rate"
    ).split()
    for path in probabilities:
        if values[path] > 1:
            raise UserError(f"{path} is {values[path]}: it must lie in 0..1")
    if config.data.crop == 0:
        raise UserError("data.crop is 0: give the share of the image to keep, 0.875 or 1.0")
    batch, parts = config.batch_size, config.accumulate
    if batch % (num_devices * parts):
        at = f"{num_devices} devices" + (f" x {parts} parts" if parts > 1 else "")
        unit = num_devices * parts
        near = max(unit, round(batch / unit) * unit)
        raise UserError(f"batch_size {batch} is not divisible by {at}: use --config.batch_size={near}")
    rows = config.data.eval_batch_size
    if rows % num_devices:
        near = max(num_devices, round(rows / num_devices) * num_devices)
        raise UserError(
            f"data.eval_batch_size {rows} is not divisible by {num_devices} devices:"
            f" use --config.data.eval_batch_size={near}"
        )
    if config.distill.kind == "none" and "_distilled" in config.model.name:
        raise UserError(
            f"distill.kind none leaves the distillation head of {config.model.name} untrained: use "
            f"--config.model.name={config.model.name.replace('_distilled', '')}, or kind second_cls"
        )
    if config.distill.kind != "none" and config.distill.tau <= 0:
        raise UserError(f"distill.tau is {config.distill.tau}: it must be above 0")


def check_config_file(path: str) -> None:
    """Raise UserError, naming the nearest file beside it, unless `path` is a file."""
    file = Path(path)
    if not file.is_file():
        beside = [str(p) for p in sorted(file.parent.glob("*.py"))]
        known = f": there are {', '.join(beside)}" if beside else ""
        raise UserError(f"config {path} does not exist{nearest(path, beside)}{known}")


def check_override(path: str, value: str | None) -> None:
    """Check one `--config.PATH=VALUE` before it is applied. Raises UserError for an unknown setting or a value of
    another type."""
    settings = flat(SETTINGS)
    if path not in settings:
        groups = sorted({name.rpartition(".")[0] for name in settings} - {""})
        within = f": {path} is a group of settings, as --config.{path}.NAME=" if path in groups else ""
        mend = within or ": python -m deit_jax.config lists all"
        raise UserError(f"config.{path} is not a setting{nearest(path, settings)}{mend}")
    kind = settings[path].kind or type(settings[path].default)
    if value is None or kind in (str, tuple):
        return
    try:
        readers = {int: int, float: float, bool: {"true": True, "false": False, "1": True, "0": False}.__getitem__}
        readers[kind](value.lower())
    except (ValueError, KeyError):
        article = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise UserError(f"config.{path} is '{value}': it must be {article}") from None


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names of the settings that shape a run and differ between two flattened configs ("runtime" ones may differ)."""
    free = {path for path, setting in flat(SETTINGS).items() if setting.runtime}
    plain = lambda v: list(v) if isinstance(v, tuple) else v  # noqa: E731  JSON has no tuples
    keys = (ours.keys() | theirs.keys()) - free
    return sorted(k for k in keys if plain(ours.get(k)) != plain(theirs.get(k)))


def describe() -> str:
    """The table of settings, for people."""
    lines = []
    for path, s in flat(SETTINGS).items():
        default = "recipe's" if s.default is None else repr(s.default)
        choices = f" [{' | '.join(s.choices)}]" if s.choices else ""
        lines.append(f"{path:28} {default:36} {s.doc}{choices}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe())
