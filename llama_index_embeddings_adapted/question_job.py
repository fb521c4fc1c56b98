"""From a path to a dataset: read as it is, or asked for about the documents that are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import LLM
from llama_index.core.schema import BaseNode

from llama_index_embeddings_adapted import inputs
from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.model_specs import LLMS, Writer, resolve_model, resolve_writer


@dataclass(frozen=True)
class QuestionJob:
    """What to ask about which documents, as a command line says it.

    Args:
        source: Documents, or a dataset.
        llm: See :func:`~llama_index_embeddings_adapted.model_specs.resolve_writer`.
        structure: Take questions from titles and headings instead.
        base: See :func:`~llama_index_embeddings_adapted.model_specs.resolve_model`; None leaves
            out the filters that need a model.
        questions_per_chunk: At most.
        max_chunks: None for all.
        chunk_size: Tokens.
        chunk_overlap: Tokens.
        styles: None for those that suit the LLM; so for the three below.
        questions_per_call: At once.
        concurrency: Calls at once.
        round_trip_k: See ``GenerationOptions``.
        cache_dir: None for LlamaIndex's.
        seed: Of the choice of passages.
        quiet: Show no bars.
    """

    source: Path
    llm: str | None = None
    structure: bool = False
    base: str | None = None
    questions_per_chunk: int = 2
    max_chunks: int | None = None
    chunk_size: int = 512
    chunk_overlap: int = 50
    styles: list[str] | None = None
    questions_per_call: int | None = None
    concurrency: int | None = None
    round_trip_k: int | None = None
    cache_dir: str | None = None
    seed: int = 0
    quiet: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> QuestionJob:
        """Take what concerns it from the options of a command, and leave the rest."""
        return cls(**{each.name: options[each.name] for each in fields(cls)})

    @cached_property
    def model(self) -> BaseEmbedding | None:
        """The embedding model; None where none is named."""
        return None if self.base is None else resolve_model(self.base)

    def check(self) -> None:
        """Check that there is a way from the source to questions, before anything is loaded.

        Raises:
            OptionError: Documents, and neither an LLM nor ``structure``; or both; or an LLM that
                nothing is known by.
            MissingExtraError: The package of the LLM is not installed.
        """
        if inputs.holds_pairs(self.source):
            if self.llm is not None or self.structure:
                raise OptionError(
                    f"{self.source} is a dataset: it has questions. Leave out --llm and "
                    "--structure, or point at documents."
                )
        elif (self.llm is None) != self.structure:
            raise OptionError(
                f"{self.source} holds documents: pass --llm to have questions written, or "
                f"--structure to take them from headings, and not both. --llm takes {LLMS}."
            )
        elif self.llm is not None:
            self._writer  # noqa: B018  # builds it, which asks nothing

    def dataset(self, split: str = "train") -> EmbeddingQAFinetuneDataset:
        """Read the dataset, or make one of the documents.

        Raises:
            OptionError: See :meth:`check`.
            DatasetError: Nothing usable at the source.
            GenerationError: The LLM cannot be asked, or wrote nothing usable.
        """
        from llama_index_embeddings_adapted.generation import generate_qa_embedding_pairs
        from llama_index_embeddings_adapted.structure import pairs_from_structure

        self.check()
        if inputs.holds_pairs(self.source):
            return inputs.read_pairs(self.source, split)
        if self.structure:
            return pairs_from_structure(inputs.read_documents(self.source), **self._filters())
        nodes, llm = self.asked()
        return generate_qa_embedding_pairs(nodes, llm, **self.options())

    def asked(self) -> tuple[list[BaseNode], LLM]:
        """Return the passages and the LLM that is asked about them."""
        nodes = inputs.read_passages(
            self.source, chunk_size=self.chunk_size, chunk_overlap=self.chunk_overlap
        )
        return nodes, self._writer.llm

    def options(self) -> dict[str, Any]:
        """Return keyword arguments for generation; what is not given suits the LLM."""
        given = {
            "styles": self.styles,
            "questions_per_call": self.questions_per_call,
            "concurrency": self.concurrency,
        }
        return {
            **self._writer.settings,
            **{name: value for name, value in given.items() if value is not None},
            **self._filters(),
            "num_questions_per_chunk": self.questions_per_chunk,
            "max_chunks": self.max_chunks,
        }

    @cached_property
    def _writer(self) -> Writer:
        if self.llm is None:
            raise OptionError(f"llm: expected {LLMS}, got none.")
        return resolve_writer(self.llm)

    def _filters(self) -> dict[str, Any]:
        found = {
            "embed_model": self.model,
            "seed": self.seed,
            "cache_dir": self.cache_dir,
            "show_progress": not self.quiet,
        }
        return found if self.round_trip_k is None else {**found, "round_trip_k": self.round_trip_k}
