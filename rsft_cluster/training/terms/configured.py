"""The terms of a config's loss."""

from rsft_cluster.config import Plugin, TrainingConfig
from rsft_cluster.errors import PluginError
from rsft_cluster.plugins import Bound, bind
from rsft_cluster.training.terms.base import Term
from rsft_cluster.training.terms.kl import KL
from rsft_cluster.training.terms.nll import NLL
from rsft_cluster.training.terms.rejection import Rejection
from rsft_cluster.training.terms.unlikelihood import Unlikelihood

BUILT_IN = (NLL, Rejection, Unlikelihood, KL)
"""Turned on by keys of their own; recorded as 0 where they are off."""


def terms_of(config: TrainingConfig) -> tuple[Term, ...]:
    """Return all terms, those of weight 0 among them: the built-in ones, then those that the config names.

    Raises PluginError where one cannot be found, its parameters do not fit, or two have the same name.
    """
    named = [_bound(plugin)(config) for plugin in config.terms]
    terms = (*(kind(config) for kind in BUILT_IN), *named)
    names = [term.name for term in terms]
    for plugin, term in zip(config.terms, named, strict=True):
        if names.count(term.name) > 1:
            raise PluginError(f"training.terms: {plugin.use}: another term is called {term.name!r} as well")
    return terms


def active_terms(config: TrainingConfig) -> tuple[Term, ...]:
    """Return the terms that count."""
    return tuple(term for term in terms_of(config) if term.weight)


def _bound(plugin: Plugin) -> Bound:
    bound = bind(plugin, "loss_terms", num_leading=1)
    kind = bound.load()
    if not (isinstance(kind, type) and issubclass(kind, Term)):
        raise PluginError(f"training.terms: {plugin.use}: is no term; derive one from {Term.__module__}:Term")
    return bound
