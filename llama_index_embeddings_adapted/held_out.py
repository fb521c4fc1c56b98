"""Base and adapted model on the queries that training held out, ready to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index_embeddings_adapted.adapters import Adapter
from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.encode import EncodedDataset
from llama_index_embeddings_adapted.evaluation import RetrievalScores, Texts, joined, search
from llama_index_embeddings_adapted.validation import Validation

Source = tuple[EncodedDataset, EmbeddingQAFinetuneDataset]


def held_out_scores(
    validation: Validation, adapter: Adapter, sources: Sequence[Source]
) -> tuple[dict[str, RetrievalScores], Texts]:
    """Search for the held-out queries again, and keep what was found.

    Args:
        validation: The held-out queries.
        adapter: Of queries, as it was judged.
        sources: The datasets that the held-out queries are from, encoded and in words.
    """
    scores: dict[str, list[RetrievalScores]] = {"base": [], "adapted": []}
    queries: list[str] = []
    documents: dict[int, list[str]] = {}
    for part in validation.parts:
        data = part.data
        words = next(d for encoded, d in sources if encoded.document_ids is data.document_ids)
        scores["base"].append(search(data, data.queries, data.documents))
        adapted = adapter.apply(data.queries)
        scores["adapted"].append(search(data, adapted, data.documents))
        queries += [words.queries[query] for query in data.query_ids]
        documents[id(data.document_ids)] = [words.corpus[name] for name in data.document_ids]
    texts = tuple(text for found in documents.values() for text in found)
    return {name: joined(parts) for name, parts in scores.items()}, Texts(tuple(queries), texts)
