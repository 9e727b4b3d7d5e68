"""The position embedding at another image size."""

import numpy as np
import pytest
import seeded

import deit_jax
from deit_jax.errors import UserError


def test_pos_embed_is_resized_as_pytorch_does():
    pos = seeded.tensor("pos_embed", (1, 198, 192))
    golden = np.load(seeded.GOLDEN / "pos_embed.npz")["24"]  # its first 32 of 192 dimensions, without the prefix
    resized = np.asarray(deit_jax.resize_pos_embed(pos, (24, 24), prefix_tokens=2))
    assert resized.shape == (1, 578, 192)
    np.testing.assert_array_equal(resized[:, :2], pos[:, :2])
    np.testing.assert_allclose(resized[:, 2:, :32], golden, atol=1e-5 * np.abs(golden).max())


def test_pos_embed_of_a_grid_that_is_no_square():
    pos = seeded.tensor("pos_embed", (1, 1 + 6 * 4, 8))
    assert deit_jax.resize_pos_embed(pos, (3, 5), old_grid=(6, 4)).shape == (1, 16, 8)
    there = deit_jax.resize_pos_embed(pos, (6, 4), old_grid=(6, 4))
    np.testing.assert_array_equal(there, pos)
    with pytest.raises(UserError, match=r"24 positions behind 1 prefix tokens, which are not a square"):
        deit_jax.resize_pos_embed(pos, (3, 5))
    with pytest.raises(UserError, match="not 5x5"):
        deit_jax.resize_pos_embed(pos, (3, 5), old_grid=(5, 5))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("grid", [(24, 24), (7, 7), (10, 31)])
def test_pos_embed_equals_torch(grid, antialias):
    torch = pytest.importorskip("torch", reason="needs torch: the golden value carries the proof without it")
    pos = seeded.tensor("pos_embed", (1, 197, 12))
    square = torch.from_numpy(pos[:, 1:].reshape(1, 14, 14, 12)).permute(0, 3, 1, 2)
    options = {"mode": "bicubic", "align_corners": False, "antialias": antialias}
    theirs = torch.nn.functional.interpolate(square, size=grid, **options)
    ours = deit_jax.resize_pos_embed(pos, grid, prefix_tokens=1, antialias=antialias)[:, 1:]
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).reshape(1, -1, 12), atol=2e-6)
    if not antialias:  # DINOv2's official code without registers: a scale, not a size
        scale = ((grid[0] + 0.1) / 14, (grid[1] + 0.1) / 14)
        theirs = torch.nn.functional.interpolate(square, scale_factor=scale, mode="bicubic", antialias=False)
        ours = deit_jax.resize_pos_embed(pos, grid, prefix_tokens=1, offset=0.1)[:, 1:]
        np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).reshape(1, -1, 12), atol=2e-6)
