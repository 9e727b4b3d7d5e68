"""Every setting: its type, its default, what it means, what it may be.

`python -m deit_jax.config` prints the whole table. A file in `configs/` starts from `default_config()` and changes
only what is particular to its run. A default of None means "as `recipe` says" (see `deit_jax.config.recipes`).

The classes below only declare: a run's config is an ml_collections.ConfigDict with these names, so that flags and
config files work as everywhere; type checkers see the classes.
"""

import dataclasses
import typing
from typing import Any, Self

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # PIL's
IMAGENET_TRAIN_IMAGES = 1_281_167


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting. `kind` is its type. `runtime` settings may differ between a run and its continuation, because they
    change neither the images nor the weights."""

    default: Any
    doc: str
    choices: tuple | None = None
    runtime: bool = False
    kind: type = object


def S(default: Any, doc: str, choices: tuple | None = None, *, runtime: bool = False) -> Any:
    """A setting, declared. Its annotation gives the type."""
    return Setting(default, doc, choices, runtime)


class GroupType(type):
    """`isinstance(config, Config)` says what the annotations say: that the config has these settings."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return all(hasattr(instance, name) for name in cls.__annotations__)


class Group(metaclass=GroupType):
    """What a group of settings can do: it is an ml_collections.ConfigDict."""

    if typing.TYPE_CHECKING:

        def __getitem__(self, name: str) -> Any: ...
        def __setitem__(self, name: str, value: Any) -> None: ...
        def items(self) -> typing.ItemsView[str, Any]: ...
        def keys(self) -> typing.KeysView[str]: ...
        def update(self, other: Any) -> None: ...
        def lock(self) -> Self: ...
        def copy_and_resolve_references(self) -> Self: ...
        def to_json_best_effort(self) -> str: ...
        def update_from_flattened_dict(self, values: dict[str, Any]) -> None: ...


class Model(Group):
    name: str = S("deit_base_patch16_224", "a name of deit_jax.list_models()")
    num_classes: int = S(0, "0: the dataset's")
    img_size: int = S(0, "height and width of training and evaluation images in pixels; 0: the one in the model's name")
    drop_path_rate: float = S(None, "stochastic depth of the last block; rises linearly from 0 over the depth")
    drop_rate: float = S(0.0, "dropout after the projections of attention and MLP; of an EfficientNet, before its head")
    dtype: str = S("auto", "compute dtype; auto: bfloat16 on accelerators", ("auto", "float32", "bfloat16"))
    attention: str = S(
        "auto",
        "einsum (weights stored), recompute (rematerialized), cudnn (fused); auto: the fastest on this platform",
        ("auto", "einsum", "recompute", "cudnn"),
        runtime=True,
    )
    remat: str = S(
        "none",
        "what the backward pass recomputes: nothing, all but matrix products, whole blocks",
        ("none", "dots", "full"),
        runtime=True,
    )
    scan_unroll: int = S(0, "blocks per iteration of the scan over depth; 0: all on CPU, one elsewhere", runtime=True)


class Distill(Group):
    kind: str = S("none", "objective, see deit_jax/losses.py", ("none", "soft", "hard", "second_cls"))
    alpha: float = S(None, "weight of the teacher's term (lambda): 0.5; soft in the recipes paper and tuned: 0.1")
    tau: float = S(None, "temperature of soft distillation; released: 1, paper and tuned: 3")
    normalization: str = S(
        None, "soft term: mean over the batch (paper), or also divided by classes (released)", ("paper", "released")
    )
    labels: str = S(
        "", "folder of stored teacher labels (made by --mode=label); '' runs the teacher live", runtime=True
    )  # the store itself records what it belongs to


