"""Policy references, which identify a model exactly by digests over its files.

A folder is identified by the bytes of its weights and tokenizer, a hub id by its commit, resolved once. No model
is loaded.
"""

import hashlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pyarrow.fs as pafs
from huggingface_hub import HfApi

from rsft_cluster.config import PolicyConfig
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.records import PolicyRef
from rsft_cluster.schemas import digest
from rsft_cluster.store import join_uri, localise, open_uri

BASE = "round-0000"
MASTER = "float32"
"""The folder, below a policy's own, with the weights as they were before they were rounded to its dtype."""
MASTER_DIGEST = "float32.digest"
"""The file beside it that holds its digest: it counts in the digest of the policy."""
CHUNK_BYTES = 1 << 22


def is_folder(model: str) -> bool:
    """Return whether a policy's `model` is a folder or URI, not a hub id."""
    return "://" in model or model.startswith("/")


def base_policy(config: PolicyConfig) -> PolicyRef:
    """Return the reference of the policy that a run starts from.

    Raises ConfigError where there is no such model or adapter, or none in safetensors.
    """
    check_adapter(config)
    if is_folder(config.model):
        check_folder(config.model)
        reference = PolicyRef(name=BASE, uri=config.model, adapter=config.adapter, digest="")
    else:
        revision = config.revision or _resolve(config.model)
        reference = PolicyRef(name=BASE, uri=config.model, revision=revision, adapter=config.adapter, digest="")
    return reference.model_copy(update={"digest": _digest(reference)})


def check_adapter(config: PolicyConfig) -> None:
    """Raise ConfigError unless the adapter, if there is one, is there and can be merged here."""
    if config.adapter is not None:
        check_folder(config.adapter, "policy.adapter")
        if find_spec("peft") is None:
            raise ConfigError("policy.adapter: needs peft; install rsft-cluster[lora]")


def check_folder(model: str, key: str = "policy.model") -> None:
    """Raise ConfigError unless the folder holds a config and safetensors, of a model or, by the key, an adapter."""
    kind, config = ("PEFT adapter", "adapter_config.json") if key == "policy.adapter" else ("model", "config.json")
    names = {Path(f.path).name for f in _files(model)}
    if not names:
        raise ConfigError(f"{key}: {model}: there is no such folder, or it is empty")
    if config not in names:
        raise ConfigError(f"{key}: {model}: holds no {config}; a Hugging Face {kind} folder is needed")
    if not any(n.endswith(".safetensors") for n in names):
        raise ConfigError(
            f"{key}: {model}: holds no *.safetensors; pickled weights are not loaded. "
            "Convert them with model.save_pretrained(folder)."
        )


def localised(policy: PolicySpec) -> PolicySpec:
    """Return the policy with its files on this machine."""
    model = str(localise(policy.model, without=MASTER)) if "://" in policy.model else policy.model
    adapter, master = (uri and str(localise(uri)) for uri in (policy.adapter, policy.master))
    return replace(policy, model=model, adapter=adapter, master=master)


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
    """Raise StoreError when the digest of a policy's files is not that of its reference."""
    actual = _digest(policy)
    if actual != policy.digest:
        raise StoreError(
            f"{policy.uri}: these are not the weights of {policy.name}: "
            f"digest {actual[:12]}, recorded {policy.digest[:12]}"
        )


def master_of(policy: PolicyRef) -> str | None:
    """Return the folder with a policy's weights in float32, None where it has none or it was deleted to save space.

    Raises StoreError where they are not those that the policy was written with.
    """
    uri = join_uri(policy.uri, MASTER)
    if not is_folder(policy.uri) or not _files(uri):
        return None
    filesystem, path = open_uri(join_uri(policy.uri, MASTER_DIGEST))
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        return None
    with filesystem.open_input_stream(path) as stream:
        recorded = stream.read().decode().strip()
    found = folder_digest(uri)
    if found != recorded:
        raise StoreError(
            f"{uri}: these are not the float32 weights of {policy.name}: digest {found[:12]}, "
            f"recorded {recorded[:12]}; delete the folder, and training goes on from the rounded ones"
        )
    return uri


def policy_spec(
    policy: PolicyRef, config: PolicyConfig, *, trust_remote_code: bool, threads: int, gpu: bool
) -> PolicySpec:
    """Return the policy as a worker loads it."""
    template = config.chat_template
    return PolicySpec(
        model=policy.uri,
        name=policy.name,
        adapter=policy.adapter,
        revision=policy.revision,
        dtype=config.dtype,
        attention=config.attention,
        chat_template=Path(template).read_text(encoding="utf-8") if template else None,
        trust_remote_code=trust_remote_code,
        device="cuda" if gpu else "cpu",
        threads=threads,
    )


def _digest(policy: PolicyRef) -> str:
    """Return the digest of the files that a reference names."""
    model = folder_digest(policy.uri) if is_folder(policy.uri) else digest(policy.uri, policy.revision)
    return model if policy.adapter is None else digest(model, folder_digest(policy.adapter))


def _files(uri: str) -> list[pafs.FileInfo]:
    filesystem, path = open_uri(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return [f for f in infos if f.type == pafs.FileType.File]


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
