"""Rejection sampling fine-tuning: sample K answers a prompt, judge them, keep some, learn them, promote what is better.

    stage       takes                  gives                     room
    intake      files                  PROMPT                    prompts
    sampling    PROMPT                 CANDIDATE                 sampling, generators
    scoring     CANDIDATE              SCORE                     scoring, constraints
    acceptance  SCORE                  ACCEPTED                  acceptance
    training    ACCEPTED               the challenger            training
    evaluation  challenger, incumbent  Decision                  evaluation
    promotion   Decision               the current policy        rounds, runs

The rooms, from what people touch down to what everything stands on; imports point downwards only:

    face     cli, demos, report, scheduling
    loop     nightly, rounds, checks, review (sealed rounds looked at and decided again)
    flow     prompts, sampling, scoring, acceptance, collection (the three as one stream), training, evaluation
    yours    generators, constraints, plugins, testing (checks for authors of plug-ins)
    ground   runs, policies, cluster, store, config, metrics, progress, records, schemas, keys, errors

`README.md` beside this file follows one prompt from its file to a trained weight and has the glossary.

The names below are the public ones, for configs' rules modules, notebooks and tests:

    import rsft_cluster as rsft

    config = rsft.load_config("support.yaml")
    findings = rsft.check(config)
    rounds = rsft.run(config, rsft.Reporter())
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rsft_cluster.acceptance.base import Chosen as Chosen
    from rsft_cluster.acceptance.base import rule as rule
    from rsft_cluster.checks.check import check as check
    from rsft_cluster.config import RunConfig as RunConfig
    from rsft_cluster.config.file import load_config as load_config
    from rsft_cluster.constraints.base import Candidate as Candidate
    from rsft_cluster.constraints.base import Case as Case
    from rsft_cluster.constraints.base import Verdict as Verdict
    from rsft_cluster.errors import ConfigError as ConfigError
    from rsft_cluster.errors import PluginError as PluginError
    from rsft_cluster.errors import RsftError as RsftError
    from rsft_cluster.errors import StageError as StageError
    from rsft_cluster.errors import StoreError as StoreError
    from rsft_cluster.generators.base import Completion as Completion
    from rsft_cluster.generators.base import Decoding as Decoding
    from rsft_cluster.generators.base import Generator as Generator
    from rsft_cluster.generators.base import Prompt as Prompt
    from rsft_cluster.generators.base import Refusal as Refusal
    from rsft_cluster.progress import Listener as Listener
    from rsft_cluster.records import Decision as Decision
    from rsft_cluster.report.reporter import Reporter as Reporter
    from rsft_cluster.rounds.loop import run_rounds as run
    from rsft_cluster.schemas import Message as Message

__version__ = "0.1.0"

__all__ = [
    "Candidate",
    "Case",
    "Chosen",
    "Completion",
    "ConfigError",
    "Decision",
    "Decoding",
    "Generator",
    "Listener",
    "Message",
    "PluginError",
    "Prompt",
    "Refusal",
    "Reporter",
    "RsftError",
    "RunConfig",
    "StageError",
    "StoreError",
    "Verdict",
    "__version__",
    "check",
    "load_config",
    "rule",
    "run",
]

_HOMES = {
    "Candidate": "constraints.base",
    "Case": "constraints.base",
    "Chosen": "acceptance.base",
    "Completion": "generators.base",
    "ConfigError": "errors",
    "Decision": "records",
    "Decoding": "generators.base",
    "Generator": "generators.base",
    "Listener": "progress",
    "Message": "schemas",
    "PluginError": "errors",
    "Prompt": "generators.base",
    "Refusal": "generators.base",
    "Reporter": "report.reporter",
    "RsftError": "errors",
    "RunConfig": "config",
    "StageError": "errors",
    "StoreError": "errors",
    "Verdict": "constraints.base",
    "check": "checks.check",
    "load_config": "config.file",
    "rule": "acceptance.base",
    "run": "rounds.loop:run_rounds",
}
"""Public name -> the module that defines it, and the name there where it is another. Imported on first use, so that
`import rsft_cluster` costs nothing and engines load only where they are used."""


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(import_module(f"{__name__}.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names beside what the module holds already."""
    return sorted({*globals(), *_HOMES})
