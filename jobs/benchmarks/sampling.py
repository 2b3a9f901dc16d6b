"""Candidates a second, side by side: `python -m jobs.benchmarks.sampling`, or `make bench-sampling`.

The same random model, prompts, number of candidates and lengths go through every way of sampling that this machine
has, one repetition of each in turn. A model's table goes to stdout, every measurement into `--out`. What counts is
useful tokens: those of an answer up to its end token.

    generate          one call of `generate` a prompt, for all its candidates
    sorted_generate   `generate` on batches of prompts of similar length
    generate_batch    transformers' continuous batching
    rsft              this project's generator
    rsft_copies       the same, asked for each candidate as a prompt of its own: what shared prompts save
    rsft_drained      the same in batches: what refilling saves       (--ablation)
    rsft_unpacked     the same without packed weights                 (--ablation)
    rsft_uncompiled   the same with nothing compiled                  (--ablation)
    rsft_batches      this project's plain batched decoding           (--ablation)
    vllm              vLLM, in a Python of its own: --vllm-python, or RSFT_VLLM_PYTHON
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from jobs.benchmarks import workload
from jobs.benchmarks.results import Comparison, Repetition, Standing
from jobs.benchmarks.roofline import Machine, Probe, demand, roofline
from jobs.benchmarks.serving import Spec
from jobs.benchmarks.sides import Side, SideError
from rsft_cluster.report.console import results

CONTESTANTS = ("generate", "sorted_generate", "generate_batch", "rsft", "rsft_copies", "vllm")
ABLATION = ("rsft", "rsft_drained", "rsft_copies", "rsft_unpacked", "rsft_uncompiled", "rsft_batches")
SHORTEST, LONGEST = 16, 256
SEED = 0


@dataclass(frozen=True, slots=True)
class Bench:
    """One model's benchmark: what it runs on and what it is asked."""

    model: str
    spec: Spec
    prompts: dict[str, list[list[int]]]
    """By contestant: the slow ones get fewer."""
    repetitions: int
    logs: Path
    vllm_python: str | None

    @property
    def shape(self) -> workload.Shape:
        """The model's sizes."""
        return workload.SHAPES[self.model]


def main() -> int:
    """Run the benchmark; returns 1 if a contestant failed."""
    arguments = parse()
    console = Console(stderr=True, highlight=False)
    _bind(arguments.threads)
    comparisons: list[Comparison] = []
    for name in arguments.models:
        comparisons.append(compare(bench_of(name, arguments, console), console))
        results().print(comparisons[-1].table())
        # After each model, so that a run that is broken off leaves what it has.
        arguments.out.write_text(json.dumps(report(arguments, comparisons), indent=1))
    console.print(f"every repetition is in {arguments.out}")
    return int(any(standing.error for c in comparisons for standing in c.standings.values()))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.benchmarks.sampling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=workload.SHAPES, default=["15m", "60m", "300m"])
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    add("--threads", type=int, default=len(_cores()), help="cores that everything is bound to")
    add("--prompts", type=int, default=32)
    add("--slow-prompts", type=int, help="prompts of generate, sorted_generate and generate_batch; by the model's size")
    add("--candidates", type=int, help="candidates a prompt: 8, or 16 with --shared-prompt")
    add("--max-tokens", type=int, default=256)
    add("--rows", type=int, default=64, help="sequences that are decoded together")
    add("--repetitions", type=int, default=3)
    add("--contestants", nargs="+", choices=sorted({*CONTESTANTS, *ABLATION}))
    add("--shared-prompt", action="store_true", help=f"prompts of {LONGEST} tokens: rsft against rsft_copies")
    add("--ablation", action="store_true", help="the engine without one of its parts in turn")
    add("--vllm-python", default=os.environ.get("RSFT_VLLM_PYTHON"), help="a Python that has vLLM")
    add("--cache", type=Path, default=Path("build/benchmarks"), help="where models and logs are kept")
    add("--out", type=Path, default=Path("bench-sampling.json"))
    arguments = parser.parse_args()
    arguments.candidates = arguments.candidates or (16 if arguments.shared_prompt else 8)
    default = CONTESTANTS[3:5] if arguments.shared_prompt else ABLATION if arguments.ablation else CONTESTANTS
    arguments.contestants = arguments.contestants or default
    return arguments


