from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import schema
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.storage.docstore import SimpleDocumentStore

from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter, MemoryRetriever, errors
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.core.encoded import Qrels
from llama_index_embeddings_adapted.errors import DatasetError, FolderError, OptionError, ShapeError
from llama_index_embeddings_adapted.serving.memory import AnswerMemory
from tests.conftest import QUIET, CountingEmbedding, index_of
from tests.support.files import edit

pytestmark = pytest.mark.filterwarnings("ignore:MemoryRetriever goes:DeprecationWarning")


class Fixed(BaseRetriever):
    """Gives the same nodes whatever it is asked, and remembers how it was asked."""

    def __init__(self, scores: dict[str, float | None], **kwargs: Any) -> None:
        nodes = ((schema.TextNode(id_=name), score) for name, score in scores.items())
        self.nodes = [schema.NodeWithScore(node=node, score=score) for node, score in nodes]
        self.asked: list[schema.QueryBundle] = []
        super().__init__(**kwargs)

    def _retrieve(self, query_bundle: schema.QueryBundle) -> list[schema.NodeWithScore]:
        self.asked.append(query_bundle)
        return list(self.nodes)


class Angles(CountingEmbedding):
    """Embeds the text "60" as the unit vector at 60 degrees."""

    def vector(self, role: str, text: str) -> list[float]:
        angle = np.radians(float(text)) if text.isdigit() else 0.0
        return [float(np.cos(angle)), float(np.sin(angle))]


WARM = 0.5  # a temperature at which cosines 1 and 1/2 attend with 1 and 1/e


@pytest.fixture
def angles() -> Angles:
    return Angles()


@pytest.fixture
def memory() -> AnswerMemory:
    """At 0 degrees "a" answered; at 90, "b" and half as well "c"."""
    relevance = Qrels.from_lists([[0], [1, 2]], [[1], [2, 1]])
    return AnswerMemory.of(np.eye(2, dtype=np.float32), relevance, ["a", "b", "c"])


def wrap(scores: Any, memory: AnswerMemory, **settings: Any) -> MemoryRetriever:
    """Put the memory around a retriever, or around one that finds nodes with these scores."""
    inner = scores if isinstance(scores, BaseRetriever) else Fixed(scores)
    defaults = {"embed_model": Angles(), "weight": 1.0, "temperature": 0.01}
    return MemoryRetriever(inner, memory, **{**defaults, **settings})


def shown(nodes: list[schema.NodeWithScore]) -> dict[str, float]:
    return {node.node_id: pytest.approx(node.score, abs=1e-5) for node in nodes}


def nodes_of(*ids: str) -> dict[str, schema.BaseNode]:
    return {name: schema.TextNode(id_=name, text=name) for name in ids}


def test_the_best_document_counts_one_and_what_answers_none_is_left_out(memory):
    best = {"b": 1.0, "c": 0.5, "a": 0.0}
    assert memory.lookup(np.float32([0, 3]), temperature=0.01) == pytest.approx(best)
    one = AnswerMemory.of(np.float32([[1, 0]]), Qrels.from_lists([[0]]), ["a"])
    query = np.float32([0.5, 3**0.5 / 2])
    assert one.lookup(query, temperature=WARM) == pytest.approx({"a": np.exp(-1)})
    assert one.lookup(-query, temperature=0.1)["a"] < 1e-6
    same = np.float32([[1, 0]] * 4)
    crowd = AnswerMemory.of(same, Qrels.from_lists([[0], [0], [0], [1]]), ["a", "b"])
    assert crowd.lookup(same[0]) == pytest.approx({"a": 0.75, "b": 0.25})
    assert sum(crowd.lookup(same[0], neighbours=1).values()) == pytest.approx(1.0)
    relevance = Qrels.from_lists([[], [2]])
    kept = AnswerMemory.of(2 * np.eye(2, dtype=np.float32), relevance, ["a", "b", "c"])
    assert kept.queries.tolist() == [[0, 1]]
    assert kept.document_ids == ("c",)
    with pytest.raises(DatasetError, match="No query has a relevant document"):
        AnswerMemory.of(np.eye(2, dtype=np.float32), Qrels.from_lists([[], []]), ["a"])


