"""Schedule and decay mask against the official code's; the rules of the other schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import TINY
from seeded import GOLDEN

from deit_jax import models
from deit_jax.config import default_config, resolve
from deit_jax.errors import UserError
from deit_jax.train.optimizer import (
    decay_mask,
    describe_schedule,
    ema_decay_at,
    frozen_mask,
    lr_factors,
    make_optimizer,
    schedule,
    stop_frozen,
)
from deit_jax.weights.names import Timm, entries

TRAINING = np.load(GOLDEN / "training.npz")


def test_released_schedule_is_the_official_one_in_all_300_epochs():
    rate = jax.jit(schedule(default_config()))
    for within in (0, 600, 1250):  # one rate an epoch, whatever the step
        rates = np.array([rate(epoch * 1251 + within) for epoch in range(300)])
        np.testing.assert_allclose(rates, TRAINING["schedule/lr_used_by_epoch"], rtol=1e-5)


@pytest.fixture
def by_step():
    config = default_config()
    config.recipe, config.epochs, config.batch_size = "paper", 20, 1024
    return config


def test_paper_schedule_rises_to_its_peak_and_falls_to_its_scaled_floor(by_step):
    rate = jax.jit(schedule(by_step, 100))
    rates = np.array([rate(step) for step in range(2001)])
    peak = 5e-4 * 1024 / 512
    np.testing.assert_allclose([rates[0], rates[500], rates[2000]], [2e-6, peak, 2e-5], rtol=1e-5)
    assert (np.diff(rates[:500]) > 0).all()
    assert (np.diff(rates[500:2000]) < 0).all()
    assert rates.argmax() == 500


@pytest.mark.parametrize(
    ("changes", "first", "peak", "middle"),
    [
        ({"scale_floors": False}, 1e-6, 1e-3, None),
        ({"lr_batch": 0}, 1e-6, 5e-4, None),  # a rate for any batch size is the peak
        ({"schedule": "constant"}, 2e-6, 1e-3, 1e-3),
    ],
)
def test_settings_of_the_schedule(by_step, changes, first, peak, middle):
    by_step.optimizer.update(changes)
    rate = schedule(by_step, 100)
    np.testing.assert_allclose([rate(0), rate(500), rate(1000)], [first, peak, middle or rate(1000)], rtol=1e-5)


def test_warm_up_is_at_most_half_of_a_short_run(by_step):
    by_step.steps = 40
    rates = np.array([schedule(by_step, 100)(step) for step in range(41)])
    assert rates.argmax() == 20


def test_floors_never_lie_above_the_peak():
    """At a small batch the scaled peak is below min_lr: the cosine must not rise to it."""
    config = default_config()
    config.epochs, config.batch_size, config.optimizer.lr = 20, 8, 5e-4
    config.optimizer.lr_update, config.optimizer.warmup_lr, config.optimizer.min_lr = "step", 1e-4, 1e-5
    rates = np.array([schedule(config, 100)(step) for step in range(0, 2000, 50)])
    np.testing.assert_allclose(rates, 5e-4 * 8 / 512, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"recipe": "paper"}, "2e-06 at first, rising to 0.001 in 500 warm-up steps, 2e-05 at the end"),
        ({"epochs": 300}, "1e-06 at first, rising to 0.000999 in 600 warm-up steps, 1.01e-05 at the end"),
        ({"epochs": 1}, "1e-06 at first, 1e-06 at the end"),
    ],
)
def test_the_schedule_is_described_in_one_line(changes, line):
    config = default_config()
    config.update_from_flattened_dict({"epochs": 20, "batch_size": 1024} | changes)
    assert describe_schedule(resolve(config), 100) == f"learning rate: {line}"


def test_the_averages_decay_warms_up_where_asked():
    config = resolve(default_config())
    assert ema_decay_at(config, 5) == 0.99996
    config.optimizer.ema_warmup = True
    np.testing.assert_allclose([ema_decay_at(config, step) for step in (0, 8, 90)], [0.1, 0.5, 0.91], rtol=1e-6)
    assert ema_decay_at(config, 10**7) == pytest.approx(0.99996)


def apex_lamb(params, grads, decays, lr, decay, steps):
    """apex's FusedLAMB (csrc/multi_tensor_lamb.cu) in float64: grad_averaging, bias_correction, no nvlamb."""
    beta1, beta2, eps, max_norm = 0.9, 0.999, 1e-8, 1.0
    params = {key: p.astype(np.float64) for key, p in params.items()}
    m, v = ({key: np.zeros_like(p) for key, p in params.items()} for _ in range(2))
    for step in range(1, steps + 1):
        norm = np.sqrt(sum((grads[key].astype(np.float64) ** 2).sum() for key in params))
        for key, p in params.items():
            g = grads[key] / max(norm / max_norm, 1)
            m[key] = beta1 * m[key] + (1 - beta1) * g
            v[key] = beta2 * v[key] + (1 - beta2) * g * g
            update = m[key] / (1 - beta1**step) / (np.sqrt(v[key] / (1 - beta2**step)) + eps)
            update = update + decay * decays[key] * p
            p_norm, u_norm = np.linalg.norm(p), np.linalg.norm(update)
            ratio = p_norm / u_norm if decays[key] and p_norm and u_norm else 1.0
            params[key] = p - lr * ratio * update
    return params


