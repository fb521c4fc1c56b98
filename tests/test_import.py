import json
import statistics

import pytest
from llama_index.core.embeddings import MockEmbedding

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted import AdaptedEmbedding, AdaptedError, LinearAdapter, errors
from tests.support.processes import fresh
from tests.test_frozen import ADAPTERS, FOLDER

HEAVY = ("torch", "transformers", "sentence_transformers", "llama_index.finetuning", "scipy")
MODEL = AdaptedEmbedding(MockEmbedding(embed_dim=4), LinearAdapter.identity(4))


SERVE = """
import json, sys

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise SystemExit(f"network: {event} {args}")

sys.addaudithook(refuse)
from llama_index_embeddings_adapted import AdaptedEmbedding, resolve_embed_model
after_import = sorted(sys.modules)
from llama_index.core.embeddings import MockEmbedding
model = AdaptedEmbedding.from_pretrained(sys.argv[1], MockEmbedding(embed_dim=4))
model.get_text_embedding_batch(["because"])
for folder in sys.argv[2:]:
    older = AdaptedEmbedding.from_pretrained(folder, MockEmbedding(embed_dim=16), verify=False)
    assert len(older.get_query_embedding("why?")) == 16
resolved = resolve_embed_model(f"adapted:{sys.argv[1]}")
queries = [each.get_query_embedding("why?") for each in (model, resolved)]
print(json.dumps([queries, after_import, sorted(sys.modules)]))
"""


def test_serving_needs_neither_torch_nor_transformers_nor_the_network(tmp_path):
    MODEL.save_pretrained(tmp_path / "adapter")
    older = [FOLDER / name for name in ADAPTERS]  # every adapter is recognised
    queries, after_import, after_query = fresh(SERVE, tmp_path / "adapter", *older)
    assert queries == [[0.5] * 4] * 2
    assert not set(HEAVY) & set(after_query)
    # Importing it would import the package of every provider that is installed.
    assert "llama_index.core.embeddings.loading" not in after_import


TRAIN = """
import json, sys
for name in ("mistralai", "llama_index.finetuning"):
    sys.modules[name] = None  # as where it is missing, or of a version that cannot be imported
from llama_index_embeddings_adapted import *
from tests.conftest import CountingEmbedding
corpus = {str(i): f"word{i} other{i % 5}" for i in range(40)}
dataset = EmbeddingQAFinetuneDataset(corpus, corpus, {i: [i] for i in corpus})
engine = EmbeddingAdapterFinetuneEngine(
    dataset, CountingEmbedding(), model_output_path=sys.argv[1], epochs=2, show_progress=False,
    cache_dir=False,
)
engine.finetune()
print(json.dumps(len(engine.get_finetuned_model().get_query_embedding("why?"))))
"""


def test_training_needs_neither_the_old_package_nor_what_it_imports(tmp_path):
    assert fresh(TRAIN, tmp_path / "adapter") == 16


def test_importing_us_adds_little_to_importing_llama_index() -> None:
    # Both in one process and in its own processor time, so that a busy machine slows both alike.
    code = """
import json, time
start = time.process_time()
import llama_index.core
between = time.process_time()
from llama_index_embeddings_adapted import AdaptedEmbedding
print(json.dumps((time.process_time() - between) / (between - start)))
"""
    assert statistics.median(fresh(code) for _ in range(3)) <= 0.15


def test_all_is_sorted_and_resolves_and_every_error_has_one_root():
    assert package.__all__ == sorted(package.__all__)
    assert dir(package) == package.__all__
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    assert set(package._LAZY) < set(package.__all__)
    with pytest.raises(AttributeError, match=r"adapted' has no attribute 'Magic'"):
        _ = package.Magic
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    found = [cls for cls in classes if issubclass(cls, Exception)]
    assert len(found) > 5
    assert all(issubclass(error, AdaptedError) for error in found)


LOAD = """
import json, sys
from llama_index.core.embeddings.loading import load_embed_model
from llama_index_embeddings_adapted import AdaptedEmbedding
model = load_embed_model(json.loads(sys.argv[1]))
assert type(model) is AdaptedEmbedding
print(json.dumps(model.get_query_embedding("why?")))
"""


def test_load_embed_model_knows_us_whichever_is_imported_first():
    assert fresh(LOAD, MODEL.to_json()) == [0.5] * 4
    from llama_index.core.embeddings.loading import load_embed_model  # here, after us

    assert type(load_embed_model(json.loads(MODEL.to_json()))) is AdaptedEmbedding
