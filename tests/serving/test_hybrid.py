from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeRelationship, QueryBundle, RelatedNodeInfo, TextNode
from llama_index.core.storage import StorageContext
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, SimpleVectorStore

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted import AdaptedEmbedding, DocumentPrior, LinearAdapter, errors
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.errors import FolderError, OptionError, ShapeError
from llama_index_embeddings_adapted.lexical.bm25 import BM25Index
from llama_index_embeddings_adapted.serving.hybrid import HybridRetriever
from llama_index_embeddings_adapted.serving.views import CONFIG, VECTORS
from tests.conftest import QUIET, CountingEmbedding
from tests.support.files import edit
from tests.support.stores import ENGINES, QUIET_ENGINES, postgres_alone

pytestmark = QUIET_ENGINES

WORDS = [
    *("apple", "blue", "city", "deep", "early", "fast", "green", "high", "ice", "jazz"),
    *("king", "lake", "moon", "night", "old", "pie", "quiet", "road", "sea", "tea"),
]
random = np.random.default_rng(0)
IDS = [f"00000000-0000-0000-0000-{row:012d}" for row in range(120)]  # Qdrant takes no others
NODES = [TextNode(id_=name, text=" ".join(random.choice(WORDS, 6))) for name in IDS]
for row, node in enumerate(NODES):
    node.metadata = {"kind": "odd" if row % 2 else "even", "row": row}
    node.excluded_embed_metadata_keys = ["kind", "row"]
    node.relationships = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc{row % 3}")}
BY_ID = {node.node_id: node for node in NODES}
QUERIES = [" ".join(random.choice(WORDS, 3)) for _ in range(30)]
ALL_WORDS = BM25Index.of({node.node_id: node.text for node in NODES})
EVEN = MetadataFilters(filters=[MetadataFilter(key="kind", value="even")])
STORES = {**ENGINES, "postgres": postgres_alone}


@pytest.fixture(scope="module")
def model() -> CountingEmbedding:
    return CountingEmbedding()


def index_of(model: Any, store: Any = None, nodes: Any = NODES) -> VectorStoreIndex:
    storage = StorageContext.from_defaults(vector_store=store or SimpleVectorStore())
    return VectorStoreIndex(nodes, embed_model=model, storage_context=storage)


@pytest.fixture(scope="module")
def index(model) -> VectorStoreIndex:
    return index_of(model)


def vectors_of(model: Any) -> np.ndarray:
    return l2_normalize(np.float32(model.get_text_embedding_batch([node.text for node in NODES])))


def prior_of(model: Any) -> DocumentPrior:
    bank = np.float32([model.get_query_embedding(query) for query in QUERIES])
    return DocumentPrior.of(bank, vectors_of(model), weight=0.3)


def exact(model: Any, query: str, *, weight: float, prior: DocumentPrior | None = None) -> Any:
    vectors = vectors_of(model)
    words = ALL_WORDS.shares(query)
    scores = vectors @ l2_normalize(np.float32(model.get_query_embedding(query))) + weight * words
    return scores if prior is None else scores - prior.shifts(vectors)


@pytest.mark.parametrize("engine", STORES)
def test_on_every_store_it_ranks_as_mixing_all_documents_does(engine, model, tmp_path):
    prior = prior_of(model)
    with STORES[engine](tmp_path) as stores:
        index = index_of(model, stores("words", model.dim))
        options = {"weight": 0.4, "prior": prior, "candidates": 40, **QUIET}
        hybrid = HybridRetriever.from_nodes(index, NODES, **options)
        same = 0
        for query in QUERIES[:10]:
            expected = exact(model, query, weight=0.4, prior=prior)
            found = hybrid.retrieve(query)
            rows = [IDS.index(node.node_id) for node in found]
            same += np.allclose(np.sort(expected)[::-1][:10], expected[rows], atol=1e-5)
            assert [node.score for node in found] == pytest.approx(expected[rows], abs=1e-5)
        assert same == 10