def test_each_distinct_query_is_embedded_once_and_no_document_is(small):
    base = CountingEmbedding()
    made = MemoryRetriever.from_dataset(Fixed({}), small, base, **QUIET)
    texts = [text for role, text in base.asked if role == "query"]
    asked = [text for text in texts if text in small.queries.values()]
    assert asked == sorted(small.queries.values(), key=len, reverse=True)
    assert not set(small.corpus.values()) & {text for _, text in base.asked}
    assert made.memory.document_ids == tuple(sorted(small.corpus))
    data = Dataset({"p": "x", "q": "y"}, {"a": "z"}, {"q": ["a"]}, allow_unjudged=True)
    judged = MemoryRetriever.from_dataset(Fixed({}), data, base, **QUIET).memory.queries
    assert np.allclose(judged, [base.vector("query", "y")])


@pytest.mark.parametrize(
    "broken",
    [
        {"queries": np.zeros((3, 2), np.float32)},
        {"queries": np.zeros((0, 2), np.float32)},
        {"document_ids": ("a", "b")},
        {"document_ids": ("a", "b", "b")},
        {"answers": Qrels.from_lists([[0], [1]], [[1], [2]])},
    ],
    ids=["more queries", "no query", "too few ids", "an id twice", "a share above 1"],
)
def test_a_memory_whose_parts_do_not_fit_is_refused(memory, broken):
    with pytest.raises(ShapeError, match=r"answers: expected some of \d distinct documents, with"):
        AnswerMemory(**{**vars(memory), **broken})


def test_a_node_gains_the_weighted_memory_and_chunks_alike(memory):
    found = wrap({"x": 0.7, "a": 0.6, "c": 0.5}, memory, weight=0.2).retrieve("90")
    assert shown(found) == {"x": 0.7, "c": 0.6, "a": 0.6}
    assert found[0].node_id == "x"
    inner = Fixed({"x": 0.7, "a": 0.6})
    assert shown(wrap(inner, memory, weight=0.2).retrieve("0")) == {"a": 0.8, "x": 0.7}
    assert [node.score for node in inner.nodes] == [0.7, 0.6]
    assert shown(wrap(wrap(inner, memory), memory).retrieve("0")) == {"a": 2.6, "x": 0.7}
    inner = Fixed({"x": 0.9, "b-1": 0.5, "b-2": 0.4})
    for node in inner.nodes[1:]:
        source = schema.RelatedNodeInfo(node_id="b")
        node.node.relationships = {schema.NodeRelationship.SOURCE: source}
    found = wrap(inner, memory, match="ref_doc_id").retrieve("90")
    assert shown(found) == {"b-1": 1.5, "b-2": 1.4, "x": 0.9}
    assert shown(wrap(inner, memory).retrieve("90")) == {"x": 0.9, "b-1": 0.5, "b-2": 0.4}


def test_remembered_documents_are_brought_in_lowest_and_no_more_than_asked_for(memory):
    inner, nodes = {"x": 0.7, "y": 0.1}, nodes_of("a", "b", "c")
    assert list(shown(wrap(inner, memory, nodes=nodes).retrieve("90"))) == ["b", "x"]
    assert shown(wrap(inner, memory, nodes=nodes, top_k=1).retrieve("90")) == {"b": 1.1}
    assert wrap({}, memory, nodes=nodes).retrieve("90") == []
    assert shown(wrap({}, memory, nodes=nodes, top_k=2).retrieve("90")) == {"b": 1.0, "c": 0.5}
    wrapped = wrap({"x": 0.7, "y": 0.1}, memory, weight=0.5, top_k=10, nodes=nodes_of("b", "c"))
    assert shown(wrapped.retrieve("90")) == {"x": 0.7, "b": 0.6, "c": 0.35, "y": 0.1}
    assert shown(wrapped.retrieve("0")) == {"x": 0.7, "y": 0.1}  # "a" is not among the nodes


