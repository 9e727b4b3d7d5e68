"""The page, in a browser, against `deit_jax.predict`; and what can be wrong before there is one."""

import hashlib
import re
import shutil

import numpy as np
import pytest
from helpers import SMALL, TINY, TINY_PLAIN, state_of
from PIL import Image
from safetensors.numpy import save_file

from deit_jax import predict
from deit_jax.__main__ import main
from deit_jax.errors import UserError
from deit_jax.export import browser_runtime, page
from deit_jax.export.exportable import Form, load_exportable
from deit_jax.weights.metadata import Metadata, to_header

pytest.importorskip("onnxruntime", reason="needs the extra export")

CLASSES = ["dog", "grass", "</script><b>newt", "owl", "fox", "elk"]


def make_weights(folder, name=TINY, **view):
    metadata = Metadata(name, class_names=CLASSES, **{"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.3)} | view)
    save_file(state_of(name, num_classes=6), folder / f"{name}.safetensors", to_header(metadata))
    return str(folder / f"{name}.safetensors")


def photo(path, width=150, height=110):
    """A photo-like image: smooth colours, edges, noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noise = rng.integers(-20, 20, (height, width, 3))
    Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def browser():
    """Debian's headless Chromium, without a network."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if program is None:
        pytest.skip("needs the program chromium-headless-shell or chromium")
    quiet = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=quiet.split())
        yield opened
        opened.close()


@pytest.fixture
def tab(browser):
    """A phone-sized window; a request that leaves the page fails the test."""
    requests, errors = [], []
    opened = browser.new_page(viewport={"width": 390, "height": 780})
    opened.set_default_timeout(120_000)
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: message.type == "error" and errors.append(message.text))
    yield opened
    opened.close()
    assert not errors
    assert {url.partition(":")[0] for url in requests} <= {"file", "data", "blob"}
    assert sum(url.startswith("file") for url in requests) == 1


def make_page(path, weights, *flags):
    try:
        browser_runtime.runtime_files()
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


def predicted(weights, image, tmp_path):
    """The same of `deit-jax predict`."""
    import json

    main(["predict", weights, image, f"--output={tmp_path / 'predicted.json'}"])
    heads = json.loads((tmp_path / "predicted.json").read_text())["images"][0]["heads"]
    return {head: [(row["class"], row["probability"]) for row in rows] for head, rows in heads.items()}


@pytest.mark.slow  # a minute: builds a page of 8 MB, starts a browser
@pytest.mark.parametrize(
    ("name", "view"),
    [(TINY, {}), (TINY_PLAIN, {"crop": 0.9, "fit": "squash", "interpolation": "bilinear"}), ("regnety_digits", {})],
)
def test_a_photo_gets_the_classes_that_predict_gives(tmp_path, tab, name, view):
    weights, image = make_weights(tmp_path, name, **view), photo(tmp_path / "photo.png")
    tab.goto(make_page(tmp_path / "page.html", weights))
    tab.wait_for_selector("#file:not([disabled])")
    tab.set_input_files("#file", image)
    shown, expected = read_heads(tab), predicted(weights, image, tmp_path)
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
    text = page.make_page(exportable, [b"script", b"wasm"], [page.example(photo(tmp_path / "photo.png"))])
    assert text.count("</script>") == 5
    assert "http" not in re.sub("http-equiv", "", text)
    assert "newt" in text


def test_the_runtime_is_read_from_a_folder_and_checked(tmp_path, monkeypatch):
    contents = [b"one", b"two"]
    sums = dict(zip(("a.mjs", "b.wasm"), (hashlib.sha256(x).hexdigest() for x in contents), strict=True))
    monkeypatch.setattr(browser_runtime, "FILES", sums)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="npm, which fetches it, is not installed: give --assets=DIR"):
        browser_runtime.runtime_files()
    (tmp_path / "a.mjs").write_bytes(b"one")
    with pytest.raises(UserError, match=r"b\.wasm cannot be read"):
        browser_runtime.runtime_files(str(tmp_path))
    (tmp_path / "b.wasm").write_bytes(b"two")
    assert browser_runtime.runtime_files(str(tmp_path)) == contents
    (tmp_path / "b.wasm").write_bytes(b"three")
    with pytest.raises(UserError, match=r"b\.wasm is not the file of onnxruntime-web"):
        browser_runtime.runtime_files(str(tmp_path))


def test_npm_fills_the_cache_once(tmp_path, monkeypatch):
    sums = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.mjs", "b.wasm")}
    monkeypatch.setattr(browser_runtime, "FILES", sums)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "package/dist").mkdir(parents=True)
    for name in sums:
        (tmp_path / "package/dist" / name).write_text(name)
    shutil.make_archive(str(tmp_path / "made"), "gztar", tmp_path, "package")
    (tmp_path / "npm").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncp {tmp_path}/made.tar.gz x.tgz\n')
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for _ in range(2):
        assert browser_runtime.runtime_files() == [b"a.mjs", b"b.wasm"]
    assert (tmp_path / "calls").read_text() == "pack --silent onnxruntime-web@1.30.0\n"
    (tmp_path / "npm").write_text("#!/bin/sh\necho npm error offline >&2\nexit 1\n")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=r"npm does not give .* \(npm error offline\): give --assets"):
        browser_runtime.runtime_files()


def test_bad_input(tmp_path):
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(UserError, match=r"no\.png is not a readable image"):
        page.example(str(tmp_path / "no.png"))
    assert predict.output_names(None, 2) == ["class 0", "class 1"]
