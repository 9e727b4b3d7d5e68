"""The page, in a browser, against `deit_jax.predict`; and what can be wrong before there is one."""

import re

import jax
import numpy as np
import pytest
from helpers import SMALL, TINY, photo, save_weights

from deit_jax import predict
from deit_jax.__main__ import main
from deit_jax.errors import UserError
from deit_jax.evaluate.classifier import make_classifier
from deit_jax.export import page
from deit_jax.export.exportable import Form, load_exportable
from deit_jax.runtime import sharding
from deit_jax.runtime.browser_files import ONNXRUNTIME, package_files
from deit_jax.weights import load_weights

pytest.importorskip("onnxruntime", reason="needs the extra export")

CLASSES = ["dog", "grass", "</script><b>newt", "owl", "fox", "elk"]


def make_weights(folder, name=TINY, **view):
    return save_weights(
        folder / f"{name}.safetensors", name, CLASSES, {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.3)} | view
    )


def make_page(path, weights, *flags):
    try:
        package_files(ONNXRUNTIME)
    except UserError as error:
        pytest.skip(f"needs onnxruntime-web: {error}")
    main(["page", weights, str(path), *flags])
    return f"file://{path}"


def read_heads(tab):
    """{head: [(class, probability)]} as the page shows them."""
    tab.wait_for_selector("#heads li")
    cards = tab.query_selector_all("#heads > div")
    rows = lambda card: card.query_selector_all("li")
    return {
        card.query_selector("h3").inner_text(): [
            (row.query_selector("span").inner_text(), float(row.get_attribute("data-probability")))
            for row in rows(card)
        ]
        for card in cards
    }


def predicted(weights, image):
    """The same of `deit-jax predict`."""
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    classifier = make_classifier({"params": load_weights(weights)}, mesh)
    (found,) = predict.predict_images(classifier, [image], mesh, top=5)
    return found.heads


@pytest.mark.slow  # a minute: builds a page of 8 MB, starts a browser
@pytest.mark.parametrize(
    ("name", "view"),
    [(TINY, {}), ("regnety_digits", {"crop": 0.9, "fit": "squash", "interpolation": "bilinear"})],
)
def test_a_photo_gets_the_classes_that_predict_gives(tmp_path, tab, name, view):
    weights, image = make_weights(tmp_path, name, **view), photo(tmp_path / "photo.png")
    tab.goto(make_page(tmp_path / "page.html", weights))
    tab.wait_for_selector("#file:not([disabled])")
    tab.set_input_files("#file", image)
    shown, expected = read_heads(tab), predicted(weights, image)
    names = ["Class head", "Distillation head", "Both together"] if name == TINY else ["Classes"]
    assert list(shown) == names
    for ours, theirs in zip(shown.values(), expected.values(), strict=True):
        assert [row[0] for row in ours] == [row[0] for row in theirs]
        np.testing.assert_allclose([row[1] for row in ours], [row[1] for row in theirs], atol=2e-3)
    assert tab.is_visible("#attention") == (name != "regnety_digits")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow  # as above
def test_the_page_by_keyboard_and_screen_reader(tmp_path, tab):
    photo(tmp_path / "one.png"), photo(tmp_path / "two.png", 90, 120)
    weights = make_weights(tmp_path, SMALL)
    tab.goto(make_page(tmp_path / "page.html", weights, f"--examples={tmp_path}", "--dtype=fp16"))
    tab.wait_for_selector("#file:not([disabled])")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "file"
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")  # the first example
    tab.wait_for_selector("#heads li")
    assert tab.inner_text("#status").startswith("one: ")
    assert "heads" in tab.inner_text("#verdict[role=status]")
    label = lambda: tab.get_attribute("#maps canvas >> nth=1", "aria-label")
    picture = lambda: tab.evaluate("document.querySelector('#maps canvas').toDataURL()")
    assert re.match("Distillation token, layer 4, mean of heads: strongest at the", label())
    first = picture()
    tab.focus("#layer")
    tab.keyboard.press("ArrowLeft")
    assert "layer 3, mean" in label()
    tab.select_option("#head", "1")
    assert "layer 3, head 2" in label()
    assert picture() != first
    tab.check("[value=rollout]")
    assert "rollout to layer 3" in label()
    assert tab.is_disabled("#head")
    for control in tab.query_selector_all("input, select, button"):
        assert tab.evaluate("e => e.labels?.length || e.title || e.getAttribute('aria-label')", control)
    (tmp_path / "no.png").write_text("no image")
    tab.set_input_files("#file", str(tmp_path / "no.png"))
    tab.wait_for_selector("#status.error")
    assert "no.png is not an image" in tab.inner_text("#status")


@pytest.mark.parametrize("name", [TINY, "regnety_digits"])
def test_a_page_is_one_file_whose_data_end_no_element(tmp_path, name):
    form = Form(layout="nhwc", pixels="uint8", attention=name == TINY, heads="both" if name == TINY else "fused")
    exportable = load_exportable(make_weights(tmp_path, name), form)
    text = page.make_page(exportable, [b"script", b"wasm"], [("photo", page.example(photo(tmp_path / "photo.png")))])
    assert text.count("</script>") == 5
    assert "http" not in re.sub("http-equiv", "", text)
    assert "newt" in text


def test_bad_input(tmp_path):
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(UserError, match=r"no\.png is not a readable image"):
        page.example(str(tmp_path / "no.png"))
