"""From a name in the config to a callable: `name` or `package.module:attribute`, bound to its parameters.

Built-ins are declared through the same entry points (`rsft_cluster.constraints` ...) that third parties use.
Binding checks parameters against the signature, so that a misspelt one fails before any cluster starts.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from rsft_cluster.config import Plugin
from rsft_cluster.errors import PluginError

Family = Literal["prompt_sources", "generators", "constraints", "acceptance_rules", "promotion_rules"]


@dataclass(frozen=True)
class Bound:
    """A plug-in with its parameters: picklable by name, callable where it is needed."""

    use: str
    """`package.module:attribute`, always in full."""
    params: Mapping[str, Any]

    def load(self) -> Any:
        """Import and return the plug-in's attribute."""
        return _import(self.use, self.use)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the plug-in, the bound parameters added."""
        return self.load()(*args, **kwargs, **self.params)


def bind(plugin: Plugin, family: Family, *, num_leading: int) -> Bound:
    """Resolve a plug-in and check its parameters.

    `num_leading` positional arguments are the caller's to give; the rest of the signature is matched with
    `plugin.params`. Importing happens here, so a plug-in's module must be importable where configs load.
    Raises PluginError with the signature, or with the known names, in the message.
    """
    target = _locate(plugin.use, family)
    attribute = _import(target, plugin.use)
    if not callable(attribute):
        raise PluginError(f"{plugin.use}: is a {type(attribute).__name__}, not something that can be called")
    _check_params(attribute, plugin, num_leading)
    return Bound(target, dict(plugin.params))


@cache
def known(family: Family) -> dict[str, str]:
    """Return the declared plug-ins of a family: name -> `package.module:attribute`."""
    return {e.name: e.value for e in sorted(entry_points(group=f"rsft_cluster.{family}"))}


def _locate(use: str, family: Family) -> str:
    if ":" in use:
        return use
    declared = known(family)
    if use in declared:
        return declared[use]
    near = get_close_matches(use, declared, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    kind = family.replace("_", " ").removesuffix("s")
    raise PluginError(
        f"no {kind} is called {use!r}{hint} Known: {', '.join(declared) or 'none'}. "
        "Your own is named as package.module:attribute."
    )


def _import(target: str, use: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise PluginError(
                f"{use}: there is no module {error.name!r} on the import path (the config's folder is on it)"
            ) from error
        raise PluginError(f"{use}: importing {module_name} failed: {error}") from error
    except Exception as error:
        raise PluginError(f"{use}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise PluginError(f"{use}: module {module_name} has no {attribute!r}")
        found = getattr(found, part)
    return found


def _check_params(attribute: Callable[..., Any], plugin: Plugin, num_leading: int) -> None:
    signature = inspect.signature(attribute)
    try:
        signature.bind(*[None] * num_leading, **plugin.params)
    except TypeError as error:
        raise PluginError(
            f"{plugin.use}: {error}. Its signature is {plugin.use.rsplit(':', 1)[-1]}{signature}"
        ) from error
