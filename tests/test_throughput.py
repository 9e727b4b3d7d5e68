"""The figure of benchmarks/throughput.py in the docs."""

import json

from helpers import ROOT


def test_its_table_has_published_accuracies_and_recorded_medians(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import throughput

    docs = ROOT / "docs"
    text = (docs / "throughput.md").read_text()
    for name, one in json.loads((docs / "throughput.json").read_text())["models"].items():
        (row,) = throughput.read_published([name])
        assert f"| {row['top1']} |" in text
        assert f" {one['images_per_second']['median']:#.3g} |" in text
