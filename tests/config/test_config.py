"""Every setting has a meaning, recipes fill what is theirs, and wrong values are named before anything runs."""

import pytest

from deit_jax.config import (
    RECIPES,
    SETTINGS,
    default_config,
    deit,
    differences,
    flat,
    resolve,
    settings_table,
    validate,
)
from deit_jax.errors import UserError


def test_every_setting_is_described_once():
    settings = flat(SETTINGS)
    assert set(settings) == set(flat(default_config()))
    table = settings_table()
    for name, setting in settings.items():
        assert setting.doc
        assert sum(line.split()[0] == name for line in table.splitlines()) == 1


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_recipe_fills_exactly_what_is_left_to_it(recipe):
    left = {name for name, setting in flat(SETTINGS).items() if setting.default is None}
    assert set(RECIPES[recipe]) == left
    config = default_config()
    config.recipe, config.optimizer.clip_norm = recipe, 1.5
    resolved = flat(resolve(config))
    assert None not in resolved.values()
    assert resolved["optimizer.clip_norm"] == 1.5  # given by hand: stays
    assert config.augment.repeats is None  # the given config is not changed
    validate(resolve(config))


def test_deit_arguments():
    hard = deit("small", "distill=hard,epochs=1000")
    assert (hard.model.name, hard.epochs) == ("deit_small_distilled_patch16_224", 1000)
    assert (hard.teacher.name, hard.teacher.init) == ("regnety_160", "timm/regnety_160.deit_in1k")
    soft = deit("tiny", "distill=soft,teacher=runs/regnety_040.safetensors")
    assert soft.teacher.name == "regnety_040"
    assert deit("base").model.name == "deit_base_patch16_224"
    with pytest.raises(UserError, match="did you mean epochs"):
        deit("base", "epoch=3")
    with pytest.raises(UserError, match="is not a whole number"):
        deit("base", "epochs=many")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("recipe", "papper", "did you mean paper"),
        ("batch_size", 0, "at least 1"),
        ("seed", 2**64, r"seed is 18446744073709551616: it must be below 2\^64"),
        ("augment.erasing", 1.5, "0..1"),
        ("optimizer.lr", -1.0, "must be a number from 0 on"),
        ("optimizer.lr", float("nan"), "must be a number from 0 on"),
        ("augment.mean", (0.5, 0.5), "augment.mean is .* it must be 3 numbers"),
        ("augment.crop_scale", ("a", "b"), "it must be 2 numbers"),
        ("teacher.std", (1.0,), "it must be 3 numbers"),
        ("augment.mean", (123.675, 116.28, 103.53), "augment.mean is .* from 0 to 1, .* divide those of 0..255 by 255"),
        ("augment.std", (58.4, 57.1, 57.4), "augment.std is .* above 0 to 1, .* divide those of 0..255 by 255"),
        ("augment.std", (0.2, 0.0, 0.2), "augment.std is .* above 0 to 1"),
        ("augment.std", (0.2, -0.2, 0.2), "augment.std is .* above 0 to 1"),
        ("augment.mean", (0.5, -0.1, 0.5), "augment.mean is .* from 0 to 1"),
        ("teacher.mean", (127.5, 127.5, 127.5), "teacher.mean is .* from 0 to 1"),
        ("ablate.seeds", ("a",), "it must be whole numbers"),
        ("data.eval_batch_size", 10, "not divisible by 8 devices: use --config.data.eval_batch_size=8"),
        ("model.name", "deit_tiny_distilled_patch16_224", "leaves the distillation head .* untrained"),
        ("epochs", 0, "steps and epochs are both 0"),
        ("data.crop", 0.0, "data.crop is 0"),
        ("batch_size", 1020, "not divisible by 8 devices: use --config.batch_size=1024"),
        ("data.root", "s3://b/imagenet", "data.root s3://b/imagenet is not a path .* use a path, or gs://"),
        ("init", "a.safetensors,file:///b", "init file:///b is not a path of this machine"),
        ("teacher.name", "gs://b/teacher", "teacher.name is gs://b/teacher: it takes no address"),
        ("accumulate", 3, "8 devices x 3 parts: use --config.batch_size=1032"),
    ],
)
def test_values_out_of_range_are_named_with_the_fix(path, value, message):
    config = default_config()
    config.update_from_flattened_dict({path: value})
    with pytest.raises(UserError, match=message):
        validate(resolve(config), num_devices=8)