async def test_async_gives_the_same_asks_the_model_once_and_gives_as_many_as_asked_for(index):
    with pytest.raises(OptionError, match="index: expected a VectorStoreIndex, got list"):
        HybridRetriever.from_nodes(NODES, NODES)
    counting = CountingEmbedding()
    hybrid = HybridRetriever.from_nodes(index, NODES, embed_model=counting, **QUIET)
    before = len(counting.asked)
    one = hybrid.retrieve(QUERIES[0])
    other = await hybrid.aretrieve(QUERIES[0])
    assert [(n.node_id, n.score) for n in one] == [(n.node_id, n.score) for n in other]
    assert counting.asked[before:] == [("query", QUERIES[0])] * 2
    bundle = QueryBundle(QUERIES[0], embedding=counting.vector("query", QUERIES[0]))
    assert hybrid.retrieve(bundle)[0].node_id == one[0].node_id
    assert len(counting.asked) == before + 2
    hybrid = HybridRetriever.from_nodes(index, NODES, top_k=500, **QUIET)
    assert len(hybrid.retrieve(QUERIES[0])) == len(NODES)


def test_words_bring_in_what_vectors_do_not(model):
    """The only document with a rare code is far by vector."""
    nodes = [*NODES, TextNode(id_="code", text="error ZX-81 " + " ".join(WORDS))]
    index = index_of(model, nodes=nodes)
    hybrid = HybridRetriever.from_nodes(index, nodes, weight=20.0, candidates=5, top_k=3, **QUIET)
    dense = index.as_retriever(similarity_top_k=5)
    query = f"{NODES[0].text} ZX"
    assert "code" not in [node.node_id for node in dense.retrieve(query)]
    found = hybrid.retrieve(query)
    assert "code" in [node.node_id for node in found]
    by_words = next(node for node in found if node.node_id == "code")
    vector = l2_normalize(np.float32(model.vector("document", nodes[-1].text)))
    cosine = float(vector @ l2_normalize(np.float32(model.vector("query", query))))
    share = hybrid.views.lexical.shares(query)[-1]
    assert by_words.score == pytest.approx(cosine + 20.0 * share, abs=1e-5)
    by_words.node.metadata["read"] = by_words.node.text = "by a postprocessor"
    assert "by a postprocessor" not in (nodes[-1].text, *nodes[-1].metadata.values())


@pytest.mark.parametrize("engine", ["simple", "chroma", "qdrant", "lancedb"])
def test_filters_hold_for_both_sides(engine, model, tmp_path):
    with ENGINES[engine](tmp_path) as stores:
        index = index_of(model, stores("filtered", model.dim))
        options = {"weight": 5.0, "candidates": 20, "filters": EVEN, **QUIET}
        hybrid = HybridRetriever.from_nodes(index, NODES, **options)
        for query in QUERIES[:5]:
            found = hybrid.retrieve(query)
            assert found
            assert {node.metadata["kind"] for node in found} == {"even"}
            expected = exact(model, query, weight=5.0)[::2]
            assert found[0].score == pytest.approx(expected.max(), abs=1e-4)


DOC1 = {"value": ["doc1"], "operator": "in"}


@pytest.mark.parametrize(
    ("engine", "filters"),
    [
        ("qdrant", {"key": "tenant", "value": "x", "operator": "!="}),  # odd nodes have none
        ("qdrant", {"key": "tenant", "value": ["x"], "operator": "nin"}),
        ("lancedb", {"key": "tenant", "value": "x", "operator": "!="}),
        ("qdrant", {"key": "row", "value": "7", "operator": ">"}),
        ("qdrant", {"key": "tags", "value": "red"}),  # a list of the node's
        *(("chroma", {"key": key, **DOC1}) for key in ("doc_id", "ref_doc_id", "document_id")),
    ],
)
def test_words_bring_in_what_no_store_refuses_and_rank_all_of_the_rest(
    engine, filters, model, tmp_path
):
    nodes = [node.model_copy(deep=True) for node in NODES]
    for row, node in enumerate(nodes):
        node.metadata |= {} if row % 2 else {"tenant": "xxyy"[row % 4]}
        node.metadata |= {"tags": ["red", "blue"]} if engine == "qdrant" else {}
        node.excluded_embed_metadata_keys += ["tenant", "tags"]
    with ENGINES[engine](tmp_path) as stores:
        index = index_of(model, stores("refused", model.dim), nodes)
        some = MetadataFilters(filters=[MetadataFilter(**filters)])
        whole = index.as_retriever(similarity_top_k=120, filters=some)
        hybrid = HybridRetriever.from_nodes(index, nodes, weight=5.0, filters=some, **QUIET)
        for query in QUERIES[:5]:
            expected = exact(model, query, weight=5.0)
            rows = [IDS.index(node.node_id) for node in whole.retrieve(query)]
            best = np.sort(expected[rows])[::-1][:10]
            assert [n.score for n in hybrid.retrieve(query)] == pytest.approx(best, abs=1e-4)


