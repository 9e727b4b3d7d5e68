"""Checks of settings, made before any compilation: one line that names the setting and the fix."""

import math
from typing import Any

from deit_jax.config.settings import SETTINGS, Config, Setting, flat
from deit_jax.errors import UserError, nearest
from deit_jax.losses import OBJECTIVES
from deit_jax.runtime import storage
from deit_jax.runtime.mesh import mesh_sizes

IN_BUCKETS = ("init", "teacher.init", "distill.labels", "data.root")  # settings that may be gs://…
AT_LEAST_ONE = (
    "batch_size accumulate augment.mix_group augment.repeats log.every evaluate.every checkpoint.every checkpoint.keep"
    " label.k"
).split()
FRACTIONS = (
    "augment.flip augment.rand_prob augment.erasing augment.mix_switch augment.mix_prob augment.label_smoothing"
    " distill.alpha data.holdout data.crop data.max_broken model.drop_rate model.drop_path_rate optimizer.ema_decay"
    " optimizer.layer_decay optimizer.momentum optimizer.beta1 optimizer.beta2 teacher.drop_path_rate"
).split()


def check_setting(path: str, value: Any, setting: Setting) -> None:
    """Check one setting by itself: its choices, its range, the elements of a tuple. Raises UserError with the fix."""
    if setting.choices and value not in setting.choices:
        hint = nearest(str(value), setting.choices)
        raise UserError(f"{path} is '{value}'{hint}: use one of {', '.join(setting.choices)}")
    if isinstance(value, str) and "://" in value:
        if path not in IN_BUCKETS:
            raise UserError(f"{path} is {value}: it takes no address; those that do are {', '.join(IN_BUCKETS)}")
        for part in value.split(","):
            storage.check_address(path, part)
    if isinstance(value, tuple):
        check_tuple(path, value, setting.default)
    elif isinstance(value, int | float) and not path.startswith("mesh."):  # where -1 is the rest
        if not 0 <= value < math.inf:
            raise UserError(f"{path} is {value}: it must be a number from 0 on")
        if path == "seed" and value >= 2**64:
            raise UserError(f"seed is {value}: it must be below 2^64")
        if path in AT_LEAST_ONE and value < 1:
            raise UserError(f"{path} is {value}: it must be at least 1")
        if path in FRACTIONS and value > 1:
            raise UserError(f"{path} is {value}: it must lie in 0..1")


def check_tuple(path: str, value: tuple, default: tuple) -> None:
    """Raise UserError unless `value` has the elements its default shows: any number of names or seeds in `ablate.*`,
    else as many numbers; three where the default is empty, which then may stay empty."""
    number = lambda x: isinstance(x, int | float) and math.isfinite(x)
    if path.startswith("ablate."):
        kind = type(default[0])
        right = len(value) > 0 and all(type(x) is kind for x in value)
        expected = "whole numbers, as (0, 1, 2)" if kind is int else "names, as ('none', 'hard')"
    else:
        right = (len(value) == (len(default) or 3) and all(number(x) for x in value)) or value == default
        expected = f"{len(default) or 3} numbers" + (f", as {default}" if default else "")
        if right and path.endswith((".mean", ".std")):  # pixels are in 0..1
            least = 0 if path.endswith(".mean") else 1e-6
            right = all(least <= x <= 1 for x in value)
            expected = f"{'from 0' if not least else 'above 0'} to 1, as pixels are: divide those of 0..255 by 255"
    if not right:
        raise UserError(f"{path} is {value}: it must be {expected}")


def validate(config: Config, *, num_devices: int = 1) -> None:
    """Check a resolved config by itself: choices, ranges, divisibility. Raises UserError with the fix."""
    values = flat(config)
    for path, setting in flat(SETTINGS).items():
        check_setting(path, values[path], setting)
    if not (config.steps or config.epochs):
        raise UserError("steps and epochs are both 0: set --config.epochs or --config.steps")
    if config.data.crop == 0:
        raise UserError("data.crop is 0: give the fraction of the image to keep, 0.875 or 1.0")
    if config.data.device_size or config.data.cache == "device":
        for path, only in (("data.cache", "device"), ("data.resize", "exact"), ("augment.crop", "inception")):
            if values[path] != only:
                raise UserError(
                    f"{path} is {values[path]}, but devices that keep images (data.device_size, data.cache=device) need"
                    f" {only}: use --config.{path}={only}"
                )
    if num_devices > 1:
        mesh_sizes(num_devices, **config.mesh)
    for path, parts in (("batch_size", config.accumulate), ("data.eval_batch_size", 1)):
        rows, unit = values[path], num_devices * parts
        if rows % unit:
            at = f"{num_devices} devices" + (f" x {parts} parts" if parts > 1 else "")
            near = max(1, round(rows / unit)) * unit
            raise UserError(f"{path} {rows} is not divisible by {at}: use --config.{path}={near}")
    if config.class_loss == "sigmoid" and config.augment.label_smoothing:
        raise UserError("class_loss sigmoid takes no smoothed labels: use --config.augment.label_smoothing=0.0")
    objective = OBJECTIVES[config.distill.kind]
    features = objective.teacher == "features"
    if "_distilled" in config.model.name:
        what, head, other = "", "distillation", "an alpha between 0 and 1"
        if objective.term is None or features:
            what, other = f"distill.kind {config.distill.kind}", "kind second_cls"
        elif config.distill.alpha in (0, 1):
            what, head = f"distill.alpha {config.distill.alpha:g}", "class" if config.distill.alpha else head
        if what:
            raise UserError(
                f"{what} leaves the {head} head of {config.model.name} untrained: use"
                f" --config.model.name={config.model.name.replace('_distilled', '')}, or {other}"
            )
    if features and config.distill.labels:
        raise UserError(f"distill.kind {config.distill.kind} learns features, which no store has: unset distill.labels")
    if config.data.layout == "unlabelled":
        if not objective.teaches_classes or config.distill.alpha != 1:
            raise UserError(
                f"data.layout unlabelled has no labels, which distill.kind {config.distill.kind} with distill.alpha"
                f" {config.distill.alpha:g} needs: use --config.distill.kind=soft --config.distill.alpha=1"
            )
        for path in ("teacher.epochs", "train_baseline"):
            if values[path]:
                raise UserError(f"data.layout unlabelled has no labels, which {path} needs: set --config.{path}=0")
    if objective.term is not None and config.distill.tau <= 0:
        raise UserError(f"distill.tau is {config.distill.tau}: it must be above 0")
