"""How long the device takes to augment a batch, by policy.

    python benchmarks/augment.py [--size=224] [--batch=1024] [--policies=none,rand,three] [--rounds=30] [--output=FILE]

Times flip, policy, normalization, erasing, mixup and cutmix as one jitted call on random images that lie on the device
already; each round has another step and other images' keys, so that the share of costly ops varies as in training.
Prints a table and one line of JSON. Needs no data.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parent.parent))
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


def measure(batch: dict[str, jax.Array], policy: str, rounds: int) -> dict:
    """Milliseconds a batch (min, median, max), and seconds to compile."""
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
    times = {"min_ms": min(times), "median_ms": statistics.median(times), "max_ms": max(times)}
    return {"policy": policy, **{k: round(v, 3) for k, v in times.items()}, "compile_s": round(compiling, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--batch", type=int, default=1024, help="images a batch")
    parser.add_argument("--policies", default="none,rand,three")
    parser.add_argument("--rounds", type=int, default=30, help="timed batches a policy")
    parser.add_argument("--output", default="", help="file for the JSON, too")
    args = parser.parse_args()

    batch = jax.jit(random_batch, static_argnums=(0, 1))(args.size, args.batch)
    device = jax.devices()[0]
    rows = [measure(batch, policy, args.rounds) for policy in args.policies.split(",")]
    print(f"{args.batch} images of {args.size}x{args.size} on one {device.device_kind}, jax {jax.__version__}")
    print(f"{'policy':8}{'min ms':>10}{'median ms':>11}{'max ms':>10}{'images/s':>12}{'compile s':>11}")
    for row in rows:
        rate = 1e3 * args.batch / row["median_ms"]
        print(
            f"{row['policy']:8}{row['min_ms']:10.2f}{row['median_ms']:11.2f}{row['max_ms']:10.2f}"
            f"{rate:12,.0f}{row['compile_s']:11.1f}"
        )
    result = json.dumps({"device": device.device_kind, "size": args.size, "batch": args.batch, "rows": rows})
    print(result)
    if args.output:
        Path(args.output).write_text(result + "\n")


if __name__ == "__main__":
    main()
