"""From a name in the config to a callable: `name` or `package.module:attribute`, bound to its parameters.

Built-ins are declared through the same entry points (`rsft_cluster.constraints` ...) that third parties use.
Binding checks the parameters' names against the signature and their values against the annotations, so that a
misspelt or mistyped one fails before any cluster starts.
"""

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from rsft_cluster.config import Plugin
from rsft_cluster.errors import PluginError

Family = Literal[
    "prompt_sources", "generators", "constraints", "acceptance_rules", "promotion_rules", "loss_terms", "trackers"
]


@dataclass(frozen=True)
class Bound:
    """A plug-in with its parameters: picklable by name, callable where it is needed."""

    use: str
    """`package.module:attribute`, always in full."""
    params: Mapping[str, Any]
    name: str
    """As configs name it. Records hold this: a built-in's stays when its module moves."""

    def load(self) -> Any:
        """Import and return the plug-in's attribute."""
        return _import(self.use, self.use)

    def describe(self) -> str:
        """Return the plug-in and its parameters in one line."""
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in sorted(self.params.items()))})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the plug-in, the bound parameters added."""
        return self.load()(*args, **kwargs, **self.params)


def bind(plugin: Plugin, family: Family, *, num_leading: int) -> Bound:
    """Resolve a plug-in and check its parameters; the validated values are bound.

    The caller gives `num_leading` positional arguments (a generator gets the policy, a rule the
    table); the rest of the signature is matched with `plugin.params`. A constraint that is a class is built
    only from its parameters: candidates go to its `judge`. Importing happens here, so a plug-in's module
    must be importable where configs load. Raises PluginError with the signature, or with the known names,
    in the message.
    """
    target = locate(plugin.use, family)
    attribute = _import(target, plugin.use)
    if not callable(attribute):
        raise PluginError(f"{plugin.use}: is a {type(attribute).__name__}, not something that can be called")
    if family == "constraints" and inspect.isclass(attribute):
        num_leading = 0
    signature = _signature(attribute, plugin)
    _check_names(signature, plugin, num_leading)
    params = {name: _valid(attribute, signature, plugin, name) for name in plugin.params}
    return Bound(target, params, plugin.use)


def steered(generator: Bound) -> Bound | None:
    """Return a bound generator as it draws by laws (`generators.base.SteerableGenerator`); None where it cannot."""
    params = getattr(generator.load(), "steerable", None)
    return None if params is None else replace(generator, params={**generator.params, **params})


@cache
def known(family: Family) -> dict[str, str]:
    """Return the declared plug-ins of a family: name -> `package.module:attribute`."""
    return {e.name: e.value for e in sorted(entry_points(group=f"rsft_cluster.{family}"))}


def described(use: str, family: Family, *, num_leading: int) -> tuple[str, str]:
    """Return a plug-in's parameters as they are written in Python, and the first paragraph of its docstring.

    `num_leading` is as for `bind`. Raises PluginError where it cannot be imported.
    """
    attribute = _import(locate(use, family), use)
    signature = _signature(attribute, Plugin(use=use))
    leading = 0 if inspect.isclass(attribute) else num_leading
    return _written(signature, leading), (inspect.getdoc(attribute) or "").split("\n\n")[0].replace("\n", " ")


def locate(use: str, family: Family) -> str:
    """Return `package.module:attribute` of a plug-in; raises PluginError with the known names."""
    if ":" in use:
        return use
    declared = known(family)
    if use in declared:
        return declared[use]
    kind = family.replace("_", " ").removesuffix("s")
    raise PluginError(
        f"no {kind} is called {use!r}{_near(use, declared)}. Known: {', '.join(declared) or 'none'}. "
        "Your own is named as package.module:attribute"
    )


def _near(name: str, names: typing.Iterable[str]) -> str:
    near = get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def load_module(name: str, use: str) -> ModuleType:
    """Import a module for the plug-in `use`; raises PluginError, whatever the module raises."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise PluginError(
                f"{use}: there is no module {error.name!r} on the import path. The folder of a config that is given is "
                "on it, and for what looks at a run again the folder you stand in"
            ) from error
        raise PluginError(f"{use}: importing {name} failed: {error}") from error
    except Exception as error:
        raise PluginError(f"{use}: importing {name} failed: {type(error).__name__}: {error}") from error


