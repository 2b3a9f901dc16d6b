"""The config of a round: the run's, with what the round's pilot chose."""

from rsft_cluster.acceptance.base import rule_of
from rsft_cluster.acceptance.decide import bind_rule
from rsft_cluster.config import RunConfig
from rsft_cluster.records import PilotChoice
from rsft_cluster.runs.run import pilot_choice, recorded_config
from rsft_cluster.store import Store


def piloted(config: RunConfig, choice: PilotChoice | None) -> RunConfig:
    """Return the config with the temperature and the threshold that a pilot chose; unchanged without a pilot."""
    if config.pilot is None or choice is None:
        return config
    acceptance, threshold = config.acceptance, rule_of(bind_rule(config.acceptance)).threshold
    if choice.min_score is not None and threshold is not None:
        params = {**acceptance.rule.params, threshold: choice.min_score}
        acceptance = acceptance.model_copy(update={"rule": acceptance.rule.model_copy(update={"params": params})})
    sampling = config.sampling.model_copy(update={"temperature": choice.temperature})
    return config.model_copy(update={"sampling": sampling, "acceptance": acceptance})


def config_of_round(store: Store, number: int) -> RunConfig:
    """Return the config that a run was started with, with what a round's pilot chose."""
    return piloted(recorded_config(store), pilot_choice(store, number))
