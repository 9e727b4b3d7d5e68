"""The normalization statistics of a run that starts from weights: the weights', unless the run sets its own."""

import json
from collections.abc import Collection
from pathlib import Path

from deit_jax.config import IMAGENET_MEAN, IMAGENET_STD
from deit_jax.runtime import storage
from deit_jax.weights.load import read_metadata

Normalization = tuple[tuple[float, ...], tuple[float, ...]]


def adopt_normalization(config, workdir: str | Path = "", explicit: Collection[str] = ()):
    """The config with `augment.mean` and `.std` of the weights that `config.init` names.

    Args:
        config: resolved.
        workdir: of the run; one that has begun keeps what it began with, even if its first weights are gone.
        explicit: names of the settings that the command line gives.

    Returns `config` itself where it has no init or sets a mean or deviation, or the weights have none.
    """
    ours = tuple(config.augment.mean), tuple(config.augment.std)
    is_set = ours != (IMAGENET_MEAN, IMAGENET_STD) or {"augment.mean", "augment.std"} & set(explicit)
    if not config.init or is_set:
        return config
    theirs = recorded_normalization(workdir)
    if theirs is None:
        metadata = read_metadata(config.init)
        theirs = (metadata.mean, metadata.std) if metadata.mean and metadata.std else None
    if theirs in (None, ours):
        return config
    config = config.copy_and_resolve_references()
    config.augment.mean, config.augment.std = theirs
    return config


def recorded_normalization(workdir: str | Path) -> Normalization | None:
    """Mean and deviation in the record of a run that has begun in `workdir`, else None."""
    try:
        recorded = json.loads((storage.as_path(workdir) / "config.json").read_text()) if workdir else {}
        return tuple(recorded["augment.mean"]), tuple(recorded["augment.std"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none has begun; a damaged record is told where the folder is claimed
