"""The type checker of the suite, as jaxtyping's import hook takes it: a decorator of functions and dataclasses.

It checks what static checkers cannot: functions and fields that state the shapes and dtypes of arrays.
"""

import sys
from typing import TypeVar

import beartype

T = TypeVar("T")


# What a config holds and a source has is declared for static checkers alone: neither class can be asked at run time.
DECLARED = (("deit_jax.config.settings", "Config"), ("deit_jax.data.base", "Source"))


def conf() -> beartype.BeartypeConf:
    """An int may stand for a float, as in typing; a declared class stands for anything."""
    classes = [getattr(sys.modules.get(module), name, None) for module, name in DECLARED]
    overrides = beartype.FrozenDict({cls: object for cls in classes if cls})
    return beartype.BeartypeConf(is_pep484_tower=True, hint_overrides=overrides)


def check(target: T) -> T:
    """`target`, checked at each call where one of its annotations is of an array."""
    if "jaxtyping." not in repr(getattr(target, "__annotations__", "")):
        return target
    return beartype.beartype(conf=conf())(target)
