"""Classes are matched by what they are called."""

import numpy as np
import pytest

from deit_jax.classes import imagenet
from deit_jax.classes.match import match_classes, sort_classes
from deit_jax.errors import UserError

SYNSETS, NAMES = imagenet.synsets(), imagenet.class_names()
NUMBERS = [str(i) for i in range(1000)]


def test_numeric_folders_are_numbered_by_value():
    assert sort_classes(sorted(NUMBERS)) == NUMBERS
    assert sort_classes(["10", "9", "b"]) == ["10", "9", "b"]
    assert sort_classes(["02", "1", "003"]) == ["1", "02", "003"]
    assert sort_classes(reversed(SYNSETS)) == SYNSETS


@pytest.mark.parametrize(
    ("data", "model", "outputs", "how"),
    [
        (["cat", "ant"], ["ant", "bee", "cat"], [2, 0], "class names"),
        (["Cat", "big_ant"], ["big ant", "bee", "cat"], [2, 0], "class names"),
        (["10", "2"], ["0", "10", "2"], [1, 2], "class names"),  # a run that recorded string order
        (["2", "0"], ["LABEL_0", "LABEL_1", "LABEL_2"], [2, 0], "class numbers"),
        (["7", "8"], SYNSETS, [7, 8], "ImageNet's class numbers"),
        (["caf\u00e9"], ["tea", "cafe\u0301"], [1], "class names"),
        (["2", "0"], None, [2, 0], "class numbers"),
        (["x", "y", "z"], None, [0, 1, 2], "position"),
        (SYNSETS[7:9], None, [7, 8], "WordNet ids"),
        (SYNSETS[7:9], SYNSETS[::-1], [992, 991], "class names"),
        (["cock", "hen"], SYNSETS, [7, 8], "ImageNet's class names"),
        (["great_white_shark", "Carassius auratus"], None, [2, 1], "ImageNet's class names"),
        (SYNSETS[7:9], ["hen", "cock"], [1, 0], "WordNet ids"),  # a model of two of ImageNet's classes
        (["crane", "crane (n03126707)"], None, [134, 517], "ImageNet's class names"),
        (sorted(NUMBERS), SYNSETS, [int(i) for i in sorted(NUMBERS)], "ImageNet's class numbers"),
        (sorted(NUMBERS), SYNSETS[::-1], [999 - int(i) for i in sorted(NUMBERS)], "ImageNet's class numbers"),
        (SYNSETS[:2], sorted(NUMBERS), [0, 1], "WordNet ids"),
    ],
)
def test_each_kind_of_name(data, model, outputs, how):
    count = 3 if data[0] in "xyz20" else 1000
    mapped = match_classes(data, model, None if model else count, subset=True)
    np.testing.assert_array_equal(mapped.outputs, outputs)
    assert mapped.how.startswith(how)
    assert how in mapped.describe()


def test_lists_of_names_as_published():
    """Hugging Face's lists call two classes crane."""
    names = [name.split(" (")[0] for name in NAMES]
    assert len(set(names)) < 1000
    for mapped in (match_classes(SYNSETS, names), match_classes(names, SYNSETS), match_classes(names, None, 1000)):
        assert mapped.is_identity
    assert match_classes(SYNSETS[517:518], names, subset=True).outputs == [517]
    with pytest.raises(UserError, match="1 of the 1000 classes of the data are not classes of the weights: 'curated'"):
        match_classes(["curated", *names[1:]], SYNSETS)


def test_a_subset_is_allowed_on_demand():
    mapped = match_classes(["bee"], ["ant", "bee"], subset=True)
    assert mapped.is_subset
    assert not mapped.is_identity
    assert mapped.describe() == "1 of the weights' 2 classes, matched by class names"
    assert match_classes(["ant", "bee"], ["ant", "bee"]).describe() == "2 classes, matched by class names"
    with pytest.raises(UserError, match="has 1 of the 2 classes of runs/a, it lacks 'ant'"):
        match_classes(["bee"], ["ant", "bee"], model="runs/a")


@pytest.mark.parametrize(
    ("data", "model", "count", "message"),
    [
        (["ant", "wsap", "x", "y", "z"], ["ant", "wasp"], None, r"4 of the 5 .*: 'wsap', 'x', 'y' and 1 more .*wasp"),
        (["tench", "gold-fishh"], None, 1000, "1 of the 2 .* 'gold-fishh' .did you mean goldfish"),
        (["1000"], None, 1000, "'1000'"),
        (["a", "b"], None, 3, "have 3 and do not name them"),
        (["a", "b"], ["c", "d"], None, "2 of the 2 classes of the data are not classes of the weights: 'a', 'b'"),
        (["tench", "n01440764"], None, 1000, "two classes .* are the same class of the weights: 'tench', 'n01440764'"),
        (["0", "1", "2"], ["1", "2", "3"], None, "1 of the 3 .*: '0'.* '0', '1', '2', the weights have '1', '2', '3'"),
        (["2", "0"], ["ant", "bee", "cat"], None, "2 of the 2 classes"),
        (["1", "2", "3"], None, 3, "name the folders 0 … 2 by the weights' outputs"),
        (["crane"], None, 1000, r"may be n02012849 \(crane; output 134\) and n03126707 \(crane; output 517\)"),
        (["tench", "Cardigan"], None, 1000, "'Cardigan' of the data may be n02113186 .* and n02963159 "),
        (["maillot"], SYNSETS, None, "'maillot' of the data may be n03710637 .* and n03710721 "),
        (["a"], ["a", "b"], 3, "have 3 classes but names for 2"),
        (["a"], None, 0, "no classes"),
    ],
)
def test_what_cannot_be_matched_is_named(data, model, count, message):
    with pytest.raises(UserError, match=message):
        match_classes(data, model, count, subset=True)


def test_imagenet_names_are_unique():
    assert len(set(NAMES)) == len(set(SYNSETS)) == 1000
    assert [imagenet.number_of(name) for name in NAMES] == [imagenet.number_of(s) for s in SYNSETS] == list(range(1000))
    assert imagenet.number_of("panda") is None  # of the giant and of the lesser panda
    assert imagenet.number_of("Ailuropoda melanoleuca") == 388