def test_differences_ignore_what_does_not_shape_a_run():
    ours, theirs = flat(default_config()), flat(default_config())
    theirs |= {"data.workers": 7, "optimizer.lr": 1.0, "augment.crop_scale": [0.08, 1.0]}
    del theirs["class_loss"]  # a run from before this setting was made
    assert differences(ours, theirs) == ["optimizer.lr"]


@pytest.mark.parametrize(
    ("recipe", "kind", "alpha", "tau"),
    [
        ("paper", "soft", 0.1, 3.0),
        ("tuned", "soft", 0.1, 3.0),
        ("released", "soft", 0.5, 1.0),
        ("paper", "hard", 0.5, 1.0),
        ("released", "hard", 0.5, 1.0),
        ("function_matching", "soft", 1.0, 1.0),
    ],
)
def test_recipe_sets_lambda_and_temperature_however_the_kind_is_chosen(recipe, kind, alpha, tau):
    config = default_config()
    config.recipe, config.distill.kind = recipe, kind
    resolved = resolve(config)
    assert (resolved.distill.alpha, resolved.distill.tau) == (alpha, tau)
    assert resolved.distill.normalization == ("released" if recipe == "released" else "paper")
    config.distill.alpha, config.distill.tau = 0.3, 2.0
    resolved = resolve(config)
    assert (resolved.distill.alpha, resolved.distill.tau) == (0.3, 2.0), "what is set stays"


def test_function_matching_replaces_defaults_and_leaves_what_is_set():
    config = default_config()
    config.recipe, config.distill.kind = "function_matching", "soft"
    config.augment.flip, config.augment.mixup = 0.0, 0.3
    found = resolve(config, given={"augment.erasing"})
    a = found.augment
    assert (found.epochs, a.policy, a.cutmix, a.repeats, a.crop_scale) == (1200, "none", 0.0, 1, (0.05, 1.0))
    assert (a.mixup, a.flip, a.erasing) == (0.3, 0.0, 0.25), "set by the config or the command line"
    assert (found.optimizer.weight_decay, found.optimizer.clip_norm, found.distill.alpha) == (0.01, 1.0, 1.0)
    assert flat(resolve(found)) == flat(found), "resolving twice changes nothing"
    validate(found)
    config.steps = 5
    assert resolve(config).epochs == 300


def test_deit3_is_the_published_command_of_its_smallest_model():
    config = default_config()
    config.recipe, config.model.name = "deit3", "deit3_small_patch16_224"
    found = resolve(config)
    o, a = found.optimizer, found.augment
    assert (o.name, o.lr, o.lr_batch, o.weight_decay, o.clip_norm) == ("lamb", 4e-3, 0, 0.05, 1.0)
    assert (o.warmup_epochs, o.warmup_lr, o.lr_update) == (5.0, 1e-6, "epoch")
    assert (found.epochs, found.batch_size, found.class_loss) == (800, 2048, "sigmoid")
    assert (a.policy, a.crop, a.color_jitter, a.flip, a.repeats) == ("three", "inception", 0.3, 0.5, 3)
    assert (a.mixup, a.cutmix, a.label_smoothing, a.erasing) == (0.8, 1.0, 0.0, 0.0)
    assert (found.model.drop_path_rate, found.data.crop) == (0.05, 1.0)
    validate(found)
    found.augment.label_smoothing = 0.1
    with pytest.raises(UserError, match="takes no smoothed labels: use --config.augment.label_smoothing=0.0"):
        validate(found)


@pytest.mark.parametrize(("alpha", "head"), [(1.0, "class"), (0.0, "distillation")])
def test_no_head_is_left_untrained(alpha, head):
    config = default_config()
    config.distill.kind, config.distill.alpha = "soft", alpha
    config.model.name = "deit_tiny_distilled_patch16_224"
    with pytest.raises(UserError, match=f"leaves the {head} head of deit_tiny_distilled_patch16_224 untrained"):
        validate(resolve(config))
    config.model.name = "deit_tiny_patch16_224"
    validate(resolve(config))
