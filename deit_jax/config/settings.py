"""Every setting: its type, its default, what it means, what it may be.

`python -m deit_jax.config` prints the whole table. A file in `configs/` starts from `default_config()` and changes
only what is particular to its run. A default of None means "as `recipe` says" (see `deit_jax.config.recipes`).

The classes below only declare: a run's config is an ml_collections.ConfigDict with these names, so that flags and
config files work as everywhere; type checkers see the classes.
"""

import dataclasses
import typing
from collections.abc import Collection
from typing import Any, Self

from deit_jax.losses import OBJECTIVES

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # PIL's
IMAGENET_TRAIN_IMAGES = 1_281_167


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting; `kind` is its type."""

    default: Any
    doc: str
    choices: Collection[str] = ()
    resumable: bool = False
    kind: type = object


def setting(default: Any, doc: str, choices: Collection[str] = ()) -> Any:
    """Declare a Setting; its annotation gives the type."""
    return Setting(default, doc, choices)


def resumable(default: Any, doc: str, choices: Collection[str] = ()) -> Any:
    """Declare a Setting that may change between a run and its continuation: it shapes neither images nor weights."""
    return Setting(default, doc, choices, resumable=True)


class GroupType(type):
    """`isinstance(config, Config)` is true of a ConfigDict with these settings."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return all(hasattr(instance, name) for name in cls.__annotations__)


class Group(metaclass=GroupType):
    """A group of settings: at run time an ml_collections.ConfigDict."""

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
    name: str = setting("deit_base_patch16_224", "a name of deit_jax.list_models(), or package.module:Class")
    num_classes: int = setting(0, "0: the dataset's")
    img_size: int = setting(0, "height and width of the images in pixels; 0: the one in the model's name")
    drop_path_rate: float = setting(None, "stochastic depth of the last block; rises linearly from 0 over the depth")
    drop_rate: float = setting(0.0, "dropout after a block's projections (EfficientNet: before the head)")
    dtype: str = setting("auto", "compute dtype; auto: bfloat16 on accelerators", ("auto", "float32", "bfloat16"))
    attention: str = resumable(
        "auto", "einsum stores the weights, cudnn is fused; auto: the fastest", ("auto", "einsum", "recompute", "cudnn")
    )
    remat: str = resumable(
        "none", "recompute for the backward pass; dots: all but products, full: blocks", ("none", "dots", "full")
    )
    scan_unroll: int = resumable(0, "blocks per iteration of the scan; 0: all on CPU and GPU, one on TPU")


class Distill(Group):
    kind: str = setting("none", "objective, see deit_jax/losses.py; one's own: package.module:name", OBJECTIVES)
    alpha: float = setting(
        None, "weight of the teacher's term (lambda): 0.5; soft: paper, tuned 0.1, function_matching 1"
    )
    tau: float = setting(None, "temperature of soft distillation; released: 1, paper and tuned: 3")
    tokens: str = setting("both", "of features: the class token's, the patches', both", ("class", "patches", "both"))
    normalization: str = setting(None, "soft loss: mean over the batch, or over classes too", ("paper", "released"))
    # what the labels belong to is recorded beside them
    labels: str = resumable("", "folder of stored teacher labels, of --mode=label; '': a live teacher")


class TeacherSettings(Group):
    name: str = setting(
        "regnety_160",
        "as model.name, or package.module:function; several, comma-separated, are averaged; '': its weights' model",
    )
    init: str = setting("", "its weights, as `init`; several, comma-separated")
    epochs: int = setting(0, "train the teacher on the same data first, from `init` or the seed; 0: load `init`")
    lr: float = setting(0.0, "learning rate of that training, per `optimizer.lr_batch` images; 0: the student's")
    drop_path_rate: float = setting(0.0, "drop path of that training")
    augment: str = setting("student", "of that training: the student's, or crops and flips alone", ("student", "light"))
    img_size: int = setting(0, "input size of the teacher in pixels; 0: the student's")
    mean: tuple[float, ...] = setting((), "normalization mean of the teacher's inputs; (): what its weights record")
    std: tuple[float, ...] = setting((), "normalization standard deviation of its inputs; (): what its weights record")
    dtype: str = setting("auto", "compute dtype of the teacher", ("auto", "float32", "bfloat16"))


