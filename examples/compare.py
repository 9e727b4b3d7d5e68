"""Find the first layer at which two implementations of a model differ, by their activations.

    python examples/compare.py WEIGHTS --timm            timm's model with the same weights (needs torch and timm)
    python examples/compare.py WEIGHTS --npz=FILE.npz    activations saved by name, with the input under "images"
    python examples/compare.py WEIGHTS OTHER_WEIGHTS     the same model with other weights

prints the first layer whose output differs and by how much; `--all` prints every layer. For a port of your own:

    ours = compare.activations(my_nnx_model, images)
    theirs = compare.torch_activations(their_torch_model, images)
    print(compare.report(ours, theirs))

Layers are matched by name, so give yours the names of the original's.
"""

import argparse
import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import core

from deit_jax import models
from deit_jax.command import command
from deit_jax.errors import UserError
from deit_jax.models.vit import ViT
from deit_jax.weights import load_model, load_weights
from deit_jax.weights.names import Timm
from deit_jax.weights.write import tensors

TOLERANCE = 1e-4


def activations(model: nnx.Module, images) -> dict[str, np.ndarray]:
    """The output of every layer in evaluation mode, by its name ("blocks.3.attn.qkv"), in the order they finish.

    The stacked blocks of a ViT are run one after the other. Batch normalizations are left out: timm's apply the
    activation too.

    Args:
        model: one of this package's, or any NNX module that takes images.
        images: normalized, (B, H, W, 3).
    """
    images = jax.numpy.asarray(images)
    seen: dict[str, np.ndarray] = {}
    if not isinstance(model, ViT):
        with recording(model, "", seen):
            model(images)
        return seen
    with recording(model, "", seen):
        x = model.embed(images)
    graphdef, stacked = nnx.split(model.blocks)
    for i in range(model.depth):
        block = nnx.merge(graphdef, jax.tree.map(lambda array, i=i: array[i], stacked))
        with recording(block, f"blocks.{i}", seen):
            x = block(x)
    with recording(model, "", seen):
        x = model.norm(x)
        model.head(x[:, 0])
        if model.two_heads:
            model.head_dist(x[:, 1])
    return seen


@contextlib.contextmanager
def recording(module: nnx.Module, prefix: str, seen: dict[str, np.ndarray]):
    """A context in which every call of a layer of `module` puts its output into `seen`, under `prefix` and its path."""
    names = {id(layer): ".".join(map(str, path)) for path, layer in nnx.iter_modules(module)}
    names = {key: ".".join(filter(None, [prefix, name])) for key, name in names.items()}
    classes = {type(layer) for _, layer in nnx.iter_modules(module)} - {nnx.BatchNorm}
    originals = {cls: cls.__call__ for cls in classes if "__call__" in vars(cls)}

    def watched(original):
        def call(self, *args, **kwargs):
            out = original(self, *args, **kwargs)
            name = names.get(id(self))
            if name and isinstance(out, jax.Array) and not isinstance(out, core.Tracer):
                seen[name] = np.asarray(out)
            return out

        return call

    try:
        for cls, original in originals.items():
            cls.__call__ = watched(original)
        yield
    finally:
        for cls, original in originals.items():
            cls.__call__ = original


