"""What a run asks of candidates beyond their form: tokens that its policy has, and what its rule and losses look at."""

from collections.abc import Mapping

from rsft_cluster.acceptance.base import rule_of
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.config import RunConfig
from rsft_cluster.errors import ConfigError
from rsft_cluster.prompts.rows import Refused
from rsft_cluster.rounds.importing.completions import ImportedCompletion
from rsft_cluster.rounds.importing.tokens import Encoder
from rsft_cluster.training.terms.configured import active_terms

MAY_LACK = ("logprob", "target_logprob")


def asked_of(config: RunConfig, selection: SelectionRules) -> Mapping[str, str]:
    """Return what every candidate must bring, with what asks for it."""
    needs = rule_of(selection.rule).needs
    asked = {name: f"acceptance.rule: {selection.rule.use}" for name in MAY_LACK if name in needs}
    for term in active_terms(config.training):
        for name in term.needs:
            asked.setdefault(name, term.key)
    return asked


def check_asked(answer: ImportedCompletion, asked: Mapping[str, str], place: str) -> None:
    """Raise ConfigError, with the place, where a candidate lacks what is asked of all."""
    for name, who in asked.items():
        if getattr(answer, name) is None:
            raise ConfigError(
                f"{place}: {who} needs the {name} of every candidate, and this one has none. Bring them in with it, "
                "or leave out what needs it"
            )


def check_tokens(answer: ImportedCompletion, encoder: Encoder) -> None:
    """Raise Refused where a token id is none of the policy's."""
    for name in ("token_ids", "prompt_token_ids"):
        largest = max(getattr(answer, name) or (), default=-1)
        if largest >= 0 and largest >= encoder.vocabulary:
            raise Refused(f"'{name}' holds {largest}, and the policy has {encoder.vocabulary} tokens")
