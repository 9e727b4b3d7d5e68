"""`deit_jax.optimizer.decay_mask` and `.schedule` for other code; they are in `deit_jax/train/optimizer.py`."""

from deit_jax.train.optimizer import decay_mask, make_optimizer, num_steps, schedule

__all__ = ["decay_mask", "make_optimizer", "num_steps", "schedule"]
