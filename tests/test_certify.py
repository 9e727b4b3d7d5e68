"""`certify`: the verdict, its table, and what it refuses."""

import pytest
from helpers import SMALL, folder_of_images, state_of
from safetensors.numpy import save_file

from deit_jax import certify, models
from deit_jax.classes import imagenet
from deit_jax.errors import UserError


@pytest.fixture
def labelled(tmp_path):
    """Twelve images of three ImageNet classes, the sixth to the eighth."""
    folder_of_images(tmp_path / "val", classes=3, images=4)
    for i, synset in enumerate(imagenet.synsets()[5:8]):
        (tmp_path / f"val/class{i}").rename(tmp_path / "val" / synset)
    return tmp_path / "val"


@pytest.mark.slow
def test_certify_counts_what_is_right(tmp_path, labelled, monkeypatch, capsys):
    folder, name = labelled, "deit_tiny_patch16_224"
    state = state_of(name)
    state["head.bias"][6] = 1e3  # it says the seventh class, whatever it sees
    save_file(state, tmp_path / "w.safetensors")
    monkeypatch.setitem(certify.PUBLISHED, name, (str(tmp_path / "w.safetensors"), {0.875: 33.3, 1.0: 72.2}))
    with pytest.raises(SystemExit) as stopped:
        certify.main([f"--data={folder}", f"--models={name}"])
    assert stopped.value.code == 1
    said = capsys.readouterr().out
    assert f"| {name} | 0.875 | 12 | 33.333 | 33.3 | +0.033 | pass |" in said
    assert "| 72.2 | -38.867 | FAIL |" in said


def test_verdict_is_within_five_hundredths():
    assert certify.verdict(72.15, 72.2) == certify.verdict(72.25, 72.2) == "pass"
    assert certify.verdict(72.149, 72.2) == certify.verdict(72.251, 72.2) == "FAIL"


def test_certify_knows_the_published_models():
    for name, (hub, scores) in certify.PUBLISHED.items():  # timm's crops, which the registry knows too
        assert name in hub
        if name.startswith("tf_efficientnet"):
            assert list(scores) == [models.find(name)[1]["crop"]]
    with pytest.raises(UserError, match="'deit_tiny' is not published .did you mean deit_tiny_"):
        certify.certify("", ["deit_tiny"])


def test_bad_input_of_certify(tmp_path, capsys, monkeypatch):
    save_file(state_of(SMALL, num_classes=3, img_size=16), tmp_path / "w.safetensors")
    monkeypatch.setitem(certify.PUBLISHED, SMALL, (str(tmp_path / "w.safetensors"), {0.9: 50.0}))
    with pytest.raises(UserError, match="mine has 2 classes .'class0', 'class1'., .* have 3 and do not name them"):
        certify.certify(str(folder_of_images(tmp_path / "mine")), [SMALL])
    with pytest.raises(SystemExit, match="2"):
        certify.main([f"--data={tmp_path / 'nothing'}"])
    assert "nothing does not exist" in capsys.readouterr().err
