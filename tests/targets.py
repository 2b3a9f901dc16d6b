"""A language small enough to enumerate, sampled and judged by the real stages: what acceptance is held against.

A tiny random Llama over a few tokens answers one prompt with at most four of them. Every completion's probability is
known by plain forwards, so is whether it passes and what it scores, and therefore every target.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from collecting import Collection
from factories import prompt
from models import EOS, tiny_llama
from oracles import enumerate_completions
from target_constraints import LENGTH, score_of

from rsft_cluster.acceptance.decide import bind_rule, decide
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.collection.actors import Work
from rsft_cluster.collection.plan import write_plan
from rsft_cluster.collection.score_table import judged_table
from rsft_cluster.config import AcceptanceConfig, BudgetConfig, Constraint, Plugin, ScoringConfig
from rsft_cluster.generators.transformers import TransformersGenerator
from rsft_cluster.plugins import bind
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.records import Manifest, Pass, PolicyRef
from rsft_cluster.schemas import PROMPT, rows_to_table
from rsft_cluster.store import Store
from rsft_cluster.store.layout import Folder

Tokens = tuple[int, ...]
Weights = Mapping[Tokens, float]


CONSTRAINTS = (
    Constraint(use="finished", weight=0),
    Constraint(use="target_constraints:no_pair_of_c", weight=0),
    Constraint(use="target_constraints:letters_count", required=False),
)


NAMING = (
    Constraint(use="finished", weight=0),
    Constraint(use="target_constraints:names_pair_of_c", weight=0),
    CONSTRAINTS[2],
)
"""The same, with the character named that made a completion wrong."""


@dataclass(frozen=True)
class Language:
    """The enumerated language of one model."""

    path: str
    generator: TransformersGenerator
    prefix: tuple[int, ...]

    def policy(self, temperature: float = 1.0) -> dict[Tokens, float]:
        """Return every completion's probability."""
        found = enumerate_completions(
            self.generator.model, self.prefix, end=EOS, temperature=temperature, length=LENGTH
        )
        assert math.isclose(sum(found.values()), 1.0, rel_tol=1e-9)
        return found

    def text(self, ids: Tokens) -> str:
        return self.generator.tokenizer.decode(list(ids), skip_special_tokens=True)

    def passes(self, ids: Tokens) -> bool:
        return ids[-1] == EOS and "cc" not in self.text(ids)

    def tilted(self, base: Weights, beta: float = math.inf, cap: float = 1.0) -> dict[Tokens, float]:
        """Return base x passed x exp(min(score, cap) / beta), normalised."""
        weights = {
            ids: p * math.exp(min(score_of(self.text(ids)), cap) / beta)
            for ids, p in base.items()
            if p > 0 and self.passes(ids)
        }
        total = sum(weights.values())
        return {ids: w / total for ids, w in weights.items()}

    def judged(
        self,
        folder: Path,
        *,
        num: int,
        num_prompts: int = 1,
        seed: int = 0,
        constraints: Sequence[Constraint] | None = None,
        rule: Plugin | None = None,
        decides: bool = False,
        generator: str = "transformers",
        **decoding: object,
    ) -> "Pool":
        """Sample, judge and commit candidates of the one prompt through the collection's own actors.

        With `num_prompts` it stands there as so many prompts, which differ in their ids alone, `num` candidates each.
        """
        store = Store(str(folder))
        copies = [{"copy": str(i)} if i else {} for i in range(num_prompts)]
        rows = rows_to_table([prompt("ab", role="raw", reference=None, attributes=a) for a in copies], PROMPT)
        store.write_batches("prompts.parquet", rows.to_batches(), PROMPT, rows=num_prompts)
        at = Folder(store, "rounds/0001")
        way = Pass(**{"num_candidates": num, "temperature": 1.0, "max_tokens": LENGTH, "batch_size": 2048, **decoding})
        plan = write_plan(
            at, round_number=1, stream="round-0001", seed=seed, policy=PolicyRef(name="p", uri=self.path, digest="d"),
            passes=(way,), prompts="prompts.parquet", fingerprint="f",
        )  # fmt: skip
        acceptance = AcceptanceConfig(rule=rule or Plugin(use="all_passed"), dedupe=False)
        work = Work(
            store_uri=store.uri, folder=at.path, session="s" * 12, plan=plan, policy=PolicySpec(self.path),
            generator=bind(Plugin(use=generator), "generators", num_leading=1),
            scoring=ScoringConfig(constraints=tuple(constraints or CONSTRAINTS)),
            selection=SelectionRules(bind_rule(acceptance), acceptance), decides=decides, unit_timeout_s=600,
        )  # fmt: skip
        manifest = Collection(work, at).finish()
        (scores,), (candidates,) = manifest.scores, manifest.candidates
        ids = store.read_table(candidates, columns=["token_ids"]).column(0).to_pylist()
        return Pool(judged_table(store.read_table(scores), None, None), [tuple(i) for i in ids], manifest)


