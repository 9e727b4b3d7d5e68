"""Every setting: its default, what it means, what it may be.

`python -m deit_jax.config` prints the whole table. A file in `configs/` starts from `default_config()` and changes
only what is particular to its run. A default of None means "as `recipe` says" (see `deit_jax.config.recipes`).
"""

import dataclasses
from typing import Any

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
    "train_baseline": S(False, "also train the same student without a teacher, for the report", runtime=True),
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
        "lr_update": S(None, "the rate moves every step (paper), or every epoch, one epoch late (released)",
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
        "root": S("", "image folder (class by folder), table of path,label (.csv, .tsv), shards, or TFDS data_dir",
                  runtime=True),  # what it holds is known by its fingerprint
        "train_split": S("train", "folder or TFDS split to train on"),
        "eval_split": S("", "split to evaluate on; '': validation, val, valid, dev or test, whichever exists; holdout: "
                        "images held out of training"),
        "holdout": S(0.1, "share held out for evaluation where the data has no such split"),
        "limit": S(0, "use so many training images, drawn by seed; 0: all"),
        "resize": S("exact", "of training crops: PIL's, or cykooz-resizer's, 5 times as fast and 0.03 levels off",
                    ("exact", "fast")),
        "crop": S(0.875, "evaluation: centre crop's side / resized short side"),
        "eval_batch_size": S(0, "0: batch_size", runtime=True),
        "workers": S(0, "processes that decode and crop; 0: threads of this process", runtime=True),
        "threads": S(0, "decoding threads a process; 0: one a core, 16 at most", runtime=True),
        "prefetch": S(4, "batches held ready", runtime=True),
        "exif": S(False, "turn photos as their EXIF orientation says (published ImageNet models do without)"),
        "check": S("size", "images are known again by names and sizes, or by the files' bytes too (reads them all)",
                   ("size", "content")),
        "max_broken": S(0.001, "share of unreadable training images above which a run stops", runtime=True),
        "broken_floor": S(10, "unreadable training images that never stop a run, whatever their share", runtime=True),
        "eval_broken": S("wrong", "an unreadable evaluation image counts as wrong, or is skipped", ("wrong", "skip"),
                         runtime=True),
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
        "arms": S(("none", "soft", "hard"), "arms of --mode=ablate, see deit_jax/study/ablation.py", runtime=True),
        "store_labels": S(False, "store the teacher's labels once a seed, for all its arms", runtime=True),
    },
}  # fmt: skip


# former name → name: config files and flags are told the new one, recorded runs are read by it
RENAMED = {"compare": "train_baseline", "optimizer.per": "optimizer.lr_update"}


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


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names of the settings that shape a run and differ between two flattened configs ("runtime" ones may differ)."""
    ours, theirs = ({RENAMED.get(k, k): v for k, v in config.items()} for config in (ours, theirs))
    free = {path for path, setting in flat(SETTINGS).items() if setting.runtime}
    default = {path: setting.default for path, setting in flat(SETTINGS).items()}  # of settings younger than a record
    plain = lambda v: list(v) if isinstance(v, tuple) else v  # noqa: E731  JSON has no tuples
    keys = (ours.keys() | theirs.keys()) - free
    return sorted(k for k in keys if plain(ours.get(k, default.get(k))) != plain(theirs.get(k, default.get(k))))


def describe() -> str:
    """The table of settings, for people."""
    lines = []
    for path, s in flat(SETTINGS).items():
        default = "recipe's" if s.default is None else repr(s.default)
        choices = f" [{' | '.join(s.choices)}]" if s.choices else ""
        lines.append(f"{path:28} {default:36} {s.doc}{choices}")
    return "\n".join(lines)