class Teacher(Group):
    name: str = S(
        "regnety_160",
        "a name of deit_jax.list_models(); several, comma-separated, are averaged; '': what its weights are",
    )
    init: str = S("", "its weights, as `init`; several, comma-separated")
    epochs: int = S(0, "train the teacher on the same data first, for this many epochs; 0: `teacher.init` has it")
    lr: float = S(0.0, "learning rate of that training per 512 images; 0: the student's")
    drop_path_rate: float = S(0.0, "drop path of that training")
    augment: str = S(
        "student",
        "of that training: the student's, or crops and flips alone (fewer epochs do)",
        ("student", "light"),
    )
    img_size: int = S(0, "input size of the teacher in pixels; 0: the student's")
    mean: tuple[float, ...] = S((), "normalization mean the teacher was trained with; (): what its weights record")
    std: tuple[float, ...] = S((), "normalization std the teacher was trained with; (): what its weights record")
    dtype: str = S("auto", "compute dtype of the teacher", ("auto", "float32", "bfloat16"))


class Label(Group):
    kind: str = S(
        "auto",
        "--mode=label stores decisions (hard) or the k most probable classes (topk); auto: what distill.kind needs",
        ("auto", "hard", "topk"),
        runtime=True,
    )
    k: int = S(10, "classes per view in a topk store", runtime=True)
    dtype: str = S("float16", "of a topk store's probabilities", ("float16", "float32"), runtime=True)


class Optimizer(Group):
    lr: float = S(5e-4, "learning rate per `lr_batch` images: the peak is lr x batch_size / lr_batch")
    lr_batch: int = S(512, "the batch size that `lr` is given for")
    name: str = S("adamw", "AdamW, or SGD with Nesterov momentum and coupled weight decay", ("adamw", "sgd"))
    momentum: float = S(0.9, "SGD")
    head_lr_scale: float = S(1.0, "the heads' learning rate is this times the others'; above 1 for new heads")
    schedule: str = S("cosine", "after warm-up", ("cosine", "constant"))
    warmup_epochs: float = S(None, "linear warm-up from warmup_lr")
    warmup_lr: float = S(1e-6, "learning rate at step 0")
    min_lr: float = S(1e-5, "learning rate at the end")
    scale_floors: bool = S(None, "scale warmup_lr and min_lr with the batch size as lr (the release does not)")
    lr_update: str = S(
        None, "the learning rate changes every step (paper), or every epoch, one late (released)", ("step", "epoch")
    )
    weight_decay: float = S(0.05, "decoupled; not on biases, norms, cls_token, pos_embed")
    decay_dist_token: bool = S(None, "decay the distillation token too (the release does)")
    beta1: float = S(0.9, "AdamW")
    beta2: float = S(0.999, "AdamW")
    eps: float = S(1e-8, "AdamW")
    clip_norm: float = S(None, "largest global gradient norm; 0: no clipping")
    ema_decay: float = S(0.99996, "of the averaged weights, which are evaluated too; 0: none")
    ema_warmup: bool = S(False, "raise that decay from 0.1 on as (1 + step) / (10 + step), for short runs")


class Augment(Group):
    crop_scale: tuple[float, float] = S((0.08, 1.0), "area of a training crop as a share of the image's")
    crop_ratio: tuple[float, float] = S((3 / 4, 4 / 3), "aspect ratios of a training crop")
    flip: float = S(0.5, "probability of a horizontal flip")
    policy: str = S("rand", "RandAugment, DeiT III's 3-Augment, or neither", ("rand", "three", "none"))
    rand_ops: int = S(2, "RandAugment: ops per image, drawn with replacement")
    rand_magnitude: float = S(9.0, "RandAugment: mean magnitude, of 10")
    rand_magnitude_std: float = S(0.5, "RandAugment: its standard deviation")
    rand_prob: float = S(0.5, "RandAugment: probability that a drawn op is applied")
    rand_resampling: str = S(
        "bicubic", "RandAugment: interpolation of warps; random: drawn per op", ("bicubic", "bilinear", "random")
    )
    color_jitter: float = S(0.3, "3-Augment: brightness, contrast, saturation")
    erasing: float = S(0.25, "probability of random erasing")
    mixup: float = S(0.8, "alpha of mixup's Beta distribution; 0: off")
    cutmix: float = S(1.0, "alpha of cutmix's Beta distribution; 0: off")
    mix_switch: float = S(0.5, "probability of cutmix where both are on")
    mix_prob: float = S(1.0, "probability that a group of images is mixed at all")
    mix_group: int = S(64, "images mixed among themselves (the release's batch size per GPU)")
    label_smoothing: float = S(0.1, "of the true labels")
    repeats: int = S(None, "views per image and epoch (repeated augmentation)")
    mean: tuple[float, ...] = S(IMAGENET_MEAN, "normalization mean, per channel of pixels in 0..1")
    std: tuple[float, ...] = S(IMAGENET_STD, "normalization standard deviation")


