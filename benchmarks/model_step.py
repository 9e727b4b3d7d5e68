"""Train step and forward pass of a DeiT: this package, timm as it is, timm with torch.compile.

    python benchmarks/model_step.py [--model=deit_tiny_patch16_224] [--batch=32] [--torch_python=PYTHON]
        [--rounds=5] [--seconds=2] [--patience=0] [--variant=model.attention=cudnn,model.scan_unroll=12 …]
        [--contestants=ours,eager,compile] [--output=FILE]

Ours is the whole train step: augmentation on the device, gradient, AdamW, average of the weights. timm's has no
augmentation and no average. On a GPU both compute in bfloat16 (timm by autocast), on CPU in float32. Each contestant
is a process; they take turns. `--variant` adds one of ours with other settings.
"""

import sys
from pathlib import Path

from common import (
    Contestant,
    answer,
    cells,
    changes_of,
    import_timm,
    machine,
    middle,
    on_gpu,
    parser,
    ratios,
    save,
    settings,
    spread,
    table,
    take_turns,
)

NAMES = {"ours": "deit_jax", "eager": "timm", "compile": "timm + torch.compile"}


def serve_ours(model: str, batch: int, changes: dict) -> dict:
    """This package, as `main.py` runs it."""
    from deit_jax.runtime import host_memory

    if not on_gpu():
        host_memory.keep_freed_memory()
    import jax

    from deit_jax.benchmark import Workload

    work = Workload(settings({"model.name": model, "batch_size": batch, **changes}))

    def caller(function):
        def call(wait):
            out = function()
            if wait:
                jax.block_until_ready(out)

        return call

    memory = work.step.memory_analysis()
    bytes_ = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    FACTS.update(
        flops=work.flops(), compile_s=work.compile_seconds, step_bytes=bytes_, device=jax.devices()[0].device_kind
    )
    return {name: caller(getattr(work, name)) for name in ("train", "forward", "augment")}


def serve_timm(model: str, batch: int, compiled: bool) -> dict:
    """timm's model under PyTorch's best known settings: fused attention and AdamW, bfloat16 autocast on a GPU."""
    import torch

    timm = import_timm()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    net = timm.create_model(model, drop_path_rate=0.1).to(device).train()
    test_net = timm.create_model(model).to(device).eval()
    for parameter in test_net.parameters():
        parameter.requires_grad_(False)
    size = net.patch_embed.img_size[0]
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-4, weight_decay=0.05, fused=True)
    images = torch.randn(batch, 3, size, size, device=device)
    targets = torch.randn(batch, 1000, device=device).softmax(-1)
    run, test = (torch.compile(net), torch.compile(test_net)) if compiled else (net, test_net)
    cast = torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")

    def train(wait):
        optimizer.zero_grad(set_to_none=True)
        with cast:
            logits = run(images)
        loss = -(targets * torch.log_softmax(logits.float(), -1)).sum(-1).mean()
        loss.backward()
        optimizer.step()
        end(wait)

    def forward(wait):
        with torch.no_grad(), cast:
            test(images)
        end(wait)

    def end(wait):
        if wait and device == "cuda":
            torch.cuda.synchronize()

    return {"train": train, "forward": forward}


FACTS: dict = {}


def serve(flags) -> None:
    kind, _, rest = flags.serve.partition(":")
    if kind == "ours":
        prepare = lambda: serve_ours(flags.model, flags.batch, changes_of(list(filter(None, rest.split(",")))))
    else:
        prepare = lambda: serve_timm(flags.model, flags.batch, kind == "compile")
    answer(prepare, lambda: FACTS)


def main() -> None:
    who = {"torch_python": sys.executable, "contestants": "ours,eager,compile", "serve": ""}
    how = {"rounds": 5, "seconds": 2.0, "patience": 0.0, "output": ""}
    line = parser(__doc__, model="deit_tiny_patch16_224", batch=32, **who, **how)
    line.add_argument("--variant", action="append", default=[], help="settings of another contestant of ours")
    flags = line.parse_args()
    if flags.serve:
        serve(flags)
        return

    kinds = {NAMES[k]: (k, k) for k in flags.contestants.split(",")}
    kinds |= {f"deit_jax, {text}": ("ours", f"ours:{text}") for text in flags.variant}
    running: dict[str, Contestant] = {}
    for name, (kind, served) in sorted(kinds.items(), key=lambda item: item[1][0] == "ours"):
        python = sys.executable if kind == "ours" else flags.torch_python
        what = [f"--model={flags.model}", f"--batch={flags.batch}", f"--serve={served}"]
        log = Path(f"{flags.output}.{len(running)}.log") if flags.output else None
        running[name] = Contestant(name, [python, __file__, *what], log)
        if kind == "ours" and on_gpu():  # XLA times kernels while it compiles: one at a time; elsewhere all together
            running[name].ready()
    ready = []
    for c in (running[name] for name in kinds):
        if c.ready():
            ready.append(c)
        else:
            print(f"left out: {c.name}: {c.facts['missing']}")
    if not ready:
        sys.exit(1)
    times = take_turns(ready, ["train", "forward", "augment"], flags.rounds, flags.seconds, flags.patience)
    for c in running.values():
        c.stop()
    print(describe(flags, ready, times))
    facts = {name: c.facts for name, c in running.items()}
    save(flags.output, model=flags.model, batch=flags.batch, contestants=facts, seconds=times)


def describe(flags, ready: list[Contestant], times: dict) -> str:
    from deit_jax.runtime.hardware import accelerator

    ours = next((c for c in ready if c.name == NAMES["ours"]), None)
    known = accelerator(ours.facts["device"]) if ours else None
    where = machine()
    lines = [f"{flags.model}, batch {flags.batch}, {where['gpu'] or where['cpu']}, {where['cores']} cores"]
    header = ["", "what", "images/s: min", "median", "max", "ours / theirs: median (min .. max)"]
    header += ["share of peak"] if known else []
    rows = []
    for what in ("train", "forward", "augment"):
        for c in ready:
            if not times[c.name].get(what):
                continue
            row = [c.name, what, *cells([flags.batch / t for t in times[c.name][what]], ",.1f")]
            compared = ours and c is not ours
            row.append(middle(ratios(times[c.name][what], times[ours.name][what]), ".2f") if compared else "")
            if known:
                flops = ours.facts["flops"].get(what)
                seconds = spread(times[c.name][what])["median"]
                row.append(f"{flops / seconds / known.peak:.1%}" if flops else "")
            rows.append(row)
    lines.append(table(header, rows))
    for c in ready:
        others = max(c.facts.get("others", [0]))
        if others > 0.05:
            lines.append(f"{c.name}: other programs used up to {others:.0%} of the machine meanwhile")
    for c in ready:
        compiled = f", its step compiled in {c.facts['compile_s']:.1f} s" if "compile_s" in c.facts else ""
        size = f", {c.facts['step_bytes'] / 2**30:.1f} GiB" if "step_bytes" in c.facts else ""
        lines.append(f"{c.name}: ready after {c.facts['prepared_s']:.1f} s{compiled}{size}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