def torch_activations(model, images) -> dict[str, np.ndarray]:
    """The output of every layer of a PyTorch module in evaluation mode, by its name there, with channels last.

    images: normalized, (B, H, W, 3).
    """
    import torch  # pyright: ignore[reportMissingImports]  optional

    seen: dict[str, np.ndarray] = {}

    def hook(name):
        def keep(_module, _inputs, out):
            if isinstance(out, torch.Tensor):
                array = out.detach().float().cpu().numpy().copy()  # the next layer may work in place
                seen[name] = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array

        return keep

    handles = [layer.register_forward_hook(hook(name)) for name, layer in model.named_modules() if name]
    try:
        with torch.no_grad():
            model.eval()(torch.from_numpy(np.ascontiguousarray(np.asarray(images).transpose(0, 3, 1, 2))))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Per layer that both have, in our order: the largest difference over the largest magnitude of theirs.

    Infinity where the sizes differ or a value is not finite.
    """
    out = {}
    for name, a in ours.items():
        if name not in theirs:
            continue
        b = np.asarray(theirs[name], np.float32)
        if a.size != b.size:
            out[name] = float("inf")
            continue
        a = np.asarray(a, np.float32).reshape(b.shape)  # our linear layers see tokens flattened
        error = float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-30))
        out[name] = error if np.isfinite(error) else float("inf")
    return out


def report(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tolerance: float = TOLERANCE, *, every: bool = False
) -> str:
    """What `differences` found, as text: the first layer beyond `tolerance`, or that none is."""
    errors = differences(ours, theirs)
    if not errors:
        return f"no layer has the same name on both sides (ours: {', '.join(list(ours)[:3])}, …)"
    lines = [f"{name:32} {error:.1e}" for name, error in errors.items()] if every else []
    beyond = [name for name, error in errors.items() if not error <= tolerance]
    if not beyond:
        worst = max(errors, key=errors.__getitem__)
        lines.append(f"{len(errors)} layers agree; the largest difference is {errors[worst]:.1e}, at {worst}")
        return "\n".join(lines)
    name = beyond[0]
    agreed = list(errors)[: list(errors).index(name)]
    where = f"after {len(agreed)} layers that agree, {agreed[-1]} last" if agreed else "the first layer compared"
    if ours[name].size != np.size(theirs[name]):
        how = f"has shape {ours[name].shape} here, {np.shape(theirs[name])} there"
    else:
        how = f"differs by {errors[name]:.1e} of its largest magnitude"
    lines.append(f"{name} {how} ({where}; tolerance {tolerance:g})")
    return "\n".join(lines)


def timm_activations(source: str, name: str, num_classes: int, images) -> dict[str, np.ndarray]:
    """Those of timm's model of that name, with the weights of `source`."""
    try:
        import timm  # pyright: ignore[reportMissingImports]  optional
        import torch  # pyright: ignore[reportMissingImports]  optional
    except Exception as error:  # torchvision's import fails in its own ways
        raise UserError(f"--timm needs torch and timm, which cannot be imported ({error}): pip install timm") from error

    size = {"img_size": images.shape[1:3]} if issubclass(models.find(name)[0], ViT) else {}
    theirs = timm.create_model(name, num_classes=num_classes, **size)
    state = tensors(load_weights(source, name=name).tree, Timm())
    theirs.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()}, strict=False)
    return torch_activations(theirs, images)


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python examples/compare.py", description="Compare models layer by layer.")
    parser.add_argument("weights", metavar="WEIGHTS", help="hub name, .safetensors or .pth file, Orbax folder")
    parser.add_argument("other", metavar="OTHER_WEIGHTS", nargs="?", help="weights to compare with")
    parser.add_argument("--timm", action="store_true", help="compare with timm's model on the same weights")
    parser.add_argument("--npz", help="compare with activations by layer name; the input under 'images'")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share of a layer's largest magnitude")
    parser.add_argument("--all", action="store_true", help="print every layer")
    args = parser.parse_args(arguments)
    if (args.other is not None) + args.timm + (args.npz is not None) != 1:
        raise UserError("nothing to compare with: give one of OTHER_WEIGHTS, --timm and --npz=FILE")
    print(run(args))


def run(args: argparse.Namespace) -> str:
    model: Any = load_model(args.weights)
    size = model.img_size if isinstance(model.img_size, tuple) else (model.img_size,) * 2
    images = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    if args.npz:
        if not Path(args.npz).is_file():
            raise UserError(f"--npz {args.npz} does not exist: save activations by name with numpy.savez")
        theirs = dict(np.load(args.npz))
        if "images" not in theirs:
            raise UserError(f"--npz {args.npz} lacks the array 'images', the normalized input (B, H, W, 3)")
        images = theirs.pop("images")
    elif args.timm:
        loaded = load_weights(args.weights)
        theirs = timm_activations(args.weights, loaded.name, loaded.num_classes, images)
    else:
        theirs = activations(load_model(args.other), images)
    return report(activations(model, images), theirs, args.tolerance, every=args.all)


if __name__ == "__main__":
    main()
