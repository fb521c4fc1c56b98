import asyncio
import hashlib
import json
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from llama_index.core import Settings, llms
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

import llama_index_embeddings_adapted as package
from benchmarks.robustness import scripted_server
from benchmarks.robustness.scripted_server import ScriptedServer, two_questions
from benchmarks.robustness.scripted_server import nodes as towns
from llama_index_embeddings_adapted.errors import DatasetError, GenerationError, OptionError
from llama_index_embeddings_adapted.questions import options as passages
from llama_index_embeddings_adapted.questions.llm import AnswerCache, CachedAnswer, identity
from llama_index_embeddings_adapted.questions.selection import BaseCost
from tests.conftest import CountingEmbedding, trained_engine


class DoubleLLM(llms.CustomLLM):
    """A synchronous LLM that answers by script and remembers what it was sent."""

    chat_model: bool = True
    context_window: int = 4096
    model: str = "double"

    @property
    def metadata(self) -> llms.LLMMetadata:
        return llms.LLMMetadata(
            is_chat_model=self.chat_model, context_window=self.context_window, model_name=self.model
        )

    @property
    def sent(self) -> list[str]:
        return _SENT

    @llm_chat_callback()
    def chat(self, messages: Any, **kwargs: Any) -> llms.ChatResponse:
        text = two_questions(messages[-1].content)[1]
        _SENT.append(messages[-1].content)
        return llms.ChatResponse(message=llms.ChatMessage(role="assistant", content=text))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> llms.CompletionResponse:
        _SENT.append(prompt)
        return llms.CompletionResponse(text=two_questions(prompt)[1] + "\nPassage: one of my own")

    @llm_completion_callback()
    def stream_complete(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class AsyncDoubleLLM(DoubleLLM):
    """Has an asynchronous path only, and says how many calls were under way at once."""

    _now: int = 0
    _most: int = 0

    @llm_chat_callback()
    async def achat(self, messages: Any, **kwargs: Any) -> llms.ChatResponse:
        self._now += 1
        self._most = max(self._most, self._now)
        await asyncio.sleep(0.02)
        self._now -= 1
        text = two_questions(messages[-1].content)[1]
        return llms.ChatResponse(message=llms.ChatMessage(role="assistant", content=text))

    def chat(self, messages: Any, **kwargs: Any) -> llms.ChatResponse:
        raise AssertionError("the synchronous path was used")


class NoAsyncLLM(DoubleLLM):
    async def achat(self, messages: Any, **kwargs: Any) -> llms.ChatResponse:
        raise NotImplementedError


_SENT: list[str] = []


@pytest.fixture(autouse=True)
def nothing_sent() -> None:
    _SENT.clear()


Write = Callable[..., package.EmbeddingQAFinetuneDataset]


@pytest.fixture
def write(quiet) -> Write:
    """Have questions written; answers are kept in a folder of the test."""
    return partial(package.generate_qa_embedding_pairs, **quiet)


@pytest.mark.parametrize(
    "llm",
    [DoubleLLM(), DoubleLLM(chat_model=False), AsyncDoubleLLM(), NoAsyncLLM()],
    ids=["chat", "completion", "asynchronous", "asynchronous not implemented"],
)
def test_any_llm_gives_the_same_dataset(llm, write):
    data = write(towns(6), llm)
    assert len(data) == 12
    about = {data.queries[q] for q, docs in data.relevant_docs.items() if docs == ["n3"]}
    asked = "What is known about Town3 has market21 these days?"
    assert about == {asked, "market21 and river9 with facts"}
    assert data.corpus == {node.node_id: node.text for node in towns(6)}


async def test_the_asynchronous_function_gives_the_same_and_keeps_the_loop_free(write, quiet):
    llm = AsyncDoubleLLM()
    data = await package.agenerate_qa_embedding_pairs(towns(20), llm, concurrency=5, **quiet)
    assert data == write(towns(20), llm)
    assert llm._most == 5


def test_the_llm_of_the_settings_is_the_default(write, monkeypatch):
    monkeypatch.setattr(Settings, "_llm", DoubleLLM())
    assert len(write(towns(6))) == 12
    with pytest.raises(OptionError, match="llm: expected a LlamaIndex LLM, got str"):
        write(towns(6), "gpt-5")


def test_old_calls_work_as_they_are_and_actors_are_ignored_with_a_word(write, tmp_path):
    prompt = "Passage: {context_str}\n\nWrite {num_questions_per_chunk} questions."
    path = tmp_path / "pairs.json"
    data = write(towns(3), DoubleLLM(), prompt, 2, 3, "continue", 500, str(path), False)
    assert _SENT[0] == "Passage: Town0 has market0 and river0 with a bridge.\n\nWrite 2 questions."
    assert package.EmbeddingQAFinetuneDataset.from_json(path) == data
    saved = json.loads(path.read_text())
    assert list(saved) == ["queries", "corpus", "relevant_docs", "mode", "provenance"]
    with pytest.warns(DeprecationWarning, match="Raise concurrency instead"):
        write(towns(1), DoubleLLM(), executor="ray", actors=4)


def test_a_text_is_sent_as_it_is_embedded_once_for_twins_and_once_per_question(write):
    twins = [TextNode(id_=name, text="The market of Ulm opens at nine.") for name in ("a", "b")]
    data = write(twins, DoubleLLM())
    assert len(_SENT) == 1
    assert set(map(tuple, data.relevant_docs.values())) == {("a", "b")}
    node = TextNode(id_="n", text="The market opens at nine every day.", metadata={"town": "Ulm"})
    write([node], DoubleLLM())
    assert "town: Ulm\n\nThe market opens at nine" in _SENT[1]
    options = {"questions_per_call": 1, "styles": ["question", "keywords"]}
    data = write(towns(2), DoubleLLM(), **options)
    assert data.report.calls == len(_SENT) - 2 == 4
    assert len(data) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurency": 4}, 'Unknown argument "concurency". Did you mean "concurrency"'),
        ({"concurrency": 0}, "concurrency: expected a whole number >= 1, got 0"),
        ({"retry_limit": 0}, "retry_limit: expected a whole number >= 1, got 0"),
        ({"max_chunks": 0}, "max_chunks: expected a whole number >= 1, got 0"),
        ({"near_duplicate": 0.0}, "near_duplicate: expected a number > 0 and <= 1, got 0.0"),
        ({"styles": "question"}, "styles: expected a list of names, got 'question'"),
        ({"labels": ("Text",)}, r"labels: expected two.*got \('Text',\)"),
        ({"labels": "ab"}, "labels: expected two.*got 'ab'"),
        ({"embed_model": "local:x"}, "embed_model: 'local:x' names no model"),
        ({"filters": ["copied"]}, "filters: expected functions of a Candidate, got 'copied'"),
        ({"timeout_s": 0}, "timeout_s: expected a number > 0, got 0"),
        ({"requests_per_minute": "10"}, "requests_per_minute: expected a number > 0, got '10'"),
        ({"filters": len}, "filters: expected a list of functions, got builtin_function"),
        ({"on_failure": "ignore"}, "on_failure: expected one of continue, fail, got 'ignore'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_sent(options, message, write):
    with pytest.raises(OptionError, match=message):
        write(towns(6), DoubleLLM(), **options)
    assert not _SENT


def chapters() -> list[TextNode]:
    """Ninety passages of a long document, six of a short one, four without a document."""
    nodes = []
    for document, count in (("long", 90), ("short", 6)):
        for i in range(count):
            node = TextNode(id_=f"{document}{i}", text=f"{document} text number {i}")
            node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=document)
            nodes.append(node)
    return nodes + [TextNode(id_=f"alone{i}", text=f"alone {i}") for i in range(4)]


def test_a_sample_takes_from_all_documents_alike():
    nodes = chapters()
    everything = passages.passages_of(nodes, passages.corpus_of(nodes))
    chosen = passages.sample(everything, 14, seed=1)
    sources = [each.source for each in chosen]
    assert (sources.count("long"), sources.count("short")) == (5, 5)
    assert sum(source.startswith("alone") for source in sources) == 4
    more = passages.sample(everything, 40, seed=1)
    assert set(chosen) < set(more)
    assert passages.sample(everything, None, seed=1) == everything
    assert passages.sample(everything, 14, seed=2) != chosen


def test_max_chunks_limits_what_is_asked_about_and_nodes_without_text_are_left_out(write):
    data = write(towns(9), DoubleLLM(), max_chunks=4)
    assert (len(_SENT), data.report.passages, len(data.corpus)) == (4, 4, 9)
    # A larger sample pays for the new passages only.
    write(towns(9), DoubleLLM(), max_chunks=6)
    assert len(_SENT) == 6
    nodes = [*towns(2), TextNode(id_="empty", text="  ")]
    with pytest.warns(UserWarning, match="Left out 1 of 3 nodes: no text"):
        data = write(nodes, DoubleLLM())
    assert list(data.corpus) == ["n0", "n1"]
    with pytest.raises(DatasetError, match="nodes: expected at least one with text, got 0"):
        write([], DoubleLLM())
    for given, kind in ((["abc"], "str"), (None, "NoneType")):
        with pytest.raises(DatasetError, match=f"list of LlamaIndex's nodes, got {kind}"):
            write(given, DoubleLLM())
        with pytest.raises(DatasetError, match=f"list of LlamaIndex's nodes, got {kind}"):
            package.pairs_from_structure(given)


def test_a_text_is_cut_at_a_word_and_only_where_it_is_too_long(monkeypatch):
    monkeypatch.setattr("llama_index.core.global_tokenizer", str.split)
    assert passages.truncate_to_tokens("a  b\u00a0c\n\n\n\nd", 99) == "a b c\n\nd"
    cut = passages.truncate_to_tokens("word " * 500, 100)
    assert 60 <= len(cut.split()) <= 80
    monkeypatch.setattr("llama_index.core.global_tokenizer", list)
    assert re.fullmatch("x{60,80}", passages.truncate_to_tokens("x" * 5000, 100))
    assert passages.truncate_to_tokens("🦙", 1) == "🦙"


def test_a_passage_longer_than_the_context_or_what_the_model_reads_is_cut(write):
    node = TextNode(id_="n", text="The market of Ulm opens at nine. " * 300)
    said = "1 of 1 passages are longer than the LLM's context of 2048"
    with pytest.warns(UserWarning, match=said):
        data = write([node], DoubleLLM(context_window=2048))
    assert data.report.cut == 1
    assert len(_SENT[0]) < len(node.text)
    with pytest.raises(OptionError, match="a context of 256 tokens has no room for a passage"):
        write([node], DoubleLLM(context_window=256))

    class Short(CountingEmbedding):
        max_length: int = 32

    node = TextNode(id_="n", text="The market of Ulm opens at nine. " * 100)
    data = write([node], DoubleLLM(), embed_model=Short())
    assert data.report.cut == 1
    assert len(_SENT[-1].split("\n\n")[0].split()) <= 32


def test_what_the_filters_ask_of_the_base_model_is_counted_once(write):
    base = CountingEmbedding(embed_batch_size=4)
    options = {"embed_model": base, "round_trip_k": None, "generic_matches": None}
    first, again = (write(towns(3), DoubleLLM(), **options).report for _ in range(2))
    assert first.base == BaseCost(len(base.batches), len(base.asked), first.base.tokens)
    assert first.base.tokens > first.base.texts
    assert f"{len(base.asked)} texts embedded in {len(base.batches)} calls" in str(first)
    assert first.to_dict()["base_texts"] == len(base.asked)
    assert again.base == BaseCost()

    def about_town_two(candidate: package.Candidate) -> bool:
        return "Town2" in candidate.text

    data = write(towns(4), DoubleLLM(), filters=[about_town_two])
    assert data.report.reasons == {"about_town_two": 1}


def test_whole_documents_are_held_out(write):
    nodes = chapters()
    data = write(nodes, DoubleLLM(), near_duplicate=1.0)
    train, test = package.hold_out_documents(data, nodes, 0.1, seed=3)
    sources = {node.node_id: node.ref_doc_id or node.node_id for node in nodes}
    sides = [{sources[d] for docs in p.relevant_docs.values() for d in docs} for p in (train, test)]
    assert sides[0].isdisjoint(sides[1])
    assert len(train) + len(test) == len(data)
    with pytest.raises(DatasetError, match="nodes of all 100 documents, 98 are missing"):
        package.hold_out_documents(data, nodes[:2])


def test_a_refused_key_and_an_unreachable_server_fail_at_once(write):
    with (
        ScriptedServer(lambda _: (401, "wrong key sk-aaaaaaaaaaaaaaaaaaaaaaaa")) as server,
        pytest.raises(GenerationError, match=r"OpenAILike\(scripted\) refused the key") as caught,
    ):
        write(towns(50), scripted_server.client(server.api_base), concurrency=8)
    assert sum(server.started.values()) <= 8  # what was under way when the first refusal came
    assert "sk-aaaa" not in str(caught.value)
    began = time.perf_counter()
    with pytest.raises(GenerationError, match=r"cannot be reached.*Is the server running"):
        write(towns(50), scripted_server.client("http://127.0.0.1:9/v1"))
    assert time.perf_counter() - began < 5


def test_what_fails_for_a_while_is_asked_again(write):
    failures = {"Town1 ": [500, 429], "Town2 ": [503]}

    def script(message: str) -> tuple[int, str]:
        for town, statuses in failures.items():
            if town in message and statuses:
                return statuses.pop(), "busy"
        return two_questions(message)

    with ScriptedServer(script) as server:
        data = write(towns(4), scripted_server.client(server.api_base))
    assert len(data) == 8
    assert data.report.calls == 7
    assert not data.report.failed


def test_a_failing_passage_is_reported_skipped_and_asked_again_by_the_next_run(write):
    broken = True

    def script(message: str) -> tuple[int, str]:
        return (500, "out of order") if broken and "Town1 " in message else two_questions(message)

    with ScriptedServer(script) as server:
        llm = scripted_server.client(server.api_base)
        data = write(towns(4), llm)
        assert list(data.report.failed) == ["n1"]
        assert "out of order" in data.report.failed["n1"]
        assert "No answer about 1 passages" in str(data.report)
        assert len(data) == 6
        with pytest.raises(GenerationError, match=r'1 of 4 passages failed \(first: "n1"'):
            write(towns(4), llm, None, 2, 1, "fail")
        broken = False
        again = write(towns(4), llm)
        assert (again.report.calls, again.report.calls_saved) == (1, 3)
        assert len(again) == 8


def test_a_call_that_hangs_is_given_up_and_useless_answers_are_shown(write):
    kept = pytest.raises(GenerationError, match="Not one question was kept of 0 written")
    with ScriptedServer(latency_s=30) as server, kept:
        write(towns(2), scripted_server.client(server.api_base), retry_limit=1, timeout_s=0.3)
    match = r"(?s)Not one question was kept of 3.*\| refusal \| 3"
    server = ScriptedServer(lambda _: (200, "I'm ready to assist. What's your question?"))
    with server, pytest.raises(GenerationError, match=match):
        write(towns(3), scripted_server.client(server.api_base))


def test_calls_per_minute_are_limited(write):
    began = time.perf_counter()
    write(towns(6), AsyncDoubleLLM(), requests_per_minute=1200)
    assert time.perf_counter() - began > 5 * 60 / 1200


def test_nothing_is_paid_for_twice_and_another_model_prompt_or_text_is_another_run(write, tmp_path):
    first, second = (write(towns(6), DoubleLLM()) for _ in range(2))
    assert first == second
    assert (len(_SENT), second.report.calls, second.report.calls_saved) == (6, 0, 6)
    write(towns(6), DoubleLLM(model="another"))
    assert len(_SENT) == 12
    write(towns(6), DoubleLLM(), num_questions_per_chunk=1)
    assert len(_SENT) == 18
    nodes, path = towns(6), tmp_path / "qa.json"
    train, other = (write(part, DoubleLLM(), output_path=path) for part in (nodes[:3], nodes[3:]))
    assert set(train.corpus).isdisjoint(other.corpus)
    assert set(train.queries).isdisjoint(other.queries)


def test_answers_of_version_0_1_are_taken_over_but_for_a_torn_line(tmp_path):
    settings = {"model": "m"}
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    old = tmp_path / f"questions-1-{name}.jsonl"
    first = {"key": "one", "text": "first", "completion_tokens": 2, "seconds": 0.5}
    lines = [first, {"key": "two", "text": "half \ud83d\nline"}, {"key": "none", "text": 7}]
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    for torn in ("", '{"key": "three", "te'):
        old.write_text(whole + torn)
        with AnswerCache(tmp_path, settings) as cache:
            assert cache.get("none") is cache.get("three") is None
            assert cache.get("one") == CachedAnswer("first", None, 2, 0.5)
            assert cache.get("two") == CachedAnswer("half \nline")
    old.write_text(whole + json.dumps({"key": "four", "text": "written by 0.1 since"}) + "\n")
    with AnswerCache(tmp_path, settings) as cache:
        assert cache.get("four") == CachedAnswer("written by 0.1 since")
        assert cache.key("x") != AnswerCache(None, {"model": "another"}).key("x")


def test_what_is_kept_holds_no_key_and_only_its_owner_reads_it(write, tmp_path):
    with ScriptedServer() as server:
        llm = scripted_server.client(server.api_base)
        llm.api_key = "sk-secretsecretsecretsecret"
        llm.additional_kwargs = {"extra_headers": {"Authorization": "Bearer hidden"}}
        write(towns(2), llm)
    (file,) = (tmp_path / "cache" / "questions").iterdir()
    assert b"secret" not in file.read_bytes()
    assert file.stat().st_mode & 0o077 == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(GenerationError, match=r"answers in .* cannot be used .*cache_dir=False"):
        AnswerCache(tmp_path / "file", {}).__enter__()


def test_the_estimate_agrees_with_the_bill_and_its_probes_are_not_paid_twice(write, quiet):
    options = {"concurrency": 4, "retry_limit": 2}
    with ScriptedServer(latency_s=0.1) as server:
        llm = scripted_server.client(server.api_base)
        unprobed = package.estimate(towns(30), llm, probe=False, **options, **quiet)
        assert (unprobed.calls, unprobed.seconds, unprobed.probed) == (30, None, False)
        before = package.estimate(towns(30), llm, **options, **quiet)
        assert (before.passages, before.calls, before.probed) == (30, 25, True)
        bill = write(towns(30), llm, **options).report
        assert (bill.calls, bill.calls_saved) == (25, 5)
        assert 25 * 0.1 / 4 <= (before.seconds or 0) < 25 * 0.1  # a busy machine adds to it
        assert before.prompt_tokens == pytest.approx(bill.prompt_tokens, rel=0.1)
        assert before.completion_tokens == pytest.approx(bill.completion_tokens, rel=0.1)
        price = (before.prompt_tokens + 2 * before.completion_tokens) / 1e6
        assert before.price(1.0, 2.0) == pytest.approx(price)
        after = package.estimate(towns(30), llm, **options, **quiet)
        assert (after.calls, after.seconds, after.probed) == (0, 0.0, False)
        assert "0 calls to make" in str(after)
        more = package.estimate(towns(40), llm, probe=False, **options, **quiet)
        assert 10 * 0.1 / 4 <= (more.seconds or 0) < 10 * 0.1


def test_the_plan_is_shown_before_anything_is_asked_with_what_is_cut(write, capsys):
    nodes = [TextNode(id_="long", text="The market of Ulm opens at nine. " * 50), *towns(2)]
    write(nodes, DoubleLLM(), max_passage_tokens=64, show_progress=True)
    plan = capsys.readouterr().err.splitlines()[0]
    assert plan.startswith("3 passages, 3 calls to make: about ")
    assert plan.endswith("1 of 3 passages are longer than what is read: chunk at 64 tokens")


def test_a_missing_key_ends_a_run_at_once(write):
    class Keyless(DoubleLLM):
        def chat(self, messages: Any, **kwargs: Any) -> llms.ChatResponse:
            _SENT.append(messages[-1].content)
            raise ValueError("Missing credentials. Set the `OPENAI_API_KEY` variable.")

    with pytest.raises(GenerationError, match=r"Keyless\(double\) has no key: .*OPENAI_API_KEY"):
        write(towns(9), Keyless())
    assert len(_SENT) == 1


def test_an_llm_that_is_asked_one_call_at_a_time_is_estimated_so(quiet):
    class Slow(DoubleLLM):
        def chat(self, messages: Any, **kwargs: Any) -> llms.ChatResponse:
            time.sleep(0.05)
            return super().chat(messages, **kwargs)

    found = package.estimate(towns(22), Slow(), **quiet)
    assert found.calls == 20
    assert (found.seconds or 0) >= 20 * 0.05


def test_the_report_counts_every_question_and_prints_a_table(write):
    def script(message: str) -> tuple[int, str]:
        if "Town0 " in message:
            return 200, "Here are two questions:\nWhere is the market of Town0?\nFees?"
        if "Town1 " in message:
            return 200, "Where is the market of Town1?\nWhat does this passage say?\n{a: 1, b: [2]}"
        return 200, "Where is the market of Town2?\nWhere is the market of Town2 please?"

    with ScriptedServer(script) as server:
        data = write(towns(3), scripted_server.client(server.api_base), near_duplicate=0.8)
    report = data.report
    assert sorted(data.queries.values()) == [f"Where is the market of Town{i}?" for i in range(3)]
    assert report.written == 8
    assert report.reasons["too_short"] == 1
    assert set(report.reasons) == {
        "refusal", "too_short", "refers_to_passage", "not_a_query", "near_duplicate",
    }  # fmt: skip
    assert report.kept_fraction == 3 / 8
    assert "| refers to passage | 1 | 12% | What does this passage say? |" in str(report)
    assert 'Kept: "Where is the market of Town0?", "Where' in str(report)
    assert report.to_dict()["dropped"] == report.reasons
    assert repr(report) == "QuestionReport(3 of 8 questions kept)"
    assert data.subset(list(data.queries)).report is None


def test_answers_are_those_of_one_model_and_not_of_an_outage(write, tmp_path):
    class Silent(DoubleLLM):
        model: str = "unknown"
        text: str = ""

        @llm_chat_callback()
        def chat(self, messages: Any, **kwargs: Any) -> llms.ChatResponse:
            _SENT.append(messages[-1].content)
            text = self.text or two_questions(messages[-1].content)[1]
            return llms.ChatResponse(message=llms.ChatMessage(role="assistant", content=text))

    with pytest.raises(GenerationError, match="Not one question was kept of 0"):
        write(towns(3), Silent(text=" "))
    assert write(towns(3), Silent()).report.calls == 3  # nothing was kept of the silence
    other = DoubleLLM(model="unknown")  # another class, of one name
    assert [write(towns(3), other).report.calls for _ in range(2)] == [3, 0]
    for folder, size in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.gguf").write_bytes(b"G" * size)
    both = [package.LocalLlama(path=str(tmp_path / f / "model.gguf")) for f in ("a", "b")]
    assert identity(both[0]) != identity(both[1])


def test_what_cannot_work_is_said_at_once(write, tmp_path):
    with pytest.raises(OptionError, match="expected the path of a file, this is a folder"):
        write(towns(3), DoubleLLM(), output_path=tmp_path)
    assert not _SENT
    (tmp_path / "no.gguf").write_bytes(b"none")
    for name, why in (("gone", "found none at"), ("no", "llama.cpp cannot load")):
        with pytest.raises(OptionError, match=why):
            write(towns(9), package.LocalLlama(path=str(tmp_path / f"{name}.gguf")))

    class Away(DoubleLLM):
        @property
        def metadata(self) -> llms.LLMMetadata:
            raise ConnectionError("refused")  # as one that asks its server

    with pytest.raises(GenerationError, match=r"Away\(double\) cannot be reached"):
        write(towns(3), Away())


def test_what_an_llm_wrote_says_so_and_the_engine_knows(write, base, tmp_path):
    data = write(towns(30), DoubleLLM())
    train, test = data.train_test_split(0.3)
    assert data.synthetic
    assert train.synthetic
    plain = package.EmbeddingQAFinetuneDataset(test.queries, test.corpus, test.relevant_docs)
    assert not plain.synthetic
    report = trained_engine(train, base, tmp_path, epochs=1).report
    assert set(report.settings["judged_on"]) == {"llm"}
    assert not report.verdict.startswith("ship")


def test_generic_questions_and_those_that_miss_their_passage_go(write, base):
    animals = ["ant", "bee", "cat", "dog", "elk", "fox"]
    nodes = [TextNode(id_=name, text=f"farm facts {name} {name} {name}") for name in animals]

    def script(message: str) -> tuple[int, str]:
        animal = message.split("Passage: farm facts ")[-1].split()[0]
        text = {"ant": "where bee bee", "cat": "farm facts"}.get(animal, f"where {animal} {animal}")
        return 200, text

    options = {"embed_model": base, "filters": [], "round_trip_k": 1}
    with ScriptedServer(script) as server:
        llm = scripted_server.client(server.api_base)
        strict = write(nodes, llm, generic_matches=3, **options)
        loose = write(nodes, llm, generic_matches=None, **options)
    # The bee's own question repeats the ant's, which suits all but the bee no better than the ant.
    assert strict.report.reasons == {"generic": 1, "near_duplicate": 1, "round_trip": 1}
    assert strict.report.examples("generic") == ["where bee bee"]
    assert set(loose.report.examples("round_trip")) == {"where bee bee", "farm facts"}
    assert sorted(strict.queries.values()) == [f"where {a} {a}" for a in ("dog", "elk", "fox")]


async def test_an_interrupt_keeps_what_was_answered(write, quiet):
    llm = AsyncDoubleLLM()
    work = package.agenerate_qa_embedding_pairs(towns(60), llm, concurrency=2, **quiet)
    with pytest.raises((TimeoutError, asyncio.TimeoutError)):
        await asyncio.wait_for(work, timeout=0.4)
    again = write(towns(60), llm, concurrency=30)
    assert 4 <= again.report.calls_saved < 60
    assert len(again) == 120


def test_what_headings_ask_joins_the_questions_of_an_llm(write):
    text = (
        "# The evening ferry\n\nIt leaves at six from the northern pier and returns after midnight."
    )
    node = TextNode(id_="n", text=text)
    data = write([node], DoubleLLM(), structure=True)
    assert data.sources["structure"] == 1 <= data.sources["llm"]
    assert data.corpus == {"n": text}
    assert {tuple(documents) for documents in data.relevant_docs.values()} == {("n",)}
    assert "The evening ferry" in data.queries.values()
    assert data.report.written >= 2