def test_where_little_is_remembered_little_changes(memory):
    wrapped = wrap({"x": 0.7}, memory, temperature=0.1, nodes=nodes_of("a", "b", "c"), top_k=9)
    # cos 60 degrees is 1/2: attention exp(-5) < 1 %; cos 30: exp(-1.34), "c" half of it.
    assert shown(wrapped.retrieve("60")).keys() == {"x", "b", "c"}
    far = wrap({"c": 0.7, "b": 0.7, "a": 0.7}, memory, nodes=nodes_of(*"abcd")).retrieve("225")
    assert [(node.node_id, node.score) for node in far] == [("c", 0.7), ("b", 0.7), ("a", 0.7)]
    found = wrap({"x": None, "y": None, "b": None}, memory).retrieve("90")
    assert [node.node_id for node in found] == ["b", "x", "y"]
    for bad in ({"x": 0.1, "y": None}, {"x": 0.1, "y": float("nan")}, {"x": float("inf")}):
        with pytest.raises(OptionError, match="Fixed: expected a finite score for each node or"):
            wrap(bad, memory).retrieve("0")


async def test_nodes_come_from_a_dict_or_a_docstore(memory):
    store = SimpleDocumentStore()
    store.add_documents(list(nodes_of("b", "x").values()))
    for nodes in (nodes_of("b", "x"), store):
        wrapped = wrap({"x": 0.7}, memory, nodes=nodes, top_k=5)
        found = wrapped.retrieve("90")
        assert shown(found) == {"b": 1.7, "x": 0.7}  # "c" was deleted
        assert found[0].text == "b"
        assert await wrapped.aretrieve("90") == found
        found[0].node.text = "by a postprocessor"
        assert wrapped.retrieve("90")[0].text == "b"


def test_callbacks_see_both_retrievals_and_the_embedding(memory, angles):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    angles.callback_manager = CallbackManager([debug])
    inner = Fixed({"x": 0.7}, callback_manager=angles.callback_manager)
    wrap(inner, memory, embed_model=angles).retrieve("0")
    kinds = {CBEventType.RETRIEVE: 2, CBEventType.EMBEDDING: 1}
    assert {kind: len(debug.get_event_pairs(kind)) for kind in kinds} == kinds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *[({"weight": bad}, "weight: expected a number >= 0") for bad in (-1, float("nan"))],
        ({"temperature": 0}, "temperature: expected a number > 0"),
        *[({n: 0}, f"{n}: expected a whole number >= 1, got 0") for n in ("neighbours", "top_k")],
        ({"match": "text"}, "match: expected one of node_id, ref_doc_id, got 'text'"),
        ({"nodes": ["a"]}, "nodes: expected a dict of id → node or a docstore, got list"),
        ({"nodes": {}, "match": "ref_doc_id"}, 'nodes: expected None with match="ref_doc_id"'),
        ({"embed_model": 7}, "embed_model: expected a LlamaIndex embedding model, or .*got int"),
        ({"memory": {}}, "memory: expected an AnswerMemory, got dict"),
        ({"retriever": "index"}, r"expected a LlamaIndex retriever, got str. Of an index"),
    ],
)
def test_each_wrong_argument_has_its_error(memory, settings, message):
    arguments = {"retriever": Fixed({}), "memory": memory, "embed_model": Angles(), **settings}
    with pytest.raises(OptionError, match=message):
        MemoryRetriever(**arguments)


class Searching(Fixed):
    """Holds a model, as LlamaIndex's vector retrievers do."""

    def __init__(self, embed_model: Any) -> None:
        self._embed_model = embed_model
        super().__init__({"x": 0.7, "a": 0.6})


