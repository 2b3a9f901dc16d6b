"""From a constraint of the config to one that is ready to judge."""

import sys
from collections.abc import Mapping
from functools import partial
from inspect import isclass, isfunction
from types import ModuleType

from rsft_cluster.config import Plugin
from rsft_cluster.constraints.base import BatchConstraint, Case
from rsft_cluster.constraints.outcomes import Built
from rsft_cluster.errors import PluginError
from rsft_cluster.plugins import bind


def build(constraint: Plugin, *, name: str) -> Built:
    """Bind and build a constraint; raises PluginError naming it where it or its parameters are not usable."""
    bound = bind(constraint, "constraints", num_leading=1)
    attribute = bound.load()
    if not isinstance(attribute, type):
        return partial(attribute, **bound.params)
    try:
        built = attribute(**bound.params)
    except (ValueError, TypeError, OSError) as error:
        raise PluginError(f"constraint {name!r} cannot be built: {error}") from error
    if not isinstance(built, BatchConstraint):
        raise PluginError(f"constraint {name!r}: class {bound.use} has no judge(candidates)")
    return built


def is_isolated(built: Built) -> bool:
    """Return whether a constraint runs in a process that can be killed: all but those that bound their own time."""
    return getattr(built, "isolated", True)


def cases_of(constraint: Plugin) -> tuple[Case, ...]:
    """Return the inline cases of a constraint: those in `CASES` of its module; none where it has no `CASES`."""
    use = bind(constraint, "constraints", num_leading=1).use
    module_name, _, attribute = use.partition(":")
    module = sys.modules[module_name]
    cases = getattr(module, "CASES", ())
    if not isinstance(cases, Mapping):
        cases = {only_constraint(module): cases} if cases else {}
    return tuple(cases.get(attribute, ()))


def only_constraint(module: ModuleType) -> str:
    """Return the name of the one constraint of a module: its one class with a `judge`, or else its one function."""
    own = [o for n, o in vars(module).items() if getattr(o, "__module__", "") == module.__name__ and n[0] != "_"]
    classes = [member.__name__ for member in own if isclass(member) and hasattr(member, "judge")]
    names = classes or [member.__name__ for member in own if isfunction(member)]
    if len(names) != 1:
        raise PluginError(
            f"{module.__name__}: which constraint its CASES are for cannot be told, it may be one of {names}; "
            "let CASES map names to cases"
        )
    return names[0]