class Label(Group):
    kind: str = resumable(
        "auto", "hard labels or the top k logits; auto: what distill.kind needs", ("auto", "hard", "topk")
    )
    k: int = resumable(10, "classes per view in a topk store")
    views: int = setting(0, "epochs of views, stored by --mode=label, that training repeats; 0: each epoch has its own")
    dtype: str = resumable("float16", "of a topk store's logits", ("float16", "float32"))


class Optimizer(Group):
    lr: float = setting(5e-4, "learning rate per `lr_batch` images: the peak is lr x batch_size / lr_batch")
    lr_batch: int = setting(512, "the batch size that `lr` is given for; 0: any, lr is the peak")
    name: str = setting("adamw", "sgd: with Nesterov momentum and coupled weight decay", ("adamw", "lamb", "sgd"))
    momentum: float = setting(0.9, "SGD")
    head_lr_scale: float = setting(1.0, "the heads' learning rate is this times the others'; above 1 for new heads")
    layer_decay: float = setting(1.0, "a ViT's learning rates fall by this per layer below the heads (BEiT, MAE)")
    freeze: str = setting("", "what is not trained: backbone (all but the heads), or a regular expression of names")
    schedule: str = setting("cosine", "after warm-up", ("cosine", "constant"))
    warmup_epochs: float = setting(None, "linear warm-up from warmup_lr")
    warmup_lr: float = setting(1e-6, "learning rate at step 0")
    min_lr: float = setting(1e-5, "learning rate at the end")
    scale_floors: bool = setting(None, "scale warmup_lr and min_lr with the batch size as lr (the release does not)")
    lr_update: str = setting(
        None, "the rate follows the step (paper), or the epoch, one epoch behind (timm)", ("step", "epoch")
    )
    weight_decay: float = setting(0.05, "decoupled, of kernels; not of biases, norms, cls_token, pos_embed")
    decay_dist_token: bool = setting(None, "decay the distillation token too (the release does)")
    beta1: float = setting(0.9, "AdamW, LAMB")
    beta2: float = setting(0.999, "AdamW, LAMB")
    eps: float = setting(1e-8, "AdamW, LAMB")
    clip_norm: float = setting(None, "largest global gradient norm; 0: no clipping")
    ema_decay: float = setting(0.99996, "decay of the EMA of the weights, which is evaluated too; 0: no EMA")
    ema_warmup: bool = setting(False, "raise that decay from 0.1 on as (1 + step) / (10 + step), for short runs")


class Augment(Group):
    crop: str = setting("inception", "simple: training crops are squares, as DeiT III's", ("inception", "simple"))
    crop_scale: tuple[float, float] = setting((0.08, 1.0), "inception: area of a crop as a fraction of the image's")
    crop_ratio: tuple[float, float] = setting((3 / 4, 4 / 3), "inception: aspect ratios of a crop")
    flip: float = setting(0.5, "probability of a horizontal flip")
    policy: str = setting("rand", "RandAugment, DeiT III's 3-Augment, or neither", ("rand", "three", "none"))
    rand_ops: int = setting(2, "RandAugment: ops per image, drawn with replacement")
    rand_magnitude: float = setting(9.0, "RandAugment: mean magnitude, of 10")
    rand_magnitude_std: float = setting(0.5, "RandAugment: its standard deviation")
    rand_prob: float = setting(0.5, "RandAugment: probability that a drawn op is applied")
    rand_resampling: str = setting("bicubic", "of RandAugment's warps", ("bicubic", "bilinear", "random"))
    color_jitter: float = setting(0.3, "3-Augment: brightness, contrast, saturation")
    erasing: float = setting(0.25, "probability of random erasing")
    mixup: float = setting(0.8, "alpha of mixup's Beta distribution; 0: off")
    cutmix: float = setting(1.0, "alpha of cutmix's Beta distribution; 0: off")
    mix_switch: float = setting(0.5, "probability of cutmix where both are on")
    mix_prob: float = setting(1.0, "probability that a group of images is mixed at all")
    mix_group: int = setting(64, "images mixed among themselves (the release's batch size per GPU)")
    label_smoothing: float = setting(0.1, "of the true labels")
    repeats: int = setting(None, "views per image and epoch (repeated augmentation)")
    mean: tuple[float, ...] = setting(IMAGENET_MEAN, "normalization mean, per channel of pixels in 0..1")
    std: tuple[float, ...] = setting(IMAGENET_STD, "normalization standard deviation")