def test_one_embedding_serves_both_where_they_hold_one_model(memory, angles):
    inner, bundle = Searching(angles), schema.QueryBundle("90")
    wrapped = wrap(inner, memory, embed_model=angles)
    wrapped.retrieve(bundle)
    assert angles.asked == [("query", "90")]
    assert inner.asked[0].embedding == angles.vector("query", "90")
    assert bundle == schema.QueryBundle("90")  # not written to
    given = wrapped.retrieve(schema.QueryBundle("90", embedding=[1, 0]))
    assert shown(given) == {"a": 1.6, "x": 0.7}
    assert len(angles.asked) == 1
    assert inner.asked[1].embedding == [1, 0]
    inner = Searching(angles)
    bundle = schema.QueryBundle("0", custom_embedding_strs=["90", "45"])
    found = wrap(inner, memory, embed_model=angles).retrieve(bundle)
    assert shown(found) == {"a": 1.6, "x": 0.7}
    assert inner.asked == [bundle]
    image = wrap({"x": 0.7}, memory, embed_model=angles, nodes=nodes_of("a"), top_k=5)
    assert shown(image.retrieve(schema.QueryBundle("", image_path="cat.png"))) == {"x": 0.7}


@pytest.mark.parametrize("shares", [None, False])
def test_a_vector_of_another_model_is_the_wrapped_retrievers_alone(memory, angles, shares):
    inner = Searching(Angles())
    wrapped = wrap(inner, memory, embed_model=angles, shares_embedding=shares)
    found = wrapped.retrieve(schema.QueryBundle("0", embedding=[7, 7, 7]))
    assert shown(found) == {"a": 1.6, "x": 0.7}
    assert inner.asked[0].embedding == [7, 7, 7]
    wrapped.retrieve("0")
    assert inner.asked[1].embedding is None


async def test_an_adapted_model_searches_adapted_and_is_remembered_by_its_base(memory, angles):
    turn = LinearAdapter(np.float32([[0, -1], [1, 0]]))
    adapted = AdaptedEmbedding(angles, turn)
    inner = Searching(adapted)
    wrapped = wrap(inner, memory, embed_model=adapted)
    found = await wrapped.aretrieve("0")
    assert shown(found) == {"a": 1.6, "x": 0.7}
    assert angles.asked == [("query", "0")]
    assert inner.asked[0].embedding == pytest.approx(adapted.get_query_embedding("0"))
    # The vector in a bundle is adapted: the memory needs the base model's.
    given = schema.QueryBundle("0", embedding=[0, 1])
    assert shown(wrapped.retrieve(given)) == {"a": 1.6, "x": 0.7}
    with pytest.raises(ShapeError, match="for this memory: expected 2 dimensions, got 16"):
        wrap({"x": 0.7}, memory, embed_model=CountingEmbedding()).retrieve("0")


@pytest.fixture
def saved(memory, angles, tmp_path) -> Path:
    wrapped = wrap({"a": 0.1}, memory, embed_model=angles, neighbours=3, weight=0.25, top_k=7)
    wrapped.save_pretrained(tmp_path / "memory")
    return tmp_path / "memory"


