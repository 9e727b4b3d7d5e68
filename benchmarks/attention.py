"""Which attention: two products kept for the backward pass, the same computed again, cuDNN's; value, gradient and time.

    python benchmarks/attention.py [--dtype=bfloat16] [--images=256] [--heads=12] [--rounds=7] [--output=FILE]

Also says how far each lies from float32 products of the same rounded arguments, so that a fused kernel is checked
where it runs. Token counts: a plain and a distilled DeiT at 224 px, and a plain one at 384.
"""

from common import middle, parser, save, table

TOKENS = (197, 198, 577)


def main() -> None:
    flags = parser(__doc__, dtype="bfloat16", images=256, heads=12, rounds=7, output="").parse_args()

    import einops
    import jax
    import jax.numpy as jnp

    from deit_jax.models import kernels
    from deit_jax.runtime.timing import calls_within, time_once

    dtype = jnp.dtype(flags.dtype)

    def attended(name):
        attention = kernels.find_attention(name, dtype, 64)

        def run(qkv):
            q, k, v = einops.rearrange(qkv, "b n (k h d) -> k b h n d", k=3, h=flags.heads)
            return einops.rearrange(attention(q, k, v), "b h n d -> b n (h d)")

        return run

    fused = ["cudnn"] if kernels.has_fused_attention(dtype, 64) else []
    ways = {name: attended(name) for name in ("einsum", "recompute", *fused)}
    gradient = lambda run: lambda x, g: jax.vjp(run, x)[1](g)[0]
    rows, results = [], {}
    for tokens in TOKENS:
        images = max(1, flags.images * 197**2 // tokens**2)
        qkv = jax.random.normal(jax.random.key(0), (images, tokens, 3 * 64 * flags.heads)).astype(dtype)
        upstream = jax.random.normal(jax.random.key(1), (images, tokens, 64 * flags.heads)).astype(dtype)
        few, few_upstream = (a[:2].astype(jnp.float32) for a in (qkv, upstream))
        with jax.default_matmul_precision("highest"):
            plain = attended("einsum")
            exact, exact_grad = plain(few), gradient(plain)(few, few_upstream)
        calls, times = {}, {}
        for name, run in ways.items():
            forward, both = jax.jit(run), jax.jit(gradient(run))
            try:
                off = float(jnp.abs(forward(qkv)[:2] - exact).max() / jnp.abs(exact).max())
                off_grad = float(jnp.abs(both(qkv, upstream)[:2] - exact_grad).max() / jnp.abs(exact_grad).max())
            except Exception as error:  # a kernel that does not run here; the others shall be heard
                print(f"left out: {name}, {tokens} tokens: {type(error).__name__}: {error}"[:300])
                continue
            results[f"{name} {tokens}"] = {"error": off, "gradient_error": off_grad}
            calls[name] = {
                "forward": lambda forward=forward, qkv=qkv: forward(qkv),
                "gradient": lambda both=both, qkv=qkv, upstream=upstream: both(qkv, upstream),
            }
            times[name] = {"forward": [], "gradient": []}
        counts = {(n, kind): calls_within(calls[n][kind], 0.2) for n in calls for kind in calls[n]}
        for _ in range(flags.rounds):
            for name, kinds in calls.items():
                for kind, call in kinds.items():
                    times[name][kind].append(1e3 * time_once(call, counts[name, kind]))
        for name in calls:
            found = results[f"{name} {tokens}"]
            shown = [middle(values, ".2f") for values in times[name].values()]
            shown += [f"{found[key]:.1e}" for key in ("error", "gradient_error")]
            rows.append([f"{name}, {images} x {tokens}", *shown])
            found["milliseconds"] = times[name]
    print(f"{jax.devices()[0].device_kind}, {dtype}, {flags.heads} heads of 64; milliseconds, median (min .. max)")
    header = ["attention, images x tokens", "forward", "forward and backward", "error", "of the gradient"]
    print(table(header, rows))
    save(flags.output, flags=vars(flags), results=results)


if __name__ == "__main__":
    main()
