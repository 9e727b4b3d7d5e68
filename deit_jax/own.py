"""A part of the user's own, named by a setting as `package.module:name`: a model's class, a teacher's function, an
objective or data.

Its module is imported from the working directory or where Python finds it, by the command whose settings name it, and
a model's also by what opens the folder of a run of it. No module is imported for a label store, or for weights from
elsewhere. The evaluation of a run's folder has its data.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from deit_jax.errors import UserError, first_line, nearest


def is_own(name: str) -> bool:
    """Whether a setting names a part of the user's own rather than one of the package's."""
    return ":" in name


@contextlib.contextmanager
def own_part(what: str, name: str) -> Iterator[Any]:
    """What `module:name` is, within a block that may import more from the working directory.

    what: the part in an error, "teacher". Raises UserError where it is not there.
    """
    module_name, _, attribute = name.partition(":")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
        if not hasattr(module, attribute):
            names = [key for key in vars(module) if not key.startswith("_")]
            raise UserError(f"{what} {name}: {module_name} has no '{attribute}'{nearest(attribute, names)}")
        yield getattr(module, attribute)
    except ImportError as error:
        raise UserError(f"{what} {name} cannot be imported: {first_line(error)}") from error
    finally:
        sys.path.remove(folder)
