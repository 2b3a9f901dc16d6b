"""Generators whose engines are heavy, as functions that import them where they are built: on the worker."""

from rsft_cluster.generators.base import Generator, PolicySpec


def transformers(policy: PolicySpec) -> Generator:
    """Return a generator that decodes a Hugging Face causal language model."""
    # torch and transformers take seconds to import, and configs are bound on machines that have no use for them.
    from rsft_cluster.generators.transformers import TransformersGenerator  # noqa: PLC0415

    return TransformersGenerator(policy)
