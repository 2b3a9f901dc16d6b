"""Which settings go together: those that would make a rule miss its target are refused before anything is sampled."""

from rsft_cluster import config
from rsft_cluster.acceptance.base import Rule, rule_of
from rsft_cluster.acceptance.decide import bind_rule
from rsft_cluster.errors import ConfigError
from rsft_cluster.plugins import bind, steered


def check_compatible(run: config.RunConfig) -> None:
    """Raise ConfigError where the acceptance rule cannot be used on what the run samples, naming why."""
    for number in range(1, max([len(v) for v in run.acceptance.schedule.values()], default=1) + 1):
        bind_rule(run.acceptance, number)
    rule = rule_of(bind_rule(run.acceptance))
    name = run.acceptance.rule.use
    for temperature in [run.sampling.temperature, *(run.pilot.temperatures if run.pilot else ())]:
        if objection := rule.suits(run.sampling.model_copy(update={"temperature": temperature})):
            raise ConfigError(f"acceptance.rule: {name} cannot be used here: {objection}")
    if run.pilot is not None and run.pilot.min_scores:
        _check_thresholds(run, name, rule.threshold)
    if run.fairness is not None and run.fairness.swaps == "agree":
        _check_agreement(run, name, rule)
    if run.budget.wave_size is not None:
        _check_waves(run, name, rule.scope)
    if run.sampling.adaptive is not None:
        _check_adaptive(run, name, rule)


def _check_thresholds(run: config.RunConfig, name: str, threshold: str | None) -> None:
    """Refuse thresholds of a pilot that the rule has no parameter for, or that the schedule sets as well."""
    if threshold is None:
        raise ConfigError(
            f"pilot.min_scores: {name} has no threshold for them to set; use `threshold`, a rule that declares "
            "which of its parameters is one, or leave them out"
        )
    if threshold in run.acceptance.schedule:
        raise ConfigError(f"pilot.min_scores and acceptance.schedule both set {threshold}; give one of them")


def _check_waves(run: config.RunConfig, name: str, scope: str) -> None:
    """Refuse what waves would bias: a prompt's candidates stop once enough are accepted, so groups vary in size."""
    bias = "with budget.wave_size, how many candidates a prompt has depends on what was accepted"
    if scope != "candidate":
        raise ConfigError(
            f"acceptance.rule: {name} looks at the whole {scope}; {bias}, and the rule would be biased. Use a rule "
            "that decides each candidate alone (all_passed, threshold, boltzmann, off_policy), or no waves"
        )
    if run.acceptance.prefer != "index":
        raise ConfigError(f"acceptance.prefer: {bias}, and only the lowest indices of them are exact draws; set index")
    if run.budget.until_accepted > (run.acceptance.max_per_prompt or run.budget.until_accepted):
        cap = f"acceptance.max_per_prompt is {run.acceptance.max_per_prompt}"
        raise ConfigError(f"budget.until_accepted: {run.budget.until_accepted} are never kept, since {cap}")
    if run.budget.allocation == "difficulty" and run.budget.skip_solved:
        reason = "with budget.allocation: difficulty easy prompts keep fewer than k and would be asked again"
        raise ConfigError(f"budget.skip_solved: {reason}; leave one of them out")
    if run.acceptance.drop_all_passed:
        raise ConfigError(f"acceptance.drop_all_passed: {bias}, so prompts solved at once would be dropped as too easy")
    if run.fairness is not None:
        raise ConfigError(f"fairness: {bias}; groups and cells need all candidates of the round. Leave waves out")


def _check_agreement(run: config.RunConfig, name: str, rule: Rule) -> None:
    """Refuse settings that would keep one member of a tuple of swaps and not the others."""
    needed = {
        "acceptance.rule: all_passed": rule.all_or_none,
        "acceptance.dedupe: false": not run.acceptance.dedupe,
        "acceptance.near_duplicates: null": run.acceptance.near_duplicates is None,
        "acceptance.prefer: index": run.acceptance.prefer == "index",
        "budget.skip_solved: false": not run.budget.skip_solved,
    }
    if missing := [setting for setting, holds in needed.items() if not holds]:
        raise ConfigError(
            f"fairness.swaps: agree keeps answers under all protected values or none of them, and {name} with what is "
            f"set after it decides on each alone; set {', '.join(missing)}, or swaps: ask"
        )


def _check_adaptive(run: config.RunConfig, name: str, rule: Rule) -> None:
    """Refuse what remembered rejections would bias, and generators that cannot exclude them."""
    assert run.sampling.adaptive is not None
    bias = "with sampling.adaptive, rejected completions are not drawn again"
    if not rule.rejects:
        raise ConfigError(
            f"acceptance.rule: {name} rejects nothing, so there is nothing to remember; leave adaptive out"
        )
    if rule.scope != "candidate":
        raise ConfigError(
            f"acceptance.rule: {name} compares candidates with each other; {bias}, and the rule would be biased. Use "
            "a rule that decides each candidate alone (all_passed, threshold, boltzmann, off_policy), or no adaptive"
        )
    if run.fairness is not None:
        raise ConfigError(f"fairness: {bias}; cells are counted on plain samples. Leave sampling.adaptive out")
    if run.budget.wave_size is not None and run.budget.wave_size <= run.sampling.adaptive.draws_at_once:
        size = run.sampling.adaptive.draws_at_once
        raise ConfigError(
            f"budget.wave_size: each wave begins to remember anew, after draws_at_once = {size} candidates; ask for "
            "more in a wave, or leave adaptive out"
        )
    if run.training.rejection is not None:
        raise ConfigError(f"training.rejection: {bias}, and it learns from how often they are; leave one of them out")
    if "random" in run.controls.arms:
        raise ConfigError(f"controls.arms: {bias}; `random` learns from plain samples. Leave it or adaptive out")
    if steered(bind(run.sampling.generator, "generators", num_leading=1)) is None:
        name = run.sampling.generator.use
        raise ConfigError(
            f"sampling.generator: {name} cannot leave out what was rejected; adaptive needs transformers, or another "
            "that declares `steerable`"
        )