def test_filters_of_the_store_itself_and_new_ones_of_a_retriever_hold(model, tmp_path):
    with ENGINES["qdrant"](tmp_path) as stores:
        from qdrant_client.http.models import FieldCondition, Filter, MatchValue

        index = index_of(model, stores("own", model.dim))
        even = Filter(must=[FieldCondition(key="kind", match=MatchValue(value="even"))])
        own = index.as_retriever(vector_store_kwargs={"qdrant_filters": even}, similarity_top_k=9)
        hybrid = HybridRetriever.from_nodes(index, NODES, weight=5.0, **QUIET).over(own)
        assert {node.metadata["kind"] for node in hybrid.retrieve(QUERIES[0])} == {"even"}
        dense = index.as_retriever(similarity_top_k=9, filters=EVEN)
        hybrid = hybrid.over(dense)
        for row in (1, 3):
            one = MetadataFilter(key="row", value=row)
            dense._filters = MetadataFilters(filters=[one])
            assert [node.metadata["row"] for node in hybrid.retrieve(QUERIES[0])] == [row]


def test_filters_within_filters_hold_for_both_sides(model, tmp_path):
    first = [MetadataFilter(key="row", value=row) for row in (2, 3, 4)]
    few = MetadataFilters(filters=first, condition="or")
    for filters, expected in (
        (MetadataFilters(filters=[few, *EVEN.filters]), {2, 4}),
        (MetadataFilters(filters=[few, EVEN], condition="not"), set(range(5, 120, 2)) | {1}),
    ):
        with ENGINES["qdrant"](tmp_path) as stores:
            index = index_of(model, stores("nested", model.dim))
            options = {"weight": 5.0, "candidates": 120, "top_k": 120, "filters": filters, **QUIET}
            found = HybridRetriever.from_nodes(index, NODES, **options).retrieve(QUERIES[0])
        assert {node.metadata["row"] for node in found} == expected


def test_other_retrievers_of_the_store_share_the_views(index):
    whole = HybridRetriever.from_nodes(index, NODES, weight=5.0, **QUIET)
    one = whole.over(index.as_retriever(similarity_top_k=50, doc_ids=["doc1"]))
    assert one.views is whole.views
    assert {node.node.ref_doc_id for node in one.retrieve(QUERIES[0])} == {"doc1"}
    assert len({node.node.ref_doc_id for node in whole.retrieve(QUERIES[0])}) > 1
    some = whole.over(VectorIndexRetriever(index, similarity_top_k=50, node_ids=IDS[1:3]))
    assert {node.node_id for node in some.retrieve(QUERIES[0])} <= set(IDS[1:3])
    bare = [TextNode(id_=name, text=BY_ID[name].text) for name in IDS[:3]]
    alone = index_of(whole.embed_model, nodes=bare).as_retriever(doc_ids=["doc1"])
    first, *_ = whole.over(alone).retrieve(bare[0].text)
    assert first.node_id == IDS[0]  # of which document, the store does not say


def test_a_document_whose_node_is_gone_is_passed_over_and_filters_hold_it_back(index):
    hybrid = HybridRetriever.from_nodes(index, BY_ID, weight=50.0, candidates=1, **QUIET)
    best = NODES[int(hybrid.views.lexical.scores(QUERIES[1]).argmax())].node_id
    assert hybrid.retrieve(QUERIES[1])[0].node_id == best
    hybrid.nodes = {name: node for name, node in BY_ID.items() if name != best}
    assert best not in [node.node_id for node in hybrid.retrieve(QUERIES[1])[1:]]
    filtered = hybrid.over(index.as_retriever(similarity_top_k=120, filters=EVEN))
    allowed = filtered._allowed_rows(hybrid.views.lexical)
    assert not allowed[hybrid.views.lexical.rows[best]]


