"""What `deit_jax/models/grouped_conv.py` is for: grouped convolutions on CPU, by XLA's own code and by ours:
grouped ones as dense pieces, depthwise ones as sums of shifted images.

    python benchmarks/grouped_conv.py [--batch=8] [--rounds=7] [--output=FILE]

Forward pass and gradient of a 3x3 convolution in several RegNetY and EfficientNet-B0, at its image size, both ways in
turn; dense is a convolution of the same channels without groups.
"""

import time

from common import middle, parser, save, spread, table  # also lets deit_jax be imported from the checkout

# model: (pixels a side, channels, channels a group) of its third stage, where most of its arithmetic is
LAYERS = {"regnety_002": (14, 152, 8), "regnety_016": (14, 336, 24), "regnety_160": (14, 1232, 112)}
LAYERS |= {"efficientnet_b0": (56, 144, 1)}  # its largest at stride 1 but for the first


def main() -> None:
    import jax

    from deit_jax.models.grouped_conv import conv_general_dilated

    flags = parser(__doc__, batch=8, rounds=7, output="").parse_args()
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def native(x, w, groups):
        return jax.lax.conv_general_dilated(x, w, feature_group_count=groups, **options)

    def quick(x, w, groups):
        return conv_general_dilated(x, w, feature_group_count=groups, **options)

    rows, seconds = [], {}
    for model, (size, width, group) in LAYERS.items():
        groups = width // group
        x = jax.random.normal(jax.random.key(0), (flags.batch, size, size, width))
        grouped = jax.random.normal(jax.random.key(1), (3, 3, group, width))
        dense = jax.random.normal(jax.random.key(2), (3, 3, width, width))
        ways = {"XLA's grouped": (native, grouped, groups), "ours": (quick, grouped, groups)}
        ways["dense"] = (native, dense, 1)
        for kind in ("forward", "gradient"):
            calls = {}
            for name, (conv, kernel, count) in ways.items():
                run = lambda x, w, conv=conv, count=count: conv(x, w, count)
                if kind == "gradient":
                    run = jax.grad(lambda x, w, run=run: (run(x, w) ** 2).sum(), (0, 1))
                calls[name] = (jax.jit(run), kernel)
                jax.block_until_ready(calls[name][0](x, kernel))
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(flags.rounds):
                for name, (call, kernel) in calls.items():
                    begun = time.perf_counter()
                    jax.block_until_ready(call(x, kernel))
                    times[name].append(1e3 * (time.perf_counter() - begun))
            native_ms, our_ms = (spread(times[name])["median"] for name in ("XLA's grouped", "ours"))
            shown = [*map(middle, times.values()), f"{native_ms / our_ms:.1f}x"]
            rows.append([f"{model}: {size} px, {groups} x {group}", kind, *shown])
            seconds[f"{model} {kind}"] = times
    print(f"{jax.devices()[0].device_kind}, batch {flags.batch}; milliseconds, median (min .. max)")
    print(table(["convolution", "", *ways, "won"], rows))
    save(flags.output, batch=flags.batch, milliseconds=seconds)


if __name__ == "__main__":
    main()