class DataSettings(Group):
    name: str = setting("imagenet2012", "digits, a TFDS name, or package.module:function; a `root` comes first")
    # what it holds is compared by its fingerprint
    root: str = resumable("", "folder of class folders, table, shards, parquet, hf:user/name, or TFDS data_dir")
    columns: str = setting("", "of hf: and parquet with several: IMAGE,LABEL")
    train_split: str = setting("train", "folder or TFDS split to train on")
    eval_split: str = setting("", "split to evaluate on; '': the one that exists; holdout: held-out images")
    holdout: float = setting(0.1, "fraction of the images held out where the data has no evaluation split; 0: none")
    layout: str = setting(
        "auto", "unlabelled: without classes; classes: by root's folders", ("auto", "classes", "unlabelled")
    )
    limit: int = setting(0, "train on this many images, drawn by seed; 0: all")
    drop_last: bool = setting(True, "drop a pass's last, partial batch; False: fill it with the pass's first images")
    resize: str = setting("exact", "of crops: by PIL, or cykooz-resizer (5x as fast, off by 0.03)", ("exact", "fast"))
    crop: float = resumable(0.875, "evaluation: side of the centre crop / resized short side")
    interpolation: str = resumable("bicubic", "evaluation: of that resizing", INTERPOLATIONS)
    eval_batch_size: int = resumable(0, "0: batch_size; of --mode=evaluate 256 unless batch_size is given")
    workers: int = resumable(0, "processes that decode and crop; 0: threads of this process")
    threads: int = resumable(0, "decoding threads per process; 0: one per core, at most 16")
    prefetch: int = resumable(4, "batches held ready")
    cache: str = resumable(
        "auto",
        "decoded images: kept where they fit, in RAM, on the device (cropped there), or not",
        ("auto", "ram", "device", "none"),
    )
    device_size: int = setting(0, "cache=device: side of the squares training images are resized to; 0: as they are")
    exif: bool = setting(False, "turn photos as their EXIF orientation says (published ImageNet models do without)")
    max_broken: float = resumable(0.001, "fraction of unreadable training images above which a run stops")
    broken_floor: int = resumable(10, "this many unreadable training images never stop a run")
    eval_broken: str = resumable("wrong", "how an unreadable evaluation image counts", ("wrong", "skip"))


class Evaluate(Group):
    every: int = resumable(1, "epochs between evaluations; the last epoch is always evaluated")
    limit: int = resumable(0, "at most this many images, always the same, evenly over the classes; 0: all")
    fusion: str = resumable(
        None, "mean of the heads' logits (released) or probabilities (paper)", ("logits", "probabilities")
    )


class Checkpoint(Group):
    every: int = resumable(1, "epochs between checkpoints")
    keep: int = resumable(2, "newest ones kept, beside the best")


class LogSettings(Group):
    every: int = resumable(50, "steps between log lines")
    tensorboard: bool = resumable(True, "write TensorBoard events")
    trackers: str = resumable("", "more, comma-separated: trackio, wandb, mlflow (docs/reports.md)")


class Stability(Group):
    patience: int = setting(10, "consecutive non-finite steps before a roll-back; checked every `log.every` steps")
    rollbacks: int = setting(3, "roll-backs before the run stops")


