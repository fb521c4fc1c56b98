"""What ``tests/frozen`` was written from, by version 0.1: folders, a vector cache and a journal.

Those files are read-only for ever: they show that what people saved still loads and means the same.
"""

from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.llms import CustomLLM
from llama_index.core.schema import TextNode

FOLDER = Path(__file__).parents[1] / "frozen"
DIM = 16  # of the base model, tests.conftest.CountingEmbedding
KITE, FERRY = "the red kite soars over the moor", "a ferry leaves the harbour at noon"
TEXTS = KITE, FERRY, "bread needs salt"
QUERIES = np.random.default_rng(7).standard_normal((5, DIM)).astype(np.float32)


class ScriptedLLM(CustomLLM):
    calls: int = 0

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="scripted", is_chat_model=False)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.calls += 1
        last = prompt.rsplit("Passage:", 1)[-1].split("\n", 1)[0].strip()
        return CompletionResponse(text=f"When does {last.lower()} really happen?")

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


def nodes() -> list[TextNode]:
    return [TextNode(text=text, id_=f"n{row}") for row, text in enumerate(TEXTS)]