class Data(Group):
    name: str = S("imagenet2012", "digits, or a TFDS name; `root` wins where it is a folder of images, .csv or shards")
    root: str = S(
        "", "image folder (class by folder), table of path,label (.csv, .tsv), shards, or TFDS data_dir", runtime=True
    )  # its content is known by its fingerprint
    train_split: str = S("train", "folder or TFDS split to train on")
    eval_split: str = S(
        "", "split to evaluate on; '': validation, val, valid, dev or test, whichever exists; holdout: hold images out"
    )
    holdout: float = S(0.1, "share held out for evaluation where the data has no such split")
    limit: int = S(0, "train on this many images, drawn by seed; 0: all")
    drop_last: bool = S(
        True, "leave out the images of a pass that fill no batch; False: fill the last one with its first images again"
    )
    resize: str = S(
        "exact",
        "training crops: PIL's arithmetic, or cykooz-resizer's (5x as fast, off by 0.03)",
        ("exact", "fast"),
    )
    crop: float = S(0.875, "evaluation: side of the centre crop / resized short side", runtime=True)
    interpolation: str = S("bicubic", "evaluation: of that resizing", INTERPOLATIONS, runtime=True)
    eval_batch_size: int = S(0, "0: batch_size; with --mode=evaluate 256 unless batch_size is given", runtime=True)
    workers: int = S(0, "processes that decode and crop; 0: threads of this process", runtime=True)
    threads: int = S(0, "decoding threads per process; 0: one per core, at most 16", runtime=True)
    prefetch: int = S(4, "batches held ready", runtime=True)
    exif: bool = S(False, "turn photos as their EXIF orientation says (published ImageNet models do without)")
    check: str = S(
        "size", "detect changed images by name and size, or by content too (reads every file)", ("size", "content")
    )
    max_broken: float = S(0.001, "share of unreadable training images above which a run stops", runtime=True)
    broken_floor: int = S(10, "unreadable training images that never stop a run, whatever their share", runtime=True)
    eval_broken: str = S(
        "wrong", "an unreadable evaluation image counts as wrong, or is skipped", ("wrong", "skip"), runtime=True
    )


class Evaluate(Group):
    every: int = S(1, "epochs between evaluations; the last epoch is always evaluated", runtime=True)
    limit: int = S(
        0, "at most this many images, the same ones each time, evenly over the classes; 0: all", runtime=True
    )
    fusion: str = S(
        None,
        "of the two heads: mean of logits (released) or of probabilities (paper)",
        ("logits", "probabilities"),
        runtime=True,
    )


class Checkpoint(Group):
    every: int = S(1, "epochs between checkpoints", runtime=True)
    keep: int = S(2, "newest ones kept, beside the best", runtime=True)


class Log(Group):
    every: int = S(50, "steps between log lines", runtime=True)
    tensorboard: bool = S(True, "write TensorBoard events", runtime=True)


class Stability(Group):
    patience: int = S(10, "consecutive non-finite steps (each is skipped) before rolling back to the last checkpoint")
    rollbacks: int = S(3, "roll-backs before the run stops")


class Mesh(Group):
    data: int = S(
        -1, "devices that split the batch and hold whole weights; -1: those that fsdp and tensor leave", runtime=True
    )
    fsdp: int = S(
        1, "devices that split the batch and store weights split, gathered block by block; -1: the rest", runtime=True
    )
    tensor: int = S(1, "devices that split heads and MLPs (tensor parallelism); a divisor of the heads", runtime=True)


class Processes(Group):
    heartbeat_timeout: int = S(100, "seconds without a heartbeat after which a process counts as lost", runtime=True)