class Mesh(Group):
    data: int = resumable(-1, "devices that split the batch and hold whole weights; -1: those that fsdp leaves")
    fsdp: int = resumable(1, "devices that split the batch and the stored weights; -1: the rest")


class Processes(Group):
    heartbeat_timeout: int = resumable(100, "seconds without a heartbeat that make a process lost")


class Ablate(Group):
    seeds: tuple[int, ...] = resumable((0, 1, 2), "seeds of --mode=ablate")
    arms: tuple[str, ...] = resumable(("none", "soft", "hard"), "arms of --mode=ablate")
    store_labels: bool = resumable(False, "store the teacher's labels once per seed, for all its arms")
    teacher_split: str = resumable("", "split that the teachers are chosen on; '': the students' evaluation split")


class Config(Group):
    """The settings of a run."""

    seed: int = setting(0, "every random number of a run is a function of it")
    recipe: str = setting(
        "released",
        "where paper and released code differ, which to follow",
        ("paper", "released", "tuned", "function_matching", "deit3"),
    )
    recipe_keeps: str = resumable("", "settings at their defaults that the recipe leaves so, separated by commas")
    class_loss: str = setting("softmax", "sigmoid: a binary cross-entropy per class (DeiT III)", ("softmax", "sigmoid"))
    init: str = setting("", "weights to start from: hub name, .safetensors, .pth or Orbax folder; '': random ones")
    batch_size: int = setting(1024, "images per step, over all devices and processes")
    epochs: int = setting(300, "passes over the data; with repeated augmentation still len(dataset) views per pass")
    steps: int = setting(0, "training steps; 0: as many as `epochs` makes")
    accumulate: int = resumable(1, "microbatches per step, to save memory")
    train_baseline: bool = resumable(False, "also train the same student without a teacher, for the report")
    model: Model
    distill: Distill
    teacher: TeacherSettings
    label: Label
    optimizer: Optimizer
    augment: Augment
    data: DataSettings
    evaluate: Evaluate
    checkpoint: Checkpoint
    log: LogSettings
    stability: Stability
    mesh: Mesh
    processes: Processes
    ablate: Ablate


def settings_of(group: type[Group]) -> dict[str, Any]:
    """{name: Setting, or the table of a group} of a class above, in its order."""
    return {
        name: settings_of(kind)
        if issubclass(typing.get_origin(kind) or kind, Group)
        else dataclasses.replace(getattr(group, name), kind=typing.get_origin(kind) or kind)
        for name, kind in group.__annotations__.items()
    }


SETTINGS: dict[str, Any] = settings_of(Config)


def flat(tree, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of a nested dictionary, a table of settings or a ConfigDict."""
    out = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if hasattr(value, "items") else {prefix + key: value}
    return out


def default_config() -> Config:
    """A locked ConfigDict with every setting at its default; assigning an unknown name raises."""
    import ml_collections  # only here: models, losses and the train step work on machines that lack it
    from ml_collections import config_dict

    def build(table):
        value = lambda one: config_dict.placeholder(one.kind) if one.default is None else one.default
        return ml_collections.ConfigDict({k: build(v) if isinstance(v, dict) else value(v) for k, v in table.items()})

    return typing.cast(Config, build(SETTINGS).lock())


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names of the settings that shape a run and differ between two flattened configs."""
    plain = lambda value: list(value) if isinstance(value, tuple) else value  # JSON has no tuples
    fixed = {path: one.default for path, one in flat(SETTINGS).items() if not one.resumable}
    get = lambda tree, path: plain(tree.get(path, fixed[path]))  # a setting made since is at its default
    return sorted(path for path in fixed if get(ours, path) != get(theirs, path))


def settings_table() -> str:
    """The table of settings: a line of name, default, meaning and choices for each."""
    lines = []
    for path, one in flat(SETTINGS).items():
        default = "recipe's" if one.default is None else repr(one.default)
        choices = f" [{' | '.join(one.choices)}]" if one.choices else ""
        lines.append(f"{path:28} {default:36} {one.doc}{choices}")
    return "\n".join(lines)
