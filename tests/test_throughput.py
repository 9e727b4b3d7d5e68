"""benchmarks/throughput.py: whose accuracies it reads, how it takes turns, what it writes."""

import json
from pathlib import Path

import pytest

from deit_jax import list_models
from deit_jax.errors import UserError


@pytest.fixture
def throughput(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import throughput

    return throughput


def test_published_models_exist_and_are_selected_by_name(throughput):
    names = [row["model"] for row in throughput.read_published()]
    assert len(set(names)) == len(names)
    assert set(names) <= set(list_models())
    (one,) = throughput.read_published(["deit_base_distilled_patch16_384"])
    assert (one["top1"], one["family"]) == (84.5, "DeiT distilled")
    with pytest.raises(UserError, match="no accuracy of deit_digits_patch4_16"):
        throughput.read_published(["deit_digits_patch4_16"])


def test_the_figure_in_the_docs_is_of_published_models(throughput):
    """Its table shows the recorded medians."""
    docs = Path(__file__).parents[1] / "docs"
    text = (docs / "throughput.md").read_text()
    for name, one in json.loads((docs / "throughput.json").read_text())["models"].items():
        (row,) = throughput.read_published([name])
        assert f"| {row['top1']} |" in text
        assert f" {one['images_per_second']['median']:#.3g} |" in text
