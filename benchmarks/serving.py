"""Forward pass of a DeiT at batch 1 and 32 on CPU: jax, timm, and the exported file in onnxruntime and OpenVINO.

    python benchmarks/serving.py [--model=deit_tiny_patch16_224] [--batches=1,32] [--torch_python=PYTHON]
        [--rounds=5] [--seconds=2] [--patience=0] [--output=FILE]

All in float32, with random weights. The file is what `deit-jax export NAME model.onnx` writes. Each contestant is a
process; they take turns; those whose package is missing (`benchmarks/requirements.txt`) are left out.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import Contestant, answer, cells, import_timm, machine, middle, parser, ratios, save, table, take_turns
from model_step import serve_timm

CONTESTANTS = ("deit_jax", "timm", "onnxruntime", "openvino")


def make_file(model: str, folder: Path) -> Path:
    """An ONNX file of the model with timm's random weights."""
    from safetensors.torch import save_file

    from deit_jax.export import onnx_file
    from deit_jax.export.exportable import Form, load_exportable

    weights = folder / f"{model}.safetensors"
    save_file(import_timm().create_model(model).state_dict(), weights)
    onnx_file.save_onnx(onnx_file.make_onnx(load_exportable(str(weights), Form())), folder / "model.onnx")
    return folder / "model.onnx"


def forward(name: str, model: str, batch: int, file: str) -> Callable[[bool], None]:
    """A function that makes one call on a batch."""
    import numpy as np

    images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), np.float32)
    if name == "timm":
        return serve_timm(model, batch, compiled=False)["forward"]
    if name == "onnxruntime":
        from deit_jax.export.onnx_file import open_onnx

        run = open_onnx(Path(file))
        return lambda wait: run(images)
    if name == "openvino":
        import openvino

        in_float32 = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16, where the CPU has it
        compiled = openvino.compile_model(file, "CPU", in_float32)
        return lambda wait: compiled(images)
    import jax
    from flax import nnx

    import deit_jax
    from deit_jax.runtime.host_memory import keep_freed_memory

    keep_freed_memory()
    graphdef, state = nnx.split(deit_jax.create_model(model))
    step, pixels = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x)), images.transpose(0, 2, 3, 1)
    return lambda wait: step(state, pixels).block_until_ready()


def main() -> None:
    how = {"rounds": 5, "seconds": 2.0, "patience": 0.0, "output": "", "torch_python": sys.executable}
    line = parser(__doc__, model="deit_tiny_patch16_224", batches="1,32", serve="", batch=0, file="", **how)
    flags = line.parse_args()
    if flags.serve:
        answer(lambda: {"forward": forward(flags.serve, flags.model, flags.batch, flags.file)})
        return
    rows, times = [], {}
    with tempfile.TemporaryDirectory() as folder:
        what = [__file__, f"--model={flags.model}", f"--file={make_file(flags.model, Path(folder))}"]
        for batch in map(int, flags.batches.split(",")):
            command = lambda name, batch=batch: [
                flags.torch_python if name == "timm" else sys.executable, *what, f"--batch={batch}", f"--serve={name}"
            ]  # fmt: skip
            ready = [c for c in (Contestant(name, command(name)) for name in CONTESTANTS) if c.ready()]
            found = take_turns(ready, ["forward"], flags.rounds, flags.seconds, flags.patience)
            times[batch] = {name: values["forward"] for name, values in found.items()}
            for c in ready:
                c.stop()
                own = times[batch][c.name]
                ratio = middle(ratios(own, times[batch]["deit_jax"]), ".2f") if "deit_jax" in times[batch] else ""
                rows.append([c.name, str(batch), *cells([batch / t for t in own], ",.1f"), ratio])
    print(f"{flags.model}, {machine()['cpu']}, {machine()['cores']} cores")
    print(table(["", "batch", "images/s: min", "median", "max", "jax / it: median (min .. max)"], rows))
    save(flags.output, model=flags.model, seconds=times)


if __name__ == "__main__":
    main()