@dataclass(frozen=True)
class Pool:
    """Judged candidates and their tokens."""

    judged: pa.Table
    tokens: list[Tokens]
    manifest: Manifest

    def grouped(self, size: int) -> "Pool":
        """Return the same candidates as groups of `size`, each a prompt of its own."""
        num = self.judged.num_rows // size * size
        prompts = pa.array([f"p{i // size:06d}" for i in range(num)])
        index = pa.array(np.arange(num, dtype=np.int32) % size)
        table = self.judged.slice(0, num)
        for name, column in (("prompt_id", prompts), ("index", index)):
            table = table.set_column(table.column_names.index(name), name, column)
        return replace(self, judged=table, tokens=self.tokens[:num])

    def kept_places(
        self, rule: str, *, dedupe: bool = False, budget: BudgetConfig | None = None, **params: object
    ) -> list[int]:
        """Return the rows of what a rule accepts."""
        acceptance = AcceptanceConfig(rule=Plugin(use=rule, params=params), dedupe=dedupe)
        found = decide(self.judged, SelectionRules(bind_rule(acceptance), acceptance, budget)).table
        return np.flatnonzero(found.column("accepted").to_numpy()).tolist()

    def kept(self, rule: str, **settings: object) -> list[Tokens]:
        """Return the tokens of what a rule accepts."""
        return [self.tokens[i] for i in self.kept_places(rule, **settings)]


def language(folder: Path, **options: object) -> Language:
    """Return a language in which seven eighths of the mass pass, with scores from 0 to 1."""
    path = tiny_llama(folder, alphabet="abc", chat_template=None, seed=25, scale=0.7, **options)
    generator = TransformersGenerator(PolicySpec(path))
    return Language(path, generator, tuple(generator.tokenizer("ab")["input_ids"]))


def counts(kept: Sequence[Tokens], target: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each completion of the target was kept, and its probability. Others are an error."""
    observed = dict.fromkeys(target, 0)
    for ids in kept:
        observed[ids] += 1
    return np.array(list(observed.values())), np.array(list(target.values()))


def total_variation(kept: Sequence[Tokens], target: Weights) -> float:
    """Return the total variation distance between the kept and the target, what the target lacks included."""
    share: dict[Tokens, float] = {}
    for ids in kept:
        share[ids] = share.get(ids, 0.0) + 1 / len(kept)
    return 0.5 * sum(abs(share.get(ids, 0.0) - target.get(ids, 0.0)) for ids in share.keys() | target.keys())


def expected_variation(target: Weights, num: int) -> float:
    """Return about the mean total variation of `num` exact draws: 1/2 sqrt(2 / pi) sum sqrt(t (1 - t) / n)."""
    t = np.array(list(target.values()))
    return float(0.5 * math.sqrt(2 / math.pi) * np.sqrt(t * (1 - t) / num).sum())
