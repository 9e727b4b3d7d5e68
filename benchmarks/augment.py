"""How long the device takes to augment a batch, by policy.

    python benchmarks/augment.py [--size=224] [--batch=1024] [--policies=none,rand,three] [--rounds=30] [--output=FILE]

Times flip, policy, normalization, erasing, mixup and cutmix as one jitted call on random images that lie on the device
already; each round has another step and other images' keys, so that the share of costly ops varies as in training.
Needs no data.
"""

import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from common import cells, parser, save, table  # also lets deit_jax be imported from the checkout

from deit_jax.augment import augment_train
from deit_jax.config import SETTINGS

RECIPE = {name: setting.default for name, setting in SETTINGS["augment"].items()}


def random_batch(size: int, batch: int) -> dict[str, jax.Array]:
    """Blocks of colour with some noise: histograms and gradients as uneven as a photo's."""
    key_blocks, key_noise, key_label = jax.random.split(jax.random.key(0), 3)
    cells = jax.random.randint(key_blocks, (batch, 8, 8, 3), 0, 256)
    images = jax.image.resize(cells.astype(jnp.float32), (batch, size, size, 3), "linear")
    images = jnp.clip(images + jax.random.normal(key_noise, images.shape) * 8, 0, 255).astype(jnp.uint8)
    zeros = jnp.zeros(batch, jnp.int32)
    label = jax.random.randint(key_label, (batch,), 0, 1000)
    return {"image": images, "label": label, "index": jnp.arange(batch), "epoch": zeros, "repeat": zeros}


def measure(batch: dict[str, jax.Array], policy: str, rounds: int) -> tuple[list[float], float]:
    """(milliseconds of each round, seconds to compile)."""
    cfg = SimpleNamespace(**RECIPE | {"policy": policy})
    step = jax.jit(lambda batch, key, step: augment_train(batch, key, step, cfg, 1000, shards=1))
    key, start = jax.random.key(1), time.perf_counter()
    jax.block_until_ready(step(batch, key, 0))
    compiling, times = time.perf_counter() - start, []
    for i in range(rounds):
        shown = jax.block_until_ready({**batch, "epoch": batch["epoch"] + i})
        start = time.perf_counter()
        jax.block_until_ready(step(shown, key, i))
        times.append(1e3 * (time.perf_counter() - start))
    return times, compiling


def main() -> None:
    flags = parser(__doc__, size=224, batch=1024, policies="none,rand,three", rounds=30, output="").parse_args()
    batch = jax.jit(random_batch, static_argnums=(0, 1))(flags.size, flags.batch)
    found = {policy: measure(batch, policy, flags.rounds) for policy in flags.policies.split(",")}
    device = jax.devices()[0].device_kind
    print(f"{flags.batch} images of {flags.size}x{flags.size} on one {device}, jax {jax.__version__}; milliseconds")
    rows = [[policy, *cells(times, ".2f"), f"{compiling:.1f}"] for policy, (times, compiling) in found.items()]
    print(table(["policy", "min", "median", "max", "compile s"], rows))
    save(flags.output, flags=vars(flags), device=device, milliseconds=found)


if __name__ == "__main__":
    main()