@pytest.mark.parametrize("engine", ["simple", "faiss", "chroma, Euclidean"])
def test_documents_added_to_the_store_alone_keep_their_place_by_vector(engine, model, tmp_path):
    with ENGINES[engine](tmp_path) as stores:
        index = index_of(model, stores("grown", model.dim))
        hybrid = HybridRetriever.from_nodes(index, NODES[:60], weight=0.0, **QUIET)
        hybrid.dense._similarity_top_k = 120
        expected = exact(model, QUERIES[0], weight=0.0)
        for node in hybrid.retrieve(QUERIES[0]):
            assert node.score == pytest.approx(expected[IDS.index(node.node_id)], abs=1e-3)


def test_it_serves_a_query_engine_with_an_adapted_model_and_a_docstore(model):
    adapter = LinearAdapter(np.roll(np.eye(model.dim, dtype=np.float32), 1, axis=0))
    adapted = AdaptedEmbedding(model, adapter)
    index = index_of(adapted)
    store = SimpleDocumentStore()
    store.add_documents(NODES)
    hybrid = HybridRetriever.from_nodes(index, store, weight=0.4, **QUIET)
    expected = exact(adapted, QUERIES[2], weight=0.4)
    found = RetrieverQueryEngine.from_args(hybrid, llm=MockLLM()).query(QUERIES[2]).source_nodes
    assert [n.score for n in found] == pytest.approx(np.sort(expected)[::-1][:10], abs=1e-5)


def test_saved_and_loaded_it_finds_the_same(index, model, tmp_path):
    options = {"weight": 0.4, "prior": prior_of(model), "top_k": 7, **QUIET}
    hybrid = HybridRetriever.from_nodes(index, NODES, **options)
    hybrid.save_pretrained(tmp_path / "hybrid")
    hybrid.save_pretrained(tmp_path / "hybrid")
    again = HybridRetriever.from_pretrained(tmp_path / "hybrid", hybrid.dense, BY_ID)
    for query in QUERIES[:5]:
        one, other = hybrid.retrieve(query), again.retrieve(query)
        assert len(other) == 7
        assert [(n.node_id, n.score) for n in one] == [(n.node_id, n.score) for n in other]
    assert again.views.prior == hybrid.views.prior
    of_index = HybridRetriever.from_pretrained(tmp_path / "hybrid", index, iter(NODES))
    assert [n.node_id for n in of_index.retrieve(QUERIES[4])] == [n.node_id for n in one]
    some = MetadataFilters(filters=[EVEN, *EVEN.filters], condition="or")
    hybrid.over(index.as_retriever(filters=some)).save_pretrained(tmp_path / "even")
    even = HybridRetriever.from_pretrained(tmp_path / "even", index, NODES)
    assert even.dense._filters == some
    store = SimpleDocumentStore()
    store.add_documents(NODES[2:])
    for some in (NODES[2:], store):
        with pytest.warns(UserWarning, match="2 of the 120 nodes that the folder knows are not"):
            HybridRetriever.from_pretrained(tmp_path / "hybrid", index, some)
    text = (tmp_path / "hybrid" / CONFIG).read_text()
    assert NODES[0].text not in text
    stranger = index.as_retriever(embed_model=CountingEmbedding(seed=1))
    with pytest.raises(errors.BaseModelMismatchError):
        HybridRetriever.from_pretrained(tmp_path / "hybrid", stranger, BY_ID)
    unchecked = HybridRetriever.from_pretrained(tmp_path / "hybrid", stranger, BY_ID, verify=False)
    assert unchecked.retrieve(QUERIES[0])


