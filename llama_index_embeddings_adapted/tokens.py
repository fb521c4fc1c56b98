"""How much text fits: tokens counted roughly, because every model has its own."""

from __future__ import annotations

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.utils import get_tokenizer

from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.prompts import Prompting

#: Reserved for the answer, per question.
TOKENS_PER_QUESTION = 80
_FEWEST = 32


def count_tokens(text: str) -> int:
    """Return about how many tokens a text has, by the tokenizer of LlamaIndex's settings."""
    return len(get_tokenizer()(text))


def passage_budget(metadata: LLMMetadata, prompting: Prompting) -> int:
    """Return how many tokens of a passage an LLM can be sent.

    Args:
        metadata: Of the LLM.
        prompting: What is asked, which takes room itself.

    Raises:
        OptionError: The context is too small for the prompt alone.
    """
    frame = max(count_tokens(request.frame) for request in prompting.requests("", 0))
    left = metadata.context_window - frame - TOKENS_PER_QUESTION * prompting.questions - 64
    if left < _FEWEST:
        raise OptionError(
            f"llm: a context of {metadata.context_window} tokens has no room for a passage beside "
            f"the prompt of about {frame}. Give the LLM a larger context_window."
        )
    return left


def embedded_tokens(embed_model: BaseEmbedding | None) -> int | None:
    """Return how many tokens of a text the model embeds, None where it does not say."""
    length = getattr(embed_model, "max_length", None)
    return length if isinstance(length, int) and length > 0 else None
