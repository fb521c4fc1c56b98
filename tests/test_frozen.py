"""What version 0.1 wrote into ``tests/frozen`` still loads and means the same: folders, a vector
cache and a journal. Those files are read-only for ever."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted.core.arrays import content_hashes
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.errors import FolderError
from tests.conftest import CountingEmbedding, nodes_of
from tests.questions.test_generation import DoubleLLM

FOLDER = Path(__file__).parent / "frozen"
TEXTS = ("the red kite soars over the moor", "a ferry leaves the harbour at noon",
         "bread needs salt")  # fmt: skip
QUERIES = np.random.default_rng(7).standard_normal((5, 16)).astype(np.float32)
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
ADAPTERS = sorted(set(EXPECTED) - {"composed", "cache", "journal", "memory"})


@pytest.mark.parametrize("name", [*ADAPTERS, "composed"])
def test_a_folder_gives_the_vectors_it_gave_over_the_base_model_it_names(name):
    model: Any = package.resolve_embed_model(f"adapted:{FOLDER / name}")
    expected, atol = EXPECTED[name], 1e-5 if name == "composed" else 1e-6
    assert isinstance(model.base_embed_model, CountingEmbedding)
    assert np.allclose(model.get_query_embedding(TEXTS[0]), expected["query"], atol=atol)
    assert np.allclose(model.get_text_embedding(TEXTS[1]), expected["text"], atol=atol)
    if name != "composed":
        assert np.allclose(model.adapter.apply(QUERIES, "query"), expected["queries"], atol=1e-6)
        if expected["documents"] is not None:
            found = model.adapter.apply(QUERIES[:3], "document", content_hashes(list(TEXTS)))
            assert np.allclose(found, expected["documents"], atol=1e-6)


def test_a_vector_cache_and_a_journal_are_read_without_asking_model_or_llm(tmp_path):
    cache = shutil.copytree(FOLDER / "cache", tmp_path / "cache")
    base = CountingEmbedding()
    with Encoder(base, cache_dir=cache, show_progress=False) as encoder:
        for role in ("query", "document"):
            assert np.array_equal(encoder.encode(list(TEXTS), role), EXPECTED["cache"][role])
    assert not {text for _, text in base.asked} & set(TEXTS)
    llm = DoubleLLM(model="scripted", chat_model=False)
    before = len(llm.sent)
    nodes = nodes_of({f"n{row}": text for row, text in enumerate(TEXTS)})
    options = {"num_questions_per_chunk": 1, "cache_dir": cache, "show_progress": False}
    dataset = package.generate_qa_embedding_pairs(nodes, llm, **options)
    assert list(dataset.queries.values()) == EXPECTED["journal"]["queries"]
    assert (len(llm.sent) - before, EXPECTED["journal"]["calls"]) == (0, len(TEXTS))


def test_a_dataset_is_written_byte_for_byte_as_it_was(tmp_path):
    dataset = package.EmbeddingQAFinetuneDataset.from_json(str(FOLDER / "dataset.json"))
    dataset.save_json(str(tmp_path / "again.json"))
    assert (tmp_path / "again.json").read_bytes() == (FOLDER / "dataset.json").read_bytes()
    with pytest.raises(FolderError, match=r"a QueryMemoryAdapter, which version 0\.1 of this"):
        package.AdaptedEmbedding.from_pretrained(FOLDER / "memory", CountingEmbedding())
