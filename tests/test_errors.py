"""Messages: text from outside made fit to print, and the nearest known name."""

import pytest

from deit_jax.errors import UserError, nearest, printable


def test_text_from_outside_is_shown_on_one_line():
    assert printable("a\x1bb\nc\udcffd\u202ee ü日 $") == "a\\x1bb\\x0ac\\xffd\\u202ee ü日 $"
    assert str(UserError("two\nlines")) == "two\\x0alines"


def test_a_report_keeps_its_lines():
    assert printable("table\n| ü\x1b |\r", lines=True) == "table\n| ü\\x1b |\\x0d"


@pytest.mark.parametrize(
    ("name", "hint"), [("trian", " (did you mean train?)"), ("evaluat", " (did you mean evaluate?)"), ("xyz", "")]
)
def test_the_nearest_name_is_suggested(name, hint):
    assert nearest(name, ["train", "evaluate"]) == hint