def _import(target: str, use: str) -> Any:
    try:
        return _attribute(target, use)
    except PluginError as error:
        built_ins = [item for family in typing.get_args(Family) for item in known(family).items()]
        same = [(name, full) for name, full in built_ins if full.rpartition(":")[2] == target.rpartition(":")[2]]
        if not target.startswith("rsft_cluster.") or not same or target in dict(same).values():
            raise
        name, full = same[0]
        raise PluginError(f"{use}: is no plug-in; the built-in of that name is {name!r}, in full {full}") from error


def _attribute(target: str, use: str) -> Any:
    module_name, _, attribute = target.partition(":")
    member: Any = load_module(module_name, use)
    for part in attribute.split("."):
        if not hasattr(member, part):
            raise PluginError(f"{use}: module {module_name} has no {attribute!r}{_near(part, vars(member))}")
        member = getattr(member, part)
    return member


def _signature(attribute: Callable[..., Any], plugin: Plugin) -> inspect.Signature:
    try:
        return inspect.signature(attribute)
    except (TypeError, ValueError) as error:
        raise PluginError(f"{plugin.use}: its parameters cannot be read: {error}") from error


def _shown(plugin: Plugin, signature: inspect.Signature) -> str:
    return f"Its signature is {plugin.use.rsplit(':', 1)[-1]}{_written(signature)}"


def _written(signature: inspect.Signature, num_leading: int = 0) -> str:
    """Return a signature from the first parameter after `num_leading` on, without what it returns."""
    parameters = [p.replace(annotation=_bare(p.annotation)) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters[num_leading:], return_annotation=inspect.Signature.empty))


def _bare(annotation: Any) -> Any:
    """Return an annotation for readers: without what `Annotated` adds, at any depth."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return annotation
    return typing.get_type_hints(SimpleNamespace(__annotations__={"parameter": annotation}))["parameter"]


def _check_names(signature: inspect.Signature, plugin: Plugin, num_leading: int) -> None:
    try:
        signature.bind(*[None] * num_leading, **plugin.params)
    except TypeError as error:
        hints = [_near(n, signature.parameters) for n in plugin.params if n not in signature.parameters]
        raise PluginError(f"{plugin.use}: {error}{''.join(hints)}. {_shown(plugin, signature)}") from error


def _valid(attribute: Callable[..., Any], signature: inspect.Signature, plugin: Plugin, name: str) -> Any:
    """Return the value of a parameter validated by its annotation; as it is without one."""
    keywords = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    annotation = (signature.parameters.get(name) or keywords[0]).annotation
    if annotation is inspect.Parameter.empty:
        return plugin.params[name]
    value, parameter = plugin.params[name], f"{plugin.use}: parameter {name}"
    try:
        return _adapter(_resolved(attribute, annotation)).validate_python(value)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}{': ' if e['loc'] else ''}{e['msg']}" for e in error.errors()
        )
        expected = annotation if isinstance(annotation, str) else inspect.formatannotation(_bare(annotation))
        raise PluginError(
            f"{parameter} is {value!r}, expected {expected} ({problems}). {_shown(plugin, signature)}"
        ) from error
    except (NameError, TypeError, PydanticSchemaGenerationError) as error:
        raise PluginError(f"{parameter}: its annotation {annotation!r} cannot be checked: {error}") from error


def _resolved(attribute: Callable[..., Any], annotation: Any) -> Any:
    """Evaluate one annotation written as text, in the module of the plug-in.

    One at a time: others of the signature may name types that are imported only for type checkers.
    """
    function = attribute.__init__ if inspect.isclass(attribute) else attribute
    names = getattr(inspect.unwrap(function), "__globals__", {})
    holder = SimpleNamespace(__annotations__={"parameter": annotation})
    return typing.get_type_hints(holder, globalns=names, include_extras=True)["parameter"]


def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint)
    except PydanticSchemaGenerationError:  # a class unknown to pydantic: an instance of it is asked for
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
