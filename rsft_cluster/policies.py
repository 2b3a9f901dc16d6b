"""Which model is meant, exactly: policy references with digests over their files.

A folder is known by the bytes of its weights and tokenizer; a hub id by its commit, resolved once. No model is loaded.
"""

import hashlib
from pathlib import Path

import pyarrow.fs as pafs
from huggingface_hub import HfApi

from rsft_cluster.config import PolicyConfig
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.generators.base import PolicySpec
from rsft_cluster.records import PolicyRef
from rsft_cluster.schemas import digest
from rsft_cluster.store import open_uri

BASE = "round-0000"
CHUNK_BYTES = 1 << 22


def is_folder(model: str) -> bool:
    """Say whether a policy's `model` is a folder or URI, not a hub id."""
    return "://" in model or model.startswith("/")


def base_policy(config: PolicyConfig) -> PolicyRef:
    """Return the reference of the policy that a run starts from.

    Raises ConfigError where there is no such model, or none in safetensors.
    """
    if is_folder(config.model):
        check_folder(config.model)
        return PolicyRef(name=BASE, uri=config.model, digest=folder_digest(config.model))
    revision = config.revision or _resolve(config.model)
    return PolicyRef(name=BASE, uri=config.model, revision=revision, digest=digest(config.model, revision))


def check_folder(model: str) -> None:
    """Raise ConfigError unless the folder holds a config.json and safetensors."""
    names = {Path(f.path).name for f in _files(model)}
    if not names:
        raise ConfigError(f"policy.model: {model}: there is no such folder, or it is empty")
    if "config.json" not in names:
        raise ConfigError(f"policy.model: {model}: holds no config.json; a Hugging Face model folder is needed")
    if not any(n.endswith(".safetensors") for n in names):
        raise ConfigError(
            f"policy.model: {model}: holds no *.safetensors; pickled weights are not loaded. "
            "Convert them with model.save_pretrained(folder)."
        )


def folder_digest(uri: str) -> str:
    """Return a digest over the names and bytes of a model folder's files."""
    filesystem, root = open_uri(uri)
    whole = hashlib.sha256()
    for info in sorted(_files(uri), key=lambda f: f.path):
        name = info.path[len(root) :].lstrip("/")
        if "/" in name or name.startswith("."):
            continue
        whole.update(f"{name} {info.size}\n".encode())
        with filesystem.open_input_stream(info.path) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                whole.update(chunk)
    return whole.hexdigest()[:32]


def verify(policy: PolicyRef) -> None:
    """Raise StoreError when a policy's files are not what its reference says."""
    if not is_folder(policy.uri):
        return
    found = folder_digest(policy.uri)
    if found != policy.digest:
        raise StoreError(
            f"{policy.uri}: these are not the weights of {policy.name}: "
            f"digest {found[:12]}, recorded {policy.digest[:12]}"
        )


def policy_spec(
    policy: PolicyRef, config: PolicyConfig, *, trust_remote_code: bool, threads: int, gpu: bool
) -> PolicySpec:
    """Return how a worker loads a policy."""
    template = config.chat_template
    return PolicySpec(
        model=policy.uri,
        name=policy.name,
        revision=policy.revision,
        dtype=config.dtype,
        attention=config.attention,
        chat_template=Path(template).read_text(encoding="utf-8") if template else None,
        trust_remote_code=trust_remote_code,
        device="cuda" if gpu else "cpu",
        threads=threads,
    )


def _files(uri: str) -> list[pafs.FileInfo]:
    filesystem, path = open_uri(uri)
    found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return [f for f in found if f.type == pafs.FileType.File]


def _resolve(model: str) -> str:
    try:
        sha = HfApi().model_info(model).sha
    except Exception as error:  # the hub's client lets its HTTP library's errors through
        raise ConfigError(
            f"policy.model: {model!r} is no folder here, and the hub could not be asked for it: "
            f"{(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    if sha is None:
        raise ConfigError(f"policy.model: the hub names no commit of {model!r}; set policy.revision")
    return sha
