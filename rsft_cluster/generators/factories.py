"""Generators whose engines are heavy, as functions that import them where they are built: on the worker."""

from typing import Literal

from rsft_cluster.generators.base import Generator, steerable
from rsft_cluster.policies.spec import PolicySpec


@steerable(engine="batches")
def transformers(
    policy: PolicySpec,
    *,
    engine: Literal["blocks", "batches", "required"] = "blocks",
    kv_bytes: int | None = None,
    packed: bool = True,
    compiled: bool | None = None,
    compute_dtype: Literal["weights", "auto", "float32", "bfloat16"] = "weights",
) -> Generator:
    """Return a generator that samples from a Hugging Face causal language model.

    `engine` is `blocks` for continuous sampling, or `batches` for plain batched decoding, which a model that does not
    fit the first gets too, unless `required` refuses it; `kv_bytes` bounds the memory for keys and values. For a CPU,
    `packed` is whether weights are packed, and `compiled` whether attention, norms and gates are compiled: left out,
    where numba is installed; true, they must be. `compute_dtype` is what the model is computed in: `auto` widens
    bfloat16 to float32 on a CPU whose bfloat16 products are not faster, and is the weights' own type elsewhere.
    """
    # torch and transformers take seconds to import, and configs are bound on machines that have no use for them.
    from rsft_cluster.generators.transformers import TransformersGenerator  # noqa: PLC0415

    return TransformersGenerator(
        policy, engine=engine, kv_bytes=kv_bytes, packed=packed, compiled=compiled, compute_dtype=compute_dtype
    )