def bench_of(name: str, arguments: argparse.Namespace, console: Console) -> Bench:
    """Write the model and draw the prompts."""
    shape, context = workload.SHAPES[name], LONGEST + arguments.max_tokens
    spec = Spec(
        model=str(workload.prepare(name, arguments.cache.resolve())),
        dtype=arguments.dtype,
        threads=arguments.threads,
        rows=arguments.rows,
        context=context,
        cache_bytes=arguments.rows * context * shape.num_cache_values * getattr(torch, arguments.dtype).itemsize,
        max_tokens=arguments.max_tokens,
        candidates=arguments.candidates,
        end_token_ids=workload.end_tokens(shape),
    )
    shortest = LONGEST if arguments.shared_prompt else SHORTEST
    prompts = workload.prompts(shape, arguments.prompts, shortest=shortest, longest=LONGEST, seed=SEED)
    few = arguments.slow_prompts or shape.num_slow_prompts
    in_batch = max(1, arguments.rows // arguments.candidates)
    slow = {
        "generate": workload.thinned(prompts, few),
        # Whole batches, and enough sequences that all of its rows are busy for half of the time.
        "sorted_generate": workload.thinned(prompts, few, group=in_batch),
        "generate_batch": workload.thinned(prompts, max(few, 2 * in_batch)),
    }
    entered = [c for c in arguments.contestants if c != "vllm" or arguments.vllm_python]
    if len(entered) < len(arguments.contestants):
        console.print("vllm is left out: name a Python that has it with --vllm-python or RSFT_VLLM_PYTHON")
    asked = {contestant: slow.get(contestant, prompts) for contestant in entered}
    return Bench(name, spec, asked, arguments.repetitions, arguments.cache / "logs", arguments.vllm_python)


def compare(bench: Bench, console: Console) -> Comparison:
    """Run every contestant `repetitions` times, in turn."""
    dtype = getattr(torch, bench.spec["dtype"])
    probe = Probe(bench.shape, dtype=dtype, rows=bench.spec["rows"], threads=bench.spec["threads"])
    standings = {name: Standing() for name in bench.prompts}
    machine: list[Machine] = []
    lengths: list[tuple[int, int]] = []
    with ExitStack() as stack:
        sides = _start(bench, standings, stack, console)
        for number in range(1, bench.repetitions + 1):
            machine.append(probe.measure())
            for name in _in_turn(list(sides), number):
                lengths += _repeat(bench, number, name, sides, standings[name], console)
    asked = demand(bench.shape, dtype=dtype, rows=bench.spec["rows"], lengths=lengths) if lengths else None
    return Comparison(bench.model, _num_parameters(bench), standings, roofline(asked, machine) if asked else None)


def report(arguments: argparse.Namespace, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return everything that was measured, and how, as plain data."""
    settings = {k: v for k, v in vars(arguments).items() if isinstance(v, int | str | list | tuple | None)}
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": len(_cores()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {"settings": settings, "machine": machine, "models": [c.as_json() for c in comparisons]}


def _start(bench: Bench, standings: dict[str, Standing], stack: ExitStack, console: Console) -> dict[str, Side]:
    """Start all contestants together; return those that load and answer a first call."""
    sides = {
        name: Side(name, bench.spec, log=bench.logs / f"{bench.model}-{name}.log", vllm_python=bench.vllm_python)
        for name in bench.prompts
    }
    for side in sides.values():
        stack.callback(side.close)
    for name, side in sides.items():
        with console.status(f"{bench.model}: loading {name}"), _noted(standings[name], console):
            standings[name].load_seconds = side.loaded()
    warming = {name: side for name, side in sides.items() if standings[name].error is None}
    for name, side in warming.items():
        shortest = sorted(bench.prompts[name], key=len)[:2]
        with _noted(standings[name], console):
            first, again = (side.run({"prompts": shortest, "seed": SEED}) for _ in range(2))
            # Both give the same answers, but for vLLM, which draws as it goes: it is compared by its steps.
            standings[name].first_call_seconds = first.seconds - again.seconds * first.num_steps / again.num_steps
    return {name: side for name, side in warming.items() if standings[name].error is None}


def _repeat(
    bench: Bench, number: int, name: str, sides: dict[str, Side], standing: Standing, console: Console
) -> list[tuple[int, int]]:
    """Run one repetition of one contestant; return the lengths of its prompts and answers. One that fails is out."""
    prompts, lengths = bench.prompts[name], []
    with _noted(standing, console), console.status(f"{bench.model}: repetition {number}, {name}"):
        ran = sides[name].run({"prompts": prompts, "seed": SEED + number})
        lengths = ran.lengths
        done = Repetition(number, ran.seconds, ran.num_tokens, len(prompts), ran.cores, ran.cores_of_others)
        standing.repetitions.append(done)
        standing.peak_mb = sides[name].peak_mb()
        console.print(
            f"{bench.model} {number}/{bench.repetitions} {name}: {done.seconds:.1f} s, {done.rate:,.0f} tok/s"
        )
    if standing.error is not None:
        del sides[name]
    return [(len(prompt), length) for prompt, row in zip(prompts, lengths, strict=False) for length in row]


@contextmanager
def _noted(standing: Standing, console: Console) -> Iterator[None]:
    """Keep a contestant's failure as its result."""
    try:
        yield
    except SideError as error:
        standing.error = str(error)
        console.print(str(error), style="red", markup=False)


def _in_turn(names: list[str], number: int) -> list[str]:
    """Return the names, begun with another one in each repetition."""
    start = number % len(names) if names else 0
    return names[start:] + names[:start]


def _num_parameters(bench: Bench) -> int:
    # Tied embeddings are one of the matrices; the norms are two vectors a layer and one at the end.
    norms = (2 * bench.shape.layers + 1) * bench.shape.hidden
    return sum(inputs * outputs * n for inputs, outputs, n in bench.shape.linears()) + norms


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _bind(threads: int) -> None:
    """Bind this process, and with it all that it starts, to so many cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, _cores()[:threads])


if __name__ == "__main__":
    sys.exit(main())