def test_lamb_is_apexs_for_each_layer():
    """As in the official run: a tensor per layer, no decay and no trust ratio for the tokens and what has one axis."""
    config = resolve(default_config())
    o = config.optimizer
    o.name, o.clip_norm, o.weight_decay, lr = "lamb", 1.0, 0.05, 4e-3
    options = {"num_classes": 5, "img_size": 32, "depth": 3}
    _, shapes, _ = models.abstract(models.constructor("deit3_small_patch16_224", embed_dim=12, num_heads=3, **options))
    rng = np.random.default_rng(0)
    draw = lambda x: rng.standard_normal(x.shape).astype(np.float32)
    params, grads = jax.tree.map(draw, shapes), jax.tree.map(draw, shapes)
    tensors = lambda tree: {
        entry.key: np.array(entry.view({"params": tree})) for entry in entries({"params": tree}, Timm())
    }
    official = {"pos_embed", "cls_token"}  # `no_weight_decay` of models_v2.py, beside timm's `len(shape) == 1`
    theirs, theirs_grads = tensors(params), tensors(grads)
    decays = {key: x.ndim > 1 and key not in official for key, x in theirs.items()}
    mask = tensors(jax.tree.map(lambda on, x: np.full(x.shape, on), decay_mask(params), params))
    assert {key: bool(x.all()) for key, x in mask.items()} == decays
    assert any(key.endswith("ls1.gamma") for key in decays)

    tx = make_optimizer(config)
    update, state = jax.jit(tx.update), tx.init(params)
    for _ in range(3):
        updates, state = update(grads, state, params)
        params = jax.tree.map(lambda p, u: p - lr * u, params, updates)
    expected = apex_lamb(theirs, theirs_grads, decays, lr, 0.05, 3)
    for key, found in tensors(params).items():
        np.testing.assert_allclose(found, expected[key], rtol=2e-5, atol=2e-6, err_msg=key)


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
@pytest.mark.parametrize(
    ("model", "heads"),
    [(TINY, {"head", "head_dist"}), ("regnety_digits", {"head"}), ("efficientnet_b0", {"classifier"})],
)
def test_heads_learn_at_their_own_rate(name, model, heads):
    config = resolve(default_config())
    config.optimizer.name = name
    _, shapes, _ = models.abstract(models.constructor(model, num_classes=3))
    other = min(set(shapes) - heads, key=lambda part: len(jax.tree.leaves(shapes[part])))
    shapes = {part: shapes[part] for part in (*heads, other)}  # the rest takes long to compile
    params = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), shapes)
    grads = jax.tree.map(lambda x: np.full(x.shape, 1e-3, np.float32), shapes)

    def update(scale):
        config.optimizer.head_lr_scale = scale
        tx = make_optimizer(config)
        return jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params)[0])(grads, params)

    plain, scaled = update(1.0), update(10.0)
    for part in plain:
        factor = 10.0 if part in heads else 1.0
        jax.tree.map(lambda a, b, f=factor: np.testing.assert_allclose(b, f * a, rtol=1e-6), plain[part], scaled[part])


