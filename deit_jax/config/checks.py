"""Checks of settings, made before any compilation: one line that names the setting and the fix."""

import math
from collections.abc import Sequence
from pathlib import Path

from deit_jax.config.settings import RENAMED, SETTINGS, Config, flat
from deit_jax.config.suggest import suggestion
from deit_jax.errors import UserError, nearest
from deit_jax.runtime.mesh import mesh_sizes


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


IN_BUCKETS = ("init", "teacher.init", "distill.labels", "finetune.labels", "data.root")  # settings that may be gs://…


def validate(config: Config, *, num_devices: int = 1) -> None:
    """Check a resolved config by itself: choices, ranges, divisibility. Raises UserError with the fix."""
    values = flat(config)
    for path, setting in flat(SETTINGS).items():
        value = values[path]
        if setting.choices and value not in setting.choices:
            hint = nearest(str(value), setting.choices)
            raise UserError(f"{path} is '{value}'{hint}: use one of {', '.join(setting.choices)}")
        if isinstance(value, str) and "://" in value and path not in IN_BUCKETS:
            raise UserError(f"{path} is {value}: it takes no address; those that do are {', '.join(IN_BUCKETS)}")
        if path.startswith("mesh."):  # its own ranges; -1 is the rest
            continue
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise UserError(f"{path} is {value}: it must be a number from 0 on")
        if isinstance(setting.default, tuple) and isinstance(value, tuple):
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
    if num_devices > 1:  # those along mesh.tensor share their images
        num_devices //= mesh_sizes(num_devices, **config.mesh)["tensor"]
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


def check_config_file(path: str, shipped: Sequence[str] = ()) -> None:
    """Raise UserError, naming the nearest file beside it or shipped config, unless `path` is a file."""
    file = Path(path)
    if not file.is_file():
        known = [str(p) for p in sorted(file.parent.glob("*.py"))] if file.suffix == ".py" else list(shipped)
        there = f": there are {', '.join(known)}" if known else ""
        raise UserError(f"config {path} does not exist{nearest(path, known)}{there}")


def check_override(path: str, value: str | None) -> None:
    """Check one `--config.PATH=VALUE` before it is applied. Raises UserError for an unknown setting or a value of
    another type."""
    settings = flat(SETTINGS)
    if path in RENAMED:
        value = "-1" if path == "sharding" else ""
        raise UserError(f"config.{path} is now called {RENAMED[path]}: use --config.{RENAMED[path]}={value}")
    if path not in settings:
        groups = sorted({name.rpartition(".")[0] for name in settings} - {""})
        within = f": {path} is a group of settings, as --config.{path}.NAME=" if path in groups else ""
        fix = within or ": python -m deit_jax.config lists all"
        raise UserError(f"config.{path} is not a setting{suggestion(path, settings)}{fix}")
    kind = settings[path].kind or type(settings[path].default)
    if value is None or kind in (str, tuple):
        return
    try:
        readers = {int: int, float: float, bool: {"true": True, "false": False, "1": True, "0": False}.__getitem__}
        readers[kind](value.lower())
    except (ValueError, KeyError):
        article = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise UserError(f"config.{path} is '{value}': it must be {article}") from None