def test_a_saved_memory_comes_back_as_it_was_unless_told_otherwise(saved, memory, angles):
    loaded = MemoryRetriever.from_pretrained(saved, Fixed({"x": 0.7, "a": 0.6}), angles)
    names = ("weight", "temperature", "neighbours", "top_k", "match")
    assert [getattr(loaded, name) for name in names] == [0.25, 0.01, 3, 7, "node_id"]
    assert loaded.memory.document_ids == memory.document_ids
    assert np.array_equal(loaded.memory.queries, memory.queries)
    assert np.array_equal(loaded.memory.answers.grades, memory.answers.grades)
    assert shown(loaded.retrieve("0")) == {"a": 0.85, "x": 0.7}
    loaded = MemoryRetriever.from_pretrained(saved, Fixed({}), angles, weight=2, nodes={})
    assert (loaded.weight, loaded.top_k) == (2.0, 7)
    rebuilt = MemoryRetriever.from_pretrained(saved, Fixed({"x": 0.7, "a": 0.6}))
    assert shown(rebuilt.retrieve("0")) == {"a": 0.85, "x": 0.7}
    other, said = CountingEmbedding(dim=2), "on Angles; the model at hand, Counting"
    with pytest.raises(errors.BaseModelMismatchError, match=said):
        MemoryRetriever.from_pretrained(saved, Fixed({}), other)
    assert MemoryRetriever.from_pretrained(saved, Fixed({}), other, verify=False).weight == 0.25


def test_saving_again_replaces_a_memory_and_nothing_else(saved, memory, angles, tmp_path):
    assert sorted(path.name for path in saved.iterdir()) == ["memory.json", "memory.safetensors"]
    wrap({}, memory, embed_model=angles).save_pretrained(saved)
    AdaptedEmbedding(angles, LinearAdapter.identity(2)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(FolderError, match=r"holds other files \(README.md, adapter.safetensors"):
        wrap({}, memory, embed_model=angles).save_pretrained(tmp_path / "adapter")
    with pytest.raises(FolderError, match=r"holds other files \(memory.json, memory.safetensors\)"):
        AdaptedEmbedding(angles, LinearAdapter.identity(2)).save_pretrained(saved)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderError, match="cannot be written \\(Not a directory"):
        wrap({}, memory, embed_model=angles).save_pretrained(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9}, 'saved in format 9; this version reads up to 1. pip install "?--'),
        ({"document_ids": ["a"]}, "not a saved memory, or damaged"),
        ({"document_ids": None}, "not a saved memory, or damaged"),
        ({"base_model": None}, "not a saved memory, or damaged"),
        ({"settings": 3}, "not a saved memory, or damaged"),
    ],
)
def test_a_damaged_config_has_its_error(saved, angles, change, message):
    edit(saved / "memory.json", **change)
    with pytest.raises(FolderError, match=message):
        MemoryRetriever.from_pretrained(saved, Fixed({}), angles)


@pytest.mark.parametrize("name", ["memory.safetensors", "memory.json"])
def test_damaged_or_missing_files_have_their_error(saved, angles, name):
    for change in ((saved / name).touch, (saved / name).unlink):
        (saved / name).write_bytes(b"x")
        change()
        with pytest.raises(FolderError, match=name):
            MemoryRetriever.from_pretrained(saved, Fixed({}), angles)


async def test_a_real_index_finds_by_memory_what_words_do_not_say(minilm):
    texts = {
        "payroll": "Salaries are transferred on the 25th of each month.",
        "lunch": "The canteen serves lunch from noon to two.",
        "badge": "Lost badges are replaced at the front desk.",
        "zephyr": "Zephyr 7 restarts with systemctl restart zephyr.",
    }
    index = index_of(texts, minilm)
    asked = {"q": "the lunch page of the intranet is down"}
    dataset = Dataset(asked, texts, {"q": ["zephyr"]})
    question = "intranet lunch page not loading"
    plain = index.as_retriever(similarity_top_k=1)
    assert [node.node_id for node in plain.retrieve(question)] == ["lunch"]
    options = {"weight": 0.5, "top_k": 2, "nodes": index.docstore, **QUIET}
    wrapped = MemoryRetriever.from_dataset(plain, dataset, minilm, **options)
    found = wrapped.retrieve(question)
    assert [node.node_id for node in found] == ["zephyr", "lunch"]
    assert found[0].text == texts["zephyr"]
    assert shown(await wrapped.aretrieve(question)) == shown(found)
    assert [node.node_id for node in wrapped.retrieve("when do I get paid?")] == ["payroll"]
