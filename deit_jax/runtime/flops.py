"""The arithmetic of a function, counted from its jaxpr: for MFU, and for plans of machines that are not here."""

import math
from collections.abc import Callable, Iterator

import jax
import numpy as np


def count_flops(fn: Callable, *args, **kwargs) -> int:
    """Floating-point operations of the matrix products and convolutions in one call of `fn`: 2 per multiply-add.

    Nothing runs: `args` may be jax.ShapeDtypeStruct. As in the papers' figures, element-wise work counts nothing and a
    convolution's window counts whole at the border. A scan's body counts by its length, a `while` loop's once, of
    branches the most expensive one, and of code by platform (`jax.lax.platform_dependent`) the default's. What a
    checkpoint (remat) computes again counts again; what a compiled kernel (cuDNN, Pallas) computes inside does not: for
    MFU give a model with remat "none" and attention "einsum".
    """
    return _of_jaxpr(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def _of_jaxpr(jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_product(equation.invars[0].aval.shape, equation.invars[1].aval.shape, params["dimension_numbers"])
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    inner = [_of_jaxpr(jaxpr) for jaxpr in _inner(params)]
    if name == "cond":
        by_platform = params.get("branches_platforms") or ()
        return inner[by_platform.index(None)] if None in by_platform else max(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":  # its body is one device's
        mesh = params["mesh"].shape
        return sum(inner) * math.prod(mesh[axis] for axis in params.get("manual_axes", mesh))
    return sum(inner)


def _inner(params: dict) -> Iterator:
    """The jaxprs a call holds; of a function with its own derivative (custom_jvp, custom_vjp) only the function's."""
    for name, value in params.items():
        if name in ("jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd"):
            continue
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)  # a closed jaxpr holds an open one
            if hasattr(one, "eqns"):
                yield one


def _of_product(lhs: tuple[int, ...], rhs: tuple[int, ...], dimension_numbers) -> int:
    (_, contracted), (_, batch) = dimension_numbers
    free = math.prod(n for axis, n in enumerate(rhs) if axis not in (*contracted, *batch))
    return 2 * math.prod(lhs) * free


def _of_convolution(equation) -> int:
    """Each output element sums a window of the kernel's (grouped) input channels, less the taps that fall into holes:
    a strided convolution's gradient reads an image dilated by zeros, which need no multiplication."""
    params, out, kernel = equation.params, equation.outvars[0].aval.shape, equation.invars[1].aval.shape
    spec = params["dimension_numbers"]
    taps = 1
    for axis, (out_axis, kernel_axis) in enumerate(zip(spec.out_spec[2:], spec.rhs_spec[2:], strict=True)):
        first = np.arange(out[out_axis]) * params["window_strides"][axis] - params["padding"][axis][0]
        within = np.arange(kernel[kernel_axis]) * params["rhs_dilation"][axis]
        taps *= int(np.count_nonzero((first[:, None] + within) % params["lhs_dilation"][axis] == 0))
    return 2 * out[spec.out_spec[0]] * out[spec.out_spec[1]] * kernel[spec.rhs_spec[1]] * taps