def test_learning_rates_fall_layer_by_layer():
    """BEiT's and MAE's factors: decay^(layers above), the heads being the layer above the last block."""
    config = resolve(default_config())
    config.optimizer.layer_decay, config.optimizer.head_lr_scale = 0.5, 10.0
    _, params, _ = models.abstract(models.constructor(TINY, num_classes=3))
    factors = lr_factors(params, config)
    assert factors["blocks"]["mlp"]["fc1"]["kernel"].ravel().tolist() == [0.25, 0.5]  # of depth 2
    assert {factors[part] for part in ("cls_token", "dist_token", "pos_embed")} == {0.125}
    assert factors["patch_embed"]["kernel"] == 0.125
    assert (factors["norm"]["scale"], factors["head"]["kernel"], factors["head_dist"]["bias"]) == (1.0, 10.0, 10.0)
    with pytest.raises(UserError, match=r"layer_decay is 0.5, but .* is no ViT"):
        lr_factors(models.abstract(models.constructor("regnety_digits", num_classes=3))[1], config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("freeze", "trained"), [("backbone", {"head", "head_dist"}), ("blocks|embed|token", {"norm", "head", "head_dist"})]
)
def test_what_is_frozen_stays_and_has_no_gradient(freeze, trained):
    config = resolve(default_config())
    config.optimizer.freeze = freeze
    _, shapes, _ = models.abstract(models.constructor(TINY, num_classes=3))
    params = jax.tree.map(lambda x: jnp.full(x.shape, 0.5, x.dtype), shapes)
    total = lambda params: sum(jnp.sum(x) for x in jax.tree.leaves(stop_frozen(params, freeze)))
    grads, tx = jax.jit(jax.grad(total))(params), make_optimizer(config)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)  # weight decay too leaves them
    for found in grads, updates:
        moved = {part for part, arrays in found.items() if any(np.any(x) for x in jax.tree.leaves(arrays))}
        assert moved == trained


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("attention", "fits none of the parameters: blocks"),
        (".", "fits all parameters"),
        ("(", "no regular expression"),
    ],
)
def test_a_wrong_expression_is_named(freeze, message):
    _, params, _ = models.abstract(models.constructor(TINY, num_classes=3))
    with pytest.raises(UserError, match=message):
        frozen_mask(params, freeze)


def test_decay_mask_is_the_official_one():
    _, params, _ = models.abstract(models.constructor("deit_tiny_distilled_patch16_224"))
    mask = decay_mask(params)
    flags = {}
    for entry in entries({"params": params}, Timm()):
        value = mask
        for name in entry.path[1:]:
            value = value[name]
        flags[entry.key] = value
    official = dict(zip(TRAINING["param_names"].tolist(), TRAINING["decayed"].tolist(), strict=True))
    assert flags == official
    assert not decay_mask(params, decay_dist_token=False)["dist_token"]


def test_decay_mask_is_of_names_in_any_form():
    _, params, _ = models.abstract(models.constructor("regnety_digits"))
    for path, decays in jax.tree_util.tree_leaves_with_path(decay_mask(params)):
        assert decays == (path[-1].key == "kernel")
    state = nnx.state(models.create_model(TINY), nnx.Param)
    assert jax.tree.leaves(decay_mask(state)) == jax.tree.leaves(decay_mask(nnx.to_pure_dict(state)))


def steps_of(name: str, gradients: np.ndarray) -> dict[str, np.ndarray]:
    """A kernel and a bias after as many updates as there are gradients (the same for both), at learning rate 0.1."""
    config = resolve(default_config())
    config.optimizer.name, config.optimizer.weight_decay = name, 0.05
    tx = make_optimizer(config)
    params = {"kernel": np.array([1.0, -2.0], np.float32), "bias": np.array([1.0, -2.0], np.float32)}
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(dict.fromkeys(params, np.asarray(gradient, np.float32)), state, params)
        params = {key: np.asarray(params[key] - 0.1 * updates[key]) for key in params}
    return params


GRADIENTS = np.array([[0.5, -1.0], [0.1, 0.2], [-3.0, 0.4]])


def test_adamw_is_the_published_rule():
    """Loshchilov & Hutter 2019, Algorithm 2, in float64; biases do not decay."""
    after = steps_of("adamw", GRADIENTS)
    for key, decay in (("kernel", 0.05), ("bias", 0.0)):
        p, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
        for t, g in enumerate(GRADIENTS, start=1):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            p = p - 0.1 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * p)
        np.testing.assert_allclose(after[key], p, rtol=1e-5)


def test_sgd_is_pytorchs():
    """torch.optim.SGD(momentum=0.9, nesterov=True, weight_decay=…), as its documentation states it."""
    after = steps_of("sgd", GRADIENTS)
    for key, decay in (("kernel", 0.05), ("bias", 0.0)):
        p, buffer = np.array([1.0, -2.0]), np.zeros(2)
        for g in GRADIENTS:
            g = g + decay * p
            buffer = 0.9 * buffer + g
            p = p - 0.1 * (g + 0.9 * buffer)
        np.testing.assert_allclose(after[key], p, rtol=1e-5)


def test_clipping_bounds_the_gradient_before_adam():
    config = default_config()
    config.recipe = "tuned"
    tx = make_optimizer(resolve(config))
    params = {"kernel": np.zeros(4, np.float32)}
    gradient = {"kernel": np.full(4, 100.0, np.float32)}  # norm 200, clipped to 5
    _, state = tx.update(gradient, tx.init(params), params)
    first_moment = state[1].mu["kernel"]
    np.testing.assert_allclose(first_moment, 0.1 * 2.5, rtol=1e-5)
