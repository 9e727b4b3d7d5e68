"""configs/folder.py: batch, length and rates from the number of images."""

import math

import pytest

from configs import folder
from deit_jax.config import resolve, validate
from deit_jax.data.loader import steps_per_epoch
from deit_jax.data.sources import open_sources
from deit_jax.errors import UserError
from deit_jax.train.optimizer import describe_schedule, num_steps


def photos(root, per_class: int, classes: int = 5, splits=("train", "val")):
    for split in splits:
        for c in range(classes):
            place = root / split / f"class{c}"
            place.mkdir(parents=True)
            for i in range(per_class if split == splits[0] else 2):
                (place / f"{i}.jpg").write_bytes(b"x")
    return root


def opened(root, more: str = ""):
    config = resolve(folder.get_config(f"data={root}{more}"))
    validate(config)
    train, _ = open_sources(config)
    per_epoch = steps_per_epoch(config, train)
    return config, len(train), per_epoch, num_steps(config, per_epoch)


@pytest.mark.parametrize(("per_class", "batch"), [(2, 8), (10, 16), (40, 16), (41, 16), (400, 128)])
def test_every_pass_holds_all_images_and_a_run_has_enough_steps(tmp_path, per_class, batch):
    config, images, per_epoch, total = opened(photos(tmp_path, per_class))
    assert (images, config.batch_size) == (5 * per_class, batch)
    assert per_epoch == math.ceil(images / batch)
    assert total >= 0.8 * folder.MIN_STEPS
    assert total <= 1.6 * folder.MIN_STEPS or config.epochs == 30
    assert "rising to" in describe_schedule(config, per_epoch)


@pytest.mark.parametrize("images", [10, 50, 100, 200, 500, 1000, 1500, 2000, 3000, 5000, 10_000, 50_000])
def test_a_few_images_less_change_no_setting(monkeypatch, images):
    """Removing a few broken images leaves the recipe as it was."""
    found = []
    for count in (images, images - 1, images - images // 50):
        monkeypatch.setattr(folder, "count_images", lambda config, count=count: count)
        config = folder.get_config("data=photos")
        found.append((config.batch_size, config.epochs, config.optimizer.lr, config.optimizer.head_lr_scale))
    assert found[0] == found[1] == found[2]


def test_held_out_images_do_not_count_and_tables_count_as_folders_do(tmp_path):
    config, images, _, _ = opened(photos(tmp_path / "whole", 4, splits=("",)))
    assert (images, config.batch_size) == (18, 16)
    photos(tmp_path, 10)
    rows = [f"{p.relative_to(tmp_path)},{p.parent.name}" for p in sorted(tmp_path.glob("train/*/*.jpg"))]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    assert opened(tmp_path / "list.csv")[0].batch_size == 16


def test_data_that_is_not_here_is_left_to_the_run(tmp_path):
    config = folder.get_config(f"data={tmp_path / 'nowhere'}")
    assert (config.batch_size, config.epochs) == (128, 30)
    with pytest.raises(UserError, match="is not a folder"):
        open_sources(resolve(config))


def test_from_scratch_is_a_recipe_of_its_own(tmp_path):
    root = photos(tmp_path, 400)
    scratch, fine = opened(root, ",init=none")[0], opened(root)[0]
    assert (scratch.init, scratch.epochs, scratch.optimizer.lr, scratch.optimizer.head_lr_scale) == ("", 300, 5e-4, 1.0)
    assert (fine.init, fine.epochs) == ("facebook/deit-small-patch16-224", 39)
    assert (fine.optimizer.lr, fine.optimizer.head_lr_scale) == (2e-3, 10.0)