def test_a_damaged_folder_is_refused(index, tmp_path):
    hybrid = HybridRetriever.from_nodes(index, NODES, **QUIET)
    config, vectors = tmp_path / "hybrid" / CONFIG, tmp_path / "hybrid" / VECTORS
    for damage in (
        lambda: np.save(vectors, np.zeros((3, 16), dtype=np.float32)),
        lambda: np.save(vectors, np.array([{}]), allow_pickle=True),
        lambda: edit(config, prior=3),
        lambda: edit(config, settings={}),
        lambda: edit(config, filters={"filters": [3]}),
        lambda: edit(config, format_version=9),
    ):
        hybrid.save_pretrained(tmp_path / "hybrid")
        damage()
        with pytest.raises(FolderError, match=r"damaged|expected format"):
            HybridRetriever.from_pretrained(tmp_path / "hybrid", hybrid.dense, {})


def test_views_are_swapped_and_rolled_back(index, model):
    hybrid = HybridRetriever.from_nodes(index, NODES, weight=0.0, **QUIET)

    def found() -> Any:
        return [(node.node_id, node.score) for node in hybrid.retrieve(QUERIES[3])]

    plain = found()
    hybrid.swap(weight=0.5)
    with_words = found()
    assert with_words != plain
    hybrid.swap(prior=prior_of(model))
    expected = exact(model, QUERIES[3], weight=0.5, prior=prior_of(model))
    assert found()[0][1] == pytest.approx(expected.max(), abs=1e-5)
    with pytest.raises(ShapeError):
        hybrid.swap(lexical=BM25Index.of({"a": "b"}))
    with pytest.raises(OptionError, match="weight"):
        hybrid.swap(weight=-1.0)
    with pytest.raises(OptionError, match=r'"wieght".* "weight".*swap takes keys, lexical, prior'):
        hybrid.swap(wieght=1.0)
    hybrid.roll_back()
    assert found() == with_words
    hybrid.roll_back()
    assert found() == plain
    for weight in range(20):
        hybrid.swap(weight=weight)
    for _ in range(8):  # each holds vectors of all documents
        hybrid.roll_back()
    with pytest.raises(OptionError, match="no earlier views"):
        hybrid.roll_back()


def test_what_does_not_go_together_is_refused(index):
    words = ALL_WORDS
    vectors, dense = np.zeros((120, 16), np.float32), index.as_retriever()
    good: dict[str, Any] = {"vectors": vectors, "nodes": {}}
    for change, match in (
        ({"vectors": vectors[1:]}, "vectors and keys of the documents: expected 120"),
        ({"nodes": [1]}, "expected a dict"),
        ({"weight": -1.0}, "weight"),
        ({"top_k": 0}, "top_k"),
        ({"prior": DocumentPrior(np.eye(3, dtype=np.float32))}, "prior: expected 16"),
    ):
        with pytest.raises((OptionError, ShapeError), match=match):
            HybridRetriever(dense, words, **{**good, **change})
    with pytest.raises(OptionError, match="expected a LlamaIndex retriever"):
        HybridRetriever("dense", words, **good)

    class Bare(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[Any]:
            return []

    with pytest.raises(OptionError, match="embed_model"):
        HybridRetriever(Bare(), words, **good)
    with pytest.raises(OptionError, match="nodes of the index, got none"):
        HybridRetriever.from_nodes(index, [], **QUIET)
    with pytest.raises(OptionError, match="filters: expected LlamaIndex's MetadataFilters, got d"):
        HybridRetriever.from_nodes(index, NODES, filters={"kind": "even"}, **QUIET)


def test_nodes_that_come_later_are_taken_in_and_an_edited_one_counts_once(model):
    old, new = NODES[:60], NODES[60:]
    edited = TextNode(id_=IDS[3], text="zebra " + NODES[3].text)
    index = index_of(model, nodes=list(old))
    hybrid = HybridRetriever.from_nodes(index, old, prior=prior_of(model), weight=0.4, **QUIET)
    index.insert_nodes(new)
    counting = CountingEmbedding()
    hybrid.embed_model = counting
    hybrid.add_nodes([*new, edited], **QUIET)
    assert [role for role, _ in counting.asked if _ in {n.text for n in old}] == []
    assert len(hybrid.views.lexical) == len(NODES)
    whole = [*(node for node in NODES if node.node_id != IDS[3]), edited]
    options = {"prior": hybrid.views.prior, "weight": 0.4, **QUIET}
    anew = HybridRetriever.from_nodes(index_of(model, nodes=whole), whole, **options)
    for query in ("zebra", QUERIES[0]):
        found = [each.retrieve(query) for each in (hybrid, anew)]
        one, other = ({n.node_id: round(n.score, 5) for n in nodes} for nodes in found)
        assert one == other
    index.delete_nodes([IDS[3]])
    with pytest.warns(UserWarning, match=r'1 of 2 node ids are not known .*\(first: "unknown"\)'):
        hybrid.remove_nodes([IDS[3], "unknown"])
    assert IDS[3] not in {found.node_id for found in hybrid.retrieve("zebra")}
    with pytest.raises(OptionError, match="none from before nodes came or went"):
        hybrid.roll_back()
    with pytest.raises(OptionError, match="node_ids: expected a list of node ids, got '0"):
        hybrid.remove_nodes(IDS[4])


def test_nodes_that_come_at_once_are_all_taken_in_with_the_words_as_they_were_counted(model):
    index = index_of(model, nodes=NODES[:60])
    words = BM25Index.of({node.node_id: node.text for node in NODES[:60]}, k1=0.4, b=0.0)
    vectors = vectors_of(model)[:60]
    hybrid = HybridRetriever(index.as_retriever(), words, vectors=vectors, nodes=BY_ID)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda node: hybrid.add_nodes([node], **QUIET), NODES[60:76]))
    assert set(hybrid.views.lexical.ids) == set(IDS[:76])
    whole = BM25Index.of({node.node_id: node.text for node in NODES[:76]}, k1=0.4, b=0.0)
    assert sorted(hybrid.views.lexical.scores("apple")) == pytest.approx(
        sorted(whole.scores("apple"))
    )


