"""How well a policy does on held-out prompts, by pass@k and other figures.

Wave 0 of an evaluation is one greedy answer a prompt, wave 1 the sampled ones. All evaluations of a run draw from the
same random streams, so that two policies are compared prompt by prompt.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

from math import comb

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rsft_cluster.config import EvaluationConfig, FairnessConfig, SamplingConfig
from rsft_cluster.errors import StageError
from rsft_cluster.evaluation.diversity import distinct_n, self_bleu
from rsft_cluster.evaluation.fairness import fairness_report
from rsft_cluster.records import Evaluation, FairnessReport, Manifest, Pass, Plan
from rsft_cluster.schemas import conform
from rsft_cluster.store.layout import EvaluationLayout, Folder

PER_PROMPT = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("greedy_passed", pa.bool_()),
        pa.field("num_samples", pa.int32(), nullable=False),
        pa.field("num_passed", pa.int32(), nullable=False),
        pa.field("pass_rate", pa.float64(), nullable=False),
        pa.field("mean_score", pa.float64(), nullable=False),
    ]
)
"""A row a prompt, the input of promotion rules. Candidates whose judgement is an error are in no count."""

MAX_COMPARED_PROMPTS = 100
"""Prompts whose completions are compared with each other."""


def evaluation_passes(config: EvaluationConfig, sampling: SamplingConfig) -> tuple[Pass, ...]:
    """Return the two passes over held-out prompts: one greedy answer, then samples with nothing truncated."""
    shared = {
        "max_tokens": sampling.max_tokens,
        "stop": sampling.stop,
        "stop_token_ids": sampling.stop_token_ids,
        "batch_size": sampling.batch_size,
        "independent_rows": sampling.independent_rows,
    }
    greedy = Pass(num_candidates=1, temperature=0.0, **shared)
    return (greedy, Pass(num_candidates=config.num_samples, temperature=config.temperature, **shared))


def evaluate(folder: EvaluationLayout, manifest: Manifest, config: EvaluationConfig) -> Evaluation:
    """Return the figures of a sealed evaluation, and write its per-prompt table."""
    candidates = _read(folder, manifest, "candidates")
    scores = _read(folder, manifest, "scores")
    if candidates.column("candidate_id") != scores.column("candidate_id"):
        raise StageError(f"{folder.path}: candidates and scores do not stand in the same order")
    per_prompt = per_prompt_table(candidates, scores)
    if not per_prompt.num_rows:
        raise StageError(f"{folder.path}: no held-out prompt could be judged; see `rsft inspect --state error`")
    k = config.k or config.num_samples
    passed, judged = _numbers(per_prompt, "num_passed"), _numbers(per_prompt, "num_samples")
    greedy = per_prompt.column("greedy_passed").drop_null()
    sampled = candidates.filter(pc.equal(candidates.column("wave"), 1))
    return Evaluation(
        policy=manifest.policy,
        num_prompts=per_prompt.num_rows,
        num_samples=config.num_samples,
        k=k,
        greedy_accuracy=float(np.mean(greedy.to_numpy().astype(float))) if len(greedy) else 0.0,
        pass_at_1=float(np.mean(passed / judged)),
        pass_at_k=float(np.mean([pass_at_k(int(n), int(c), k) for n, c in zip(judged, passed, strict=True)])),
        mean_score=float(np.mean(_numbers(per_prompt, "mean_score"))),
        mean_tokens=float(np.mean([len(t) for t in sampled.column("token_ids")])),
        distinct_2=distinct_n(sampled.column("token_ids").to_pylist(), 2),
        self_bleu=self_bleu(_groups(sampled)),
        entropy=_entropy(sampled),
        num_errors=manifest.totals.num_errors,
        per_prompt=folder.store.write_table(folder.per_prompt, per_prompt, PER_PROMPT),
    )


def evaluate_fairness(folder: Folder, plan: Plan, manifest: Manifest, fairness: FairnessConfig) -> FairnessReport:
    """Return the figures of a sealed evaluation's decisions by protected values."""
    prompts = pa.Table.from_batches(folder.store.read_batches(plan.prompts, ["prompt_id", "attributes"]))
    columns = ["prompt_id", "index", "decision"]
    scores = pa.concat_tables([folder.store.read_table(ref, columns=columns) for ref in manifest.scores])
    return fairness_report(prompts, scores, fairness)


def per_prompt_table(candidates: pa.Table, scores: pa.Table) -> pa.Table:
    """Return the PER_PROMPT rows of judged candidates, sorted by prompt id."""
    greedy: dict[str, bool] = {}
    sampled: dict[str, list[tuple[bool, float]]] = {}
    columns = (candidates.column("wave"), *(scores.column(c) for c in ("prompt_id", "passed", "score")))
    for wave, prompt, passed, score in zip(*(c.to_pylist() for c in columns), strict=True):
        if passed is None:
            continue
        if wave == 0:
            greedy[prompt] = passed
        else:
            sampled.setdefault(prompt, []).append((passed, score))
    rows = [
        {
            "prompt_id": prompt,
            "greedy_passed": greedy.get(prompt),
            "num_samples": len(samples),
            "num_passed": sum(p for p, _ in samples),
            "pass_rate": float(np.mean([p for p, _ in samples])),
            "mean_score": float(np.mean([s for _, s in samples])),
        }
        for prompt, samples in sorted(sampled.items())
    ]
    return conform(pa.Table.from_pylist(rows, schema=PER_PROMPT), PER_PROMPT)


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of k samples passes (Chen et al. 2021, equation 1).

    With fewer than k judged samples, k is their number.
    """
    k = min(k, num_samples)
    return 1.0 - comb(num_samples - num_passed, k) / comb(num_samples, k)


def _groups(sampled: pa.Table) -> list[list[list[int]]]:
    """Return the sampled completions of the first prompts, by prompt: self-BLEU is quadratic in a group."""
    groups: dict[str, list[list[int]]] = {}
    prompts, completions = (sampled.column(name).to_pylist() for name in ("prompt_id", "token_ids"))
    for prompt, ids in zip(prompts, completions, strict=True):
        groups.setdefault(prompt, []).append(ids)
    return [groups[prompt] for prompt in sorted(groups)[:MAX_COMPARED_PROMPTS]]


def _entropy(sampled: pa.Table) -> float:
    num_tokens = sum(len(t) for t in sampled.column("token_ids"))
    return -float(np.sum(sampled.column("target_logprob").to_numpy())) / max(num_tokens, 1)


def _read(folder: Folder, manifest: Manifest, part: str) -> pa.Table:
    return pa.concat_tables([folder.store.read_table(ref) for ref in getattr(manifest, part)])


def _numbers(table: pa.Table, column: str) -> np.ndarray:
    return table.column(column).to_numpy()
