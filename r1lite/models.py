"""Models by name: a directory or a hub id, found, checked, fingerprinted and loaded."""

import os
import re
import socket
from pathlib import Path
from typing import Any

from r1lite.records import digest

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
WHOLE_HASH_LIMIT = 256 * 2**20  # bytes; larger weights are told apart by header and size


def locate(reference: str, download: bool = False) -> Path | None:
    """The directory of a model; None for a hub id that is not in the cache, unless `download`.

    A name that is a directory here is that directory, even where a hub id reads the same. Raises ValueError when the
    directory is no model, or the hub cannot be reached.
    """
    path = Path(reference)
    if (path / "model").is_dir() and (path / "spec.json").is_file():
        path = path / "model"  # a stage's directory stands for the model in it
    if path.is_dir():
        missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).is_file()]
        if not any(path.glob("*.safetensors")):
            missing.append("*.safetensors")
        if missing:
            raise ValueError(f"{reference} is a directory but not a model: it lacks {', '.join(missing)}")
        return path
    if not HUB_ID.fullmatch(reference):
        raise ValueError(f"{reference!r} is neither a directory (looked in {Path.cwd()}) nor a hub id (owner/name)")
    return from_hub(reference, download)


def from_hub(hub_id: str, download: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]  # never pickles, never code
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True))
    except Exception:  # not in the cache
        pass
    if not hub_reachable():
        raise ValueError(
            f"{hub_id} is no directory here, is not in the hub's cache, and the hub cannot be reached; "
            "download it where there is network and name its directory"
        )
    if not download:
        return None
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:
        raise ValueError(f"cannot download {hub_id}: {type(error).__name__}: {str(error)[:200]}") from error


def hub_reachable() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes"):
        return False
    host = re.sub(r"^https?://|[:/].*$", "", os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host, 443), timeout=1.5).close()
    except OSError:
        return False
    return True


def fingerprint(reference: str) -> dict[str, str]:
    """What tells this model from any other: the commit of a hub snapshot, else hashes of its files."""
    path = locate(reference)
    if path is None:
        return {reference: "not downloaded yet"}
    if path.parent.name == "snapshots":
        return {reference: path.name}
    files = [*path.glob("*.safetensors"), *path.glob("*.json"), *path.glob("*.jinja")]
    return {f"{reference}/{file.name}": file_hash(file) for file in sorted(files)}


def file_hash(file: Path) -> str:
    size = file.stat().st_size
    if size <= WHOLE_HASH_LIMIT:
        return digest(file.read_bytes())
    with file.open("rb") as opened:
        return digest(opened.read(2**20) + str(size).encode())


def load_tokenizer(path: Path | str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    if tokenizer.eos_token is None:
        raise ValueError(f"the tokenizer of {path} has no end token; set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(path: Path | str, dtype: str) -> Any:
    """A causal LM from safetensors, on the GPU where there is one."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True)
    except Exception as error:  # a damaged file, an unknown architecture, a config of another model
        raise ValueError(f"{path} cannot be loaded as a causal language model: {str(error)[:300]}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def load_generation_config(path: Path | str) -> Any:
    from transformers import GenerationConfig

    if (Path(path) / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(path)
    return GenerationConfig()


def end_tokens(generation_config: Any, tokenizer: Any) -> list[int]:
    """All ids that end a completion: the tokenizer's end token, and those of the model's generation config."""
    declared = generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([tokenizer.eos_token_id, *declared]))
