"""A run that starts from weights normalizes images as these were trained with."""

import json

from helpers import state_of
from safetensors.numpy import save_file

from deit_jax.config import default_config
from deit_jax.weights.load import adopt_normalization

HALF = (0.5, 0.5, 0.5)
PLAIN = "deit_digits_patch4_16"


def test_a_run_adopts_the_normalization_of_its_first_weights(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder/model.safetensors", tmp_path / f"{PLAIN}.safetensors"):
        save_file(state_of(PLAIN, num_classes=10), path)
    config = {"architecture": PLAIN, "pretrained_cfg": {"mean": HALF, "std": HALF}}
    (tmp_path / "folder/config.json").write_text(json.dumps(config))
    path = str(tmp_path / "folder")
    config = default_config()
    config.init = path
    adopted = adopt_normalization(config)
    assert (adopted.augment.mean, adopted.augment.std) == (HALF, HALF)
    assert adopt_normalization(config, explicit=["augment.mean"]) is config
    config.augment.mean = (0.1, 0.2, 0.3)
    assert adopt_normalization(config) is config
    silent = default_config()
    silent.init = str(tmp_path / f"{PLAIN}.safetensors")
    assert adopt_normalization(silent).augment.mean == default_config().augment.mean
    begun = default_config()
    begun.init = "owner/gone"  # a run that has begun needs its first weights no more
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps({"augment.mean": HALF, "augment.std": HALF}))
    assert adopt_normalization(begun, tmp_path / "run").augment.mean == HALF
