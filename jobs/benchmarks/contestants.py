"""The contestants that run in this project's Python, each in a process of its own: `python -m ... NAME SPEC`.

All of them load the same folder in the same dtype, draw at temperature 1 from the whole vocabulary and end an
answer at the same tokens. What a contestant needs to do well is given to it: sorted prompts, a cache that is large
enough, as many sequences at once as suit it.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from jobs.benchmarks.serving import Answers, Engine, Run, Spec, serve, until_end
from jobs.benchmarks.workload import PAD, text_of
from rsft_cluster.generators.base import Completion, Decoding, Prompt
from rsft_cluster.generators.transformers import TransformersGenerator
from rsft_cluster.keys import sampling_key
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.policies.tokens import RAW
from rsft_cluster.schemas import Message

PAGE_TOKENS = 256
"""transformers' own default; its continuous batching shares whole pages of a prompt between the candidates."""
STEP_TOKENS = 512
"""Tokens a step of continuous batching: its attention mask has a row for each of them."""


def generate(spec: Spec) -> Engine:
    """Return one call of `generate` a prompt, for all its candidates: what most published code does."""
    return _in_batches(spec, num_prompts=1)


def sorted_generate(spec: Spec) -> Engine:
    """Return `generate` on batches of prompts of similar length, left padded, at `rows` sequences a batch."""
    return _in_batches(spec, num_prompts=max(1, spec["rows"] // spec["candidates"]))


def generate_batch(spec: Spec) -> Engine:
    """Return transformers' continuous batching, which forks a prompt for its candidates once it is prefilled."""
    model, decoding = _model(spec), _generation_config(spec)
    pages = -(-spec["context"] // PAGE_TOKENS) + 1

    def run(request: Run) -> Answers:
        batching = ContinuousBatchingConfig(
            max_requests_per_batch=spec["rows"],
            max_batch_tokens=STEP_TOKENS,
            num_blocks=pages * (spec["rows"] + 1),
            seed=request["seed"],
        )
        outputs = list(model.generate_batch(request["prompts"], decoding, batching).values())
        failed = [output.error for output in outputs if output.error is not None]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(outputs)} requests failed: {failed[0]}")
        answers = [output.generated_tokens for output in outputs]
        step = spec["candidates"]
        return [answers[start : start + step] for start in range(0, len(answers), step)]

    return run


def rsft(spec: Spec) -> Engine:
    """Return this project's generator, asked for all candidates of a prompt at once."""
    return _answering(spec, *_generator(spec))


def rsft_drained(spec: Spec) -> Engine:
    """Return the same generator, given as many prompts as fill its rows, and the next ones when all are finished."""
    return _answering(spec, *_generator(spec), at_once=max(1, spec["rows"] // spec["candidates"]))


def rsft_unpacked(spec: Spec) -> Engine:
    """Return the same generator without packed weights."""
    return _answering(spec, *_generator(spec, packed=False))


def rsft_uncompiled(spec: Spec) -> Engine:
    """Return the same generator with nothing compiled: attention, norms and gates by torch."""
    return _answering(spec, *_generator(spec, compiled=False))


def rsft_batches(spec: Spec) -> Engine:
    """Return this project's plain batched decoding, which models get that the engine does not fit."""
    return _answering(spec, *_generator(spec, engine="batches"))


def rsft_copies(spec: Spec) -> Engine:
    """Return the same generator, asked for one candidate of each of so many copies of a prompt."""
    generator, decoding = _generator(spec)

    def run(request: Run) -> Answers:
        wanted = [(i, j) for i in range(len(request["prompts"])) for j in range(spec["candidates"])]
        answers: Answers = [[[] for _ in range(spec["candidates"])] for _ in request["prompts"]]
        copies = [request["prompts"][i] for i, _ in wanted]
        for completion in _completions(generator, copies, decoding, [[_key(request, i, j)] for i, j in wanted]):
            i, j = wanted[completion.prompt]
            answers[i][j] = list(completion.token_ids)
        return answers

    return run


BUILDERS: dict[str, Callable[[Spec], Engine]] = {
    builder.__name__: builder
    for builder in (
        generate,
        sorted_generate,
        generate_batch,
        rsft,
        rsft_copies,
        rsft_drained,
        rsft_unpacked,
        rsft_uncompiled,
        rsft_batches,
    )
}


def _in_batches(spec: Spec, num_prompts: int) -> Engine:
    model, decoding = _model(spec), _generation_config(spec)
    ends = set(spec["end_token_ids"])

    def run(request: Run) -> Answers:
        torch.manual_seed(request["seed"])
        prompts = request["prompts"]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers: Answers = [[] for _ in prompts]
        for start in range(0, len(order), num_prompts):
            batch = order[start : start + num_prompts]
            ids, mask = _left_padded([prompts[i] for i in batch])
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=decoding)
            for row, tokens in enumerate(output[:, ids.shape[1] :].tolist()):
                answers[batch[row // spec["candidates"]]].append(until_end(tokens, ends))
        return answers

    return run


def _left_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask (prompts, longest)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _model(spec: Spec) -> Any:
    # Any: transformers' types do not know that its models generate.
    torch.set_num_threads(spec["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        spec["model"], dtype=getattr(torch, spec["dtype"]), attn_implementation="sdpa"
    )
    return model.eval()


def _generation_config(spec: Spec) -> GenerationConfig:
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=spec["max_tokens"],
        num_return_sequences=spec["candidates"],
        eos_token_id=spec["end_token_ids"],
        pad_token_id=PAD,
    )


def _answering(
    spec: Spec, generator: TransformersGenerator, decoding: Decoding, *, at_once: int | None = None
) -> Engine:
    def run(request: Run) -> Answers:
        prompts = request["prompts"]
        keys = [[_key(request, i, j) for j in range(spec["candidates"])] for i in range(len(prompts))]
        answers: Answers = [[[] for _ in row] for row in keys]
        size = at_once or len(prompts)
        for start in range(0, len(prompts), size):
            part = slice(start, start + size)
            for completion in _completions(generator, prompts[part], decoding, keys[part]):
                answers[start + completion.prompt][completion.index] = list(completion.token_ids)
        return answers

    return run


def _generator(spec: Spec, **params: Any) -> tuple[TransformersGenerator, Decoding]:
    policy = PolicySpec(spec["model"], dtype=spec["dtype"], threads=spec["threads"])
    decoding = Decoding(
        max_tokens=spec["max_tokens"], batch_size=spec["rows"], stop_token_ids=tuple(spec["end_token_ids"])
    )
    return TransformersGenerator(policy, **params), decoding


def _completions(
    generator: TransformersGenerator, prompts: list[list[int]], decoding: Decoding, keys: list[list[int]]
) -> list[Completion]:
    asked = [Prompt(str(i), [Message(RAW, text_of(prompt))]) for i, prompt in enumerate(prompts)]
    completions: list[Completion] = []
    for result in generator.generate(asked, decoding, keys):
        if not isinstance(result, Completion):
            raise TypeError(f"prompt {result.prompt} was refused: {result.reason}")
        if list(result.prompt_token_ids) != prompts[result.prompt]:
            raise ValueError(f"prompt {result.prompt} was read as other tokens than those given")
        completions.append(result)
    return completions


def _key(request: Run, prompt: int, candidate: int) -> int:
    return sampling_key(request["seed"], "bench", str(prompt), candidate)


if __name__ == "__main__":
    serve(BUILDERS[sys.argv[1]])