class Finetune(Group):
    epochs: int = S(0, "then fine-tune at another image size for this many epochs (deit_jax/experiment.py); 0: do not")
    img_size: int = S(384, "its image size in pixels")
    batch_size: int = S(512, "its images per step")
    lr: float = S(5e-6, "its learning rate per 512 images, constant after warm-up")
    warmup_epochs: float = S(5.0, "its warm-up")
    weight_decay: float = S(1e-8, "its weight decay")
    labels: str = S("", "its stored teacher labels; '': the live teacher", runtime=True)


class Ablate(Group):
    seeds: tuple[int, ...] = S((0, 1, 2), "seeds of --mode=ablate", runtime=True)
    arms: tuple[str, ...] = S(
        ("none", "soft", "hard"), "arms of --mode=ablate, see deit_jax/study/ablation.py", runtime=True
    )
    store_labels: bool = S(False, "store the teacher's labels once per seed, for all its arms", runtime=True)
    teacher_split: str = S(
        "",
        "split that the study's teachers are evaluated and chosen on, so that the students' evaluation split chooses"
        " nothing; '': the same one",
        runtime=True,
    )


class Config(Group):
    """The settings of a run."""

    seed: int = S(0, "every random number of a run is a function of it")
    recipe: str = S("released", "where paper and released code differ, which to follow", ("paper", "released", "tuned"))
    init: str = S("", "weights to start from: hub name, .safetensors, .pth or Orbax folder; '': random initialization")
    batch_size: int = S(1024, "images per step, over all devices and processes")
    epochs: int = S(300, "passes over the data; with repeated augmentation still len(dataset) views per pass")
    steps: int = S(0, "training steps; 0: as many as `epochs` makes")
    accumulate: int = S(1, "microbatches per step, to save memory", runtime=True)
    train_baseline: bool = S(False, "also train the same student without a teacher, for the report", runtime=True)
    model: Model
    distill: Distill
    teacher: Teacher
    label: Label
    optimizer: Optimizer
    augment: Augment
    data: Data
    evaluate: Evaluate
    checkpoint: Checkpoint
    log: Log
    stability: Stability
    mesh: Mesh
    processes: Processes
    finetune: Finetune
    ablate: Ablate


def table(group: type[Group]) -> dict[str, Any]:
    """{name: Setting, or the table of a group} of a class above, in its order."""
    out: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(group).items():
        if isinstance(kind, type) and issubclass(kind, Group):
            out[name] = table(kind)
        else:
            out[name] = dataclasses.replace(getattr(group, name), kind=typing.get_origin(kind) or kind)
    return out


SETTINGS: dict[str, Any] = table(Config)

# former name → name: for config files and flags an error names the new one; recorded runs are read under it
RENAMED = {"sharding": "mesh.fsdp", "compare": "train_baseline", "optimizer.per": "optimizer.lr_update"}


def flat(tree, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of a nested dictionary, a table of settings or a ConfigDict."""
    out = {}
    for key, value in tree.items():
        if hasattr(value, "items"):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def default_config() -> Config:
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

    return typing.cast(Config, build(SETTINGS).lock())


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names of the settings that shape a run and differ between two flattened configs ("runtime" ones may differ)."""
    ours, theirs = ({RENAMED.get(k, k): v for k, v in config.items()} for config in (ours, theirs))
    free = {path for path, setting in flat(SETTINGS).items() if setting.runtime}
    defaults = {path: setting.default for path, setting in flat(SETTINGS).items()}  # of settings newer than a run
    plain = lambda v: list(v) if isinstance(v, tuple) else v
    value = lambda config, name: plain(config.get(name, defaults.get(name)))
    keys = (ours.keys() | theirs.keys()) - free
    return sorted(k for k in keys if value(ours, k) != value(theirs, k))


def describe() -> str:
    """The table of settings, for people."""
    lines = []
    for path, s in flat(SETTINGS).items():
        default = "recipe's" if s.default is None else repr(s.default)
        choices = f" [{' | '.join(s.choices)}]" if s.choices else ""
        lines.append(f"{path:28} {default:36} {s.doc}{choices}")
    return "\n".join(lines)
