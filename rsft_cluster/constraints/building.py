"""From a constraint of the config to one that is ready to judge."""

import sys
from collections.abc import Mapping
from functools import partial

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
    """Say whether a constraint runs in a process that can be killed: all but those that bound their own time."""
    return getattr(built, "isolated", True)


def cases_of(constraint: Plugin) -> tuple[Case, ...]:
    """Return the inline cases of a constraint: those in `CASES` of its module; none where it has no such thing."""
    attribute = bind(constraint, "constraints", num_leading=1).load()
    cases = getattr(sys.modules[attribute.__module__], "CASES", ())
    if isinstance(cases, Mapping):
        cases = cases.get(attribute.__name__, ())
    return tuple(cases)
