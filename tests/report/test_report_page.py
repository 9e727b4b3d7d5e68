"""report.html, in a browser, against report.md and the log; what it holds without one."""

import json
import shutil

import pytest

from deit_jax.__main__ import main
from deit_jax.errors import UserError
from deit_jax.report import report_page
from deit_jax.runtime.browser_files import PLOTLY, package_files
from deit_jax.train.log import read_log

pytestmark = pytest.mark.long_runs  # as `whole_run`


def table_rows(tab, index=0):
    """[cells] of a table of the page, its header first."""
    rows = tab.locator("table").nth(index).locator("tr")
    return [row.locator("th, td").all_inner_texts() for row in rows.all()]


def markdown_rows(folder):
    """The same of the first table of report.md."""
    lines = (folder / "report.md").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| "))
    rows = lines[first : lines.index("", first)]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if "---" not in row]


def traces(tab):
    """{title of a plot: {name of a line: its values}} as plotly draws them."""
    found = tab.evaluate(
        "[...document.querySelectorAll('.plot')].map(p => "
        "[p.getAttribute('aria-label'), (p.data ?? []).map(t => [t.name ?? '', t.y])])"
    )
    return {title: dict(lines) for title, lines in found if lines}


def open_page(tab, *arguments):
    try:
        package_files(PLOTLY)
    except UserError as error:
        pytest.skip(f"needs plotly.js: {error}")
    main(["report", *map(str, arguments)])
    path = next((a.partition("=")[2] for a in map(str, arguments) if "=" in a), f"{arguments[0]}/report.html")
    tab.goto(f"file://{path}")
    tab.wait_for_selector(".plot .main-svg")


@pytest.mark.slow  # a browser
def test_the_page_of_a_run_shows_its_log_and_its_report(own_run, tab):
    open_page(tab, own_run)
    assert table_rows(tab) == markdown_rows(own_run)
    shown, records = traces(tab), read_log(own_run)
    for key, title, name in (
        ("class_loss", "loss terms", "student, class loss"),
        ("distillation_loss", "loss terms", "student, distillation loss"),
        ("eval/dist/top1", "top-1 on evaluation images, %", "student, distillation head"),
        ("eval/cls/top1", "top-1 on evaluation images, %", "student, class head"),
        ("lr", "learning rate", "student"),
    ):
        assert shown[title][name] == pytest.approx([r[key] for r in records if key in r], rel=1e-4)
    assert len(shown["agreement with the teacher's hard label, %"]) == 2
    matrix = json.loads((own_run / "classes.json").read_text())["confusion"]
    text = tab.evaluate("document.querySelector('[aria-label=\"confusion matrix\"]').data[0].text")
    assert text == [[str(count or "") for count in row] for row in matrix]
    images = tab.locator("img")
    assert [images.nth(i).evaluate("image => image.naturalWidth > 100") for i in range(images.count())] == [True] * 3
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow  # a browser
def test_several_runs_share_curves_and_a_table(own_run, tmp_path, tab):
    other = shutil.copytree(own_run, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"optimizer.lr": 0.125}))
    open_page(tab, own_run, other, f"--output={tmp_path / 'both.html'}")
    assert set(traces(tab)["learning rate"]) == {str(own_run), str(other)}
    header, *rows = table_rows(tab)
    assert header[:3] == ["run", "model", "head"]
    one = [row[1:] for row in rows if row[0] == str(own_run)]
    assert [row[1:] for row in one] == [row[1:] for row in markdown_rows(own_run)[-len(one) :]]
    assert one == [row[1:] for row in rows if row[0] == str(other)]
    assert table_rows(tab, 1)[1:] == [["optimizer.lr", str(config["optimizer.lr"]), "0.125"]]
    tab.locator("summary").last.click()
    tab.wait_for_selector("details[open] [aria-label='confusion matrix'] .main-svg")
    assert "student without a teacher" in traces(tab)["learning rate"]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


MARKDOWN = """# a <b>

`x | y`

| class | n |
| --- | --- |
| </script> \\| `z` | 1 |

## B

![d](f.png)

```
a < 1
```"""


def test_markdown_becomes_html_and_names_stay_text():
    assert report_page.to_html(MARKDOWN, lambda *found: f"[{found}]") == (
        "<section>\n<h1>a &lt;b&gt;</h1>\n<p><code>x | y</code></p>\n"
        '<div class="table"><table>\n<tr><th>class</th><th>n</th></tr>\n'
        "<tr><td>&lt;/script&gt; | <code>z</code></td><td>1</td></tr>\n</table></div>\n"
        "</section>\n<section>\n<h2>B</h2>\n[('d', 'f.png')]\n<pre>a &lt; 1</pre>\n</section>"
    )


def test_a_page_needs_no_network_and_a_run_that_is_not_finished_has_its_curves(own_run, monkeypatch):
    (own_run / "report.md").unlink()
    monkeypatch.setattr(report_page, "package_files", lambda *_: [b"plotly"])
    report_page.write_page(own_run / "page.html", {"</script>": own_run})
    page = (own_run / "page.html").read_text()
    assert "This run is not finished." in page
    assert "https:" not in page
    assert page.count("</script>") == 3
    assert page.count('<div class="plot" ') == len(report_page.curve_plots(report_page.trainings(own_run)))


def test_bad_input(tmp_path, capsys):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "epoch": 1.0, "loss": 1.0}\n')
    for runs, message in (
        ([tmp_path / "nothing"], "nothing holds no log of a training (log.jsonl): give the workdir of one"),
        ([tmp_path, f"{tmp_path}/"], "several runs make one page: name it, as --output=runs.html"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["report", *map(str, runs)])
        assert message in capsys.readouterr().err
