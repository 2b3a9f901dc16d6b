"""vLLM as a contestant, in a Python of its own: imports vLLM and the standard library alone.

Prefix caching is on, `rows` sequences run at once, and text is not decoded, which spares vLLM some work.
"""

import os
import sys

from jobs.benchmarks.serving import Answers, Engine, Run, Spec, serve

BLOCK_TOKENS = 32
"""A prompt is shared in whole blocks, and the default on a CPU, 128, is longer than most of the prompts."""


def build(spec: Spec) -> Engine:
    """Load the model on the cores that this process may use."""
    cores = sorted(os.sched_getaffinity(0))[: spec["threads"]]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # It reads the environment when it is imported, and this project's own Python does not have it.
    from vllm import LLM, SamplingParams  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    model = LLM(
        model=spec["model"],
        dtype=spec["dtype"],
        max_model_len=spec["context"],
        max_num_seqs=spec["rows"],
        enable_prefix_caching=True,
        block_size=BLOCK_TOKENS,
        kv_cache_memory_bytes=spec["cache_bytes"],
        disable_log_stats=True,
    )

    def run(request: Run) -> Answers:
        sampling = SamplingParams(
            n=spec["candidates"],
            temperature=1.0,
            max_tokens=spec["max_tokens"],
            stop_token_ids=spec["end_token_ids"],
            detokenize=False,
        )
        inputs = [{"prompt_token_ids": prompt} for prompt in request["prompts"]]
        model.reset_prefix_cache()
        outputs = model.generate(inputs, sampling, use_tqdm=False)
        return [[list(answer.token_ids) for answer in output.outputs] for output in outputs]

    return run


if __name__ == "__main__":
    sys.exit(serve(build))
