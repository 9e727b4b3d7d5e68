"""Position embeddings at another image size: PyTorch's bicubic interpolation, for weights of one grid in another."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deit_jax.arrays import AnyArray
from deit_jax.errors import UserError

A = -0.75  # PyTorch's cubic coefficient; jax.image.resize takes -0.5, as PyTorch does with antialiasing


def cubic(distance: Float[np.ndarray, "*shape"], a: float = A) -> Float[np.ndarray, "*shape"]:
    """Keys' cubic convolution kernel (1981) with coefficient `a`."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def resize_matrix(
    old: int, new: int, *, antialias: bool = False, offset: float = 0.0
) -> Float[np.ndarray, "{new} {old}"]:
    """The weight of each of `old` samples in each of `new`: bicubic, pixel centres at halves (align_corners=False).

    The border is repeated; with `antialias` the kernel is as wide as a new pixel, and cut at the border. Old pixels per
    new one: old / (new + offset).
    """
    scale = old / (new + offset)
    centre = (np.arange(new) + 0.5) * scale - 0.5
    if antialias:
        weights = cubic((np.arange(old) - centre[:, None]) / max(scale, 1.0), a=-0.5)
        return weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        at = np.floor(centre) + tap
        np.add.at(matrix, (np.arange(new), np.clip(at, 0, old - 1).astype(int)), cubic(centre - at))
    return matrix


def resize_pos_embed(
    pos_embed: Float[AnyArray, "1 positions dim"],
    grid: tuple[int, int],
    *,
    prefix_tokens: int = 1,
    old_grid: tuple[int, int] | None = None,
    antialias: bool = False,
    offset: float = 0.0,
) -> Float[Array, "1 new_positions dim"]:
    """The position embedding for a grid of (rows, columns) patches, as PyTorch's bicubic interpolation makes it.

    Args:
        pos_embed: positions of the class (and distillation) token, then of the patches row by row.
        grid: new patches, (rows, columns).
        prefix_tokens: leading positions of other tokens than patches; they are kept as they are.
        old_grid: present patches, (rows, columns); None: a square.
        antialias: PyTorch's `antialias=True`, as DINOv2 with registers has it.
        offset: added to the new rows and columns for the scale alone; DINOv2 without registers has 0.1.

    Raises UserError where `old_grid` does not fit the number of positions.
    """
    patches = pos_embed.shape[1] - prefix_tokens
    side = math.isqrt(max(patches, 0))
    rows, columns = old_grid or (side, side)
    if patches < 1 or rows * columns != patches:
        given = f"{rows}x{columns}" if old_grid else "a square"
        raise UserError(
            f"pos_embed has {patches} positions behind {prefix_tokens} prefix tokens, which are not {given}: "
            "give prefix_tokens and old_grid=(rows, columns)"
        )
    if (rows, columns) == tuple(grid):
        return jnp.asarray(pos_embed)
    prefix, image = pos_embed[:, :prefix_tokens], pos_embed[:, prefix_tokens:].reshape(1, rows, columns, -1)
    vertical, horizontal = (
        jnp.asarray(resize_matrix(old, new, antialias=antialias, offset=offset), pos_embed.dtype)
        for old, new in zip((rows, columns), grid, strict=True)
    )
    resized = jnp.einsum("yr,xc,brcd->byxd", vertical, horizontal, image, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([prefix, resized.reshape(1, grid[0] * grid[1], -1)], axis=1)