def test_scores_on_the_base_models_scale_keep_a_cutoffs_meaning(index, model, tmp_path):
    base = index.as_retriever(similarity_top_k=1)
    served = HybridRetriever.from_nodes(index, NODES, weight=0.5, **QUIET)
    before = [served.retrieve(query) for query in QUERIES]
    served.calibrate(base, QUERIES)
    served.save_pretrained(tmp_path / "served")
    dense = index.as_retriever(similarity_top_k=100)
    loaded = HybridRetriever.from_pretrained(tmp_path / "served", dense, served.nodes)
    after = [loaded.retrieve(query) for query in QUERIES]
    one, other = ([[n.node_id for n in nodes] for nodes in each] for each in (after, before))
    assert one == other
    cutoff = 0.9
    three = after, before, [base.retrieve(query) for query in QUERIES]
    kept, kept_before, usual = (sum(nodes[0].score > cutoff for nodes in found) for found in three)
    assert kept == usual < kept_before
    served.roll_back()
    assert served.retrieve(QUERIES[0])[0].score == before[0][0].score
    with pytest.raises(OptionError, match="queries: expected at least 30, got 2"):
        served.calibrate(base, QUERIES[:2])
    with ENGINES["faiss"](tmp_path) as stores:
        distances = index_of(model, stores("distances", model.dim)).as_retriever()
        with pytest.raises(OptionError, match="base: expected scores where more is better"):
            served.calibrate(distances, QUERIES)


def test_words_stand_beside_whatever_adapter_of_a_pool_is_chosen(index, model, tmp_path):
    turn = LinearAdapter(np.roll(np.eye(model.dim, dtype=np.float32), 1, axis=0))
    AdaptedEmbedding(model, turn).save_pretrained(tmp_path / "turned")
    pool = package.AdapterPool(tmp_path, model)
    shared = HybridRetriever.from_nodes(index, NODES, embed_model=pool.embed_model(), **QUIET)
    alone = []
    for name, each in ((None, model), ("turned", AdaptedEmbedding(model, turn))):
        own = HybridRetriever.from_nodes(index, NODES, embed_model=each, **QUIET)
        alone.append(own.retrieve(QUERIES[0]))
        with pool.using(name):
            assert shared.retrieve(QUERIES[0]) == alone[-1]
    assert alone[0] != alone[1]
