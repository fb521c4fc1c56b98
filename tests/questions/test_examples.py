import json
import random
from collections import Counter
from contextlib import nullcontext
from functools import partial
from typing import Any

import pandas as pd
import pytest
from llama_index.core.llms import CompletionResponse
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.utils import count_tokens

from benchmarks import sets
from benchmarks.robustness.scripted_server import nodes as towns
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted import LocalLlama, generate_qa_embedding_pairs
from llama_index_embeddings_adapted.cli.app import Finetune
from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.questions.filters import TEXT_FILTERS, Candidate, refusal
from llama_index_embeddings_adapted.questions.options import (
    GenerationOptions,
    labels_of,
    read_examples,
)
from llama_index_embeddings_adapted.questions.prompts import SHOWN, Example, PromptConfig, pieces
from llama_index_embeddings_adapted.questions.selection import _filters, select
from tests.conftest import CountingEmbedding, real_data
from tests.questions.test_generation import AsyncDoubleLLM, DoubleLLM

ROWS = [
    {"query": "is the market open late", "document": "The market closes at ten in the evening."},
    {"query": "who mends shoes by the river", "document": "A cobbler works below the old mill."},
    {"query": "can dogs ride the ferry", "document": "Animals travel free of charge on all boats."},
]
EXAMPLES = tuple(Example(row["document"], row["query"]) for row in ROWS)
QUIET: dict[str, Any] = {"show_progress": False, "num_questions_per_chunk": 1}


class Completes(DoubleLLM):
    chat_model: bool = False

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.sent.append(prompt)
        town = prompt.rsplit("Town", 1)[1][:1]
        return CompletionResponse(text=f" which bridge is in town{town}\nQuery: more of it?")


@pytest.mark.parametrize("shape", ["rows", "pairs", "dataset", "file"])
def test_examples_are_read_in_any_shape(shape, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    given = {"rows": ROWS, "pairs": [(row["query"], row["document"]) for row in ROWS]}
    given["dataset"] = Dataset.from_records(ROWS)
    given["file"] = tmp_path / "rows.json"
    assert set(GenerationOptions(examples=given[shape]).shown({})) == set(EXAMPLES)


def test_of_many_pairs_eight_are_drawn_and_queries_of_a_log_get_the_nearest_passage(tmp_path):
    rows = [{"query": f"word{n} asks about {n}", "document": f"text {n % 9}"} for n in range(60)]
    drawn = [GenerationOptions(examples=rows, seed=seed).shown({}) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({example.passage for example in drawn[0]}) == len(drawn[0]) == 8
    corpus = {row["query"]: row["query"] for row in ROWS}  # each its own nearest
    (tmp_path / "log.txt").write_text("\n\n".join(corpus))
    (tmp_path / "log.csv").write_text("\n".join(["question", *corpus]))
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps({"query": q}) for q in corpus))
    for name in ("log.txt", "log.csv", "log.jsonl"):
        given = {"examples": tmp_path / name, "cache_dir": False, "show_progress": False}
        found = GenerationOptions(embed_model=CountingEmbedding(), **given).shown(corpus)
        assert {(each.passage, each.judged) for each in found} == {(q, False) for q in corpus}
    with pytest.raises(OptionError, match="queries without passages need embed_model"):
        GenerationOptions(**given).shown(corpus)


def test_queries_keep_their_passages_whatever_the_order_and_without_one_is_a_log(tmp_path):
    texts = {f"q{n}": row["query"] for n, row in enumerate(ROWS)}
    corpus = {f"d{n}": row["document"] for n, row in enumerate(ROWS)}
    judged = {f"q{n}": [f"d{n}"] for n in (2, 0)}
    data = Dataset(texts, corpus, {**judged, "q1": []}, allow_unjudged=True)
    found = {each.query: each.passage for each in read_examples(data)}
    assert found == {each.query: each.passage * (each != EXAMPLES[1]) for each in EXAMPLES}
    queries = list(texts.values())
    (tmp_path / "list.json").write_text(json.dumps(queries))
    shapes = [tmp_path / "list.json", set(queries), {"queries": queries}, pd.Series(queries)]
    for given in [*shapes, [{"query": query} for query in queries]]:
        assert {each.query for each in read_examples(given)} == set(queries)


@pytest.mark.parametrize(
    ("line", "named"),
    [("queries", True), ("Suchanfrage", True), ("Top queries", True), ("user query", True),
     ("lost my card", False), ("can somebody tell me when it opens", None)],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.csv", "a.md"])
def test_the_first_line_of_a_list_is_a_query_unless_it_is_like_a_name(line, named, name, tmp_path):
    queries = [row["query"] for row in ROWS]
    (tmp_path / name).write_text("\n".join([line, *queries]))
    what = "the name of" if named else "a query; if not"
    said = nullcontext() if named is None else pytest.warns(UserWarning, match=what)
    with said:
        found = [each.query for each in read_examples(tmp_path / name)]
    assert found == ([] if named else [line]) + queries


def test_what_has_no_effect_says_so():
    def own(candidate: Candidate, least: int) -> bool:
        return len({"d": 1}[candidate.document]) < least  # an example is about no document

    asked = {"examples": ROWS, "cache_dir": False, **QUIET}
    with pytest.warns(UserWarning, match="questions_per_call: no effect beside examples"):
        GenerationOptions.of({"examples": ROWS, "questions_per_call": 2})
    with pytest.warns(UserWarning, match="labels: no effect without examples"):
        GenerationOptions.of({"labels": ("a", "b")})
    with pytest.warns(UserWarning, match="your prompt shows no examples"):
        generate_qa_embedding_pairs(towns(4), DoubleLLM(), "Of {context_str}", **asked)
    with pytest.raises(KeyError):  # what is wrong with a filter is not hidden
        generate_qa_embedding_pairs(towns(4), Completes(), filters=[partial(own, least=1)], **asked)
    options = GenerationOptions(filters=[partial(refusal)])
    refused = [Candidate("As an AI I cannot say that", "d", "")]
    assert [each.reason for each in select(refused, {}, options, most=9)[1]] == ["refusal"]


@pytest.mark.parametrize("given", [ROWS[:2], [ROWS[0]] * 9, ["a query", " "]])
def test_fewer_than_three_examples_are_refused_before_anything_is_sent(given):
    with pytest.raises(OptionError, match="examples: expected 3 to 30 different queries"):
        generate_qa_embedding_pairs(towns(6), DoubleLLM(), examples=given, cache_dir=False, **QUIET)


def test_a_model_that_completes_goes_on_with_the_examples(tmp_path):
    llm = Completes()
    llm.sent.clear()
    data = generate_qa_embedding_pairs(towns(3), llm, examples=ROWS, cache_dir=tmp_path, **QUIET)
    assert sorted(data.queries.values()) == [f"which bridge is in town{n}" for n in range(3)]
    assert data.synthetic
    assert {example.query for example in data.report.shown} == {row["query"] for row in ROWS}
    heads = {prompt.rsplit("Passage: ", 1)[0] for prompt in llm.sent}
    assert len(heads) == 1, "what is shared is the same to the letter, so that it is read once"
    assert all(f"Query: {row['query']}\n\n" in next(iter(heads)) for row in ROWS)
    assert all(prompt.endswith("\nQuery:") for prompt in llm.sent)


def test_a_model_that_chats_gets_turns_unless_told_otherwise():
    options = GenerationOptions.of({"examples": ROWS, "labels": ("Note", "Asked")})
    chat = options.prompts(2, None, EXAMPLES, AsyncDoubleLLM())
    (request,) = chat.requests("The fair is in May.", 0)
    assert [role for role, _ in request.turns] == ["system", *["user", "assistant"] * 3, "user"]
    assert request.turns[-1][1] == "Note: The fair is in May.\n\nWrite 2 different queries."
    told = GenerationOptions(completion=True).prompts(2, None, EXAMPLES, AsyncDoubleLLM())
    assert told.completes
    assert GenerationOptions().prompts(1, None, EXAMPLES, LocalLlama()).completes


def test_a_long_passage_is_asked_about_in_pieces_and_examples_leave_it_room():
    passage = "one two three four five " * 60
    assert all(SHOWN - 10 < len(piece) <= SHOWN for piece in pieces(passage)[:-1])
    prompts = PromptConfig(2, examples=EXAMPLES, completes=True)
    assert [r.piece for r in prompts.requests(passage, 0)] == pieces(passage)[:2]
    asked = (1, None, (Example("word " * 99, "a word"),) * 30, DoubleLLM(context_window=2048))
    small = GenerationOptions(completion=True).prompts(*asked)
    assert 3 <= len(small.examples) < 30
    assert 2 * count_tokens(small.requests("", 0)[0].text) <= 2048
    assert labels_of([Example("ls -la | grep $x > /tmp/{a}", "is it?")]) == ("Code", "Question")


def test_filters_follow_the_examples():
    passage = "The fair of the town is in May. Its bridge is closed to cars on that day."
    texts = {
        "bridges closed to cars in may": None,
        "is the market open late": "an_example",
        "When is the fair?": "unlike_examples",  # no example is a question, or has a capital
        "this passage has which date": "refers_to_passage",
    }
    asked = [Candidate(text, "d", passage) for text in texts]
    given = (asked, {"d": passage}, GenerationOptions())
    _, dropped, _ = select(*given, most=9, examples=EXAMPLES)
    reasons = {drop.candidate.text: drop.reason for drop in dropped}
    assert {text: reasons.get(text) for text in texts} == texts
    claims = tuple(Example(e.passage, f"{e.query.capitalize()}.") for e in EXAMPLES)
    claim = [Candidate("The fair takes place early in the year.", "d", passage)]
    assert select(claim, *given[1:], most=9)[1][0].reason == "statement"
    assert select(claim, *given[1:], most=9, examples=claims)[0] == claim


@pytest.mark.parametrize(
    "name", ["nl2bash", "tldr_pages", "squad_dev", "scifact", "banking77_intent", "nfcorpus"]
)
def test_real_queries_pass_every_filter_where_eight_others_are_the_examples(name):
    data, chance = sets.load(real_data(name).parent, name).train, random.Random(0)
    drawn = chance.sample(sorted(data.queries), 200)
    passages = [data.corpus[data.relevant_docs[query][0]] for query in drawn]
    pairs = [Example(p, data.queries[q]) for q, p in zip(drawn, passages, strict=True)]
    asked = [Candidate(pair.query, "", pair.passage) for pair in pairs]
    objects = {filter_: [filter_(each) for each in asked] for filter_ in TEXT_FILTERS}
    dropped: Counter[str] = Counter()
    for _ in range(60):
        shown = chance.sample(range(200), 8)
        *kept, like = _filters(TEXT_FILTERS, [pairs[row] for row in shown])
        dropped[like.__name__] += sum(map(like, asked))
        for filter_ in kept:
            dropped[filter_.__name__] += sum(objects[filter_])
    assert all(count < 0.05 * 60 * 192 for count in dropped.values()), dropped


def test_what_is_far_from_the_examples_for_the_base_model_is_dropped(minilm):
    shown = [f"{verb} a file in a folder" for verb in ("rename", "copy", "delete", "list", "find")]
    examples = tuple(Example("", text) for text in shown)
    corpus = {"d": "mv moves a file into a folder", "e": "Sugar raises the risk of diabetes."}
    asked = [Candidate("move files to a folder", "d", corpus["d"]),
             Candidate("sugar and risk of diabetes", "e", corpus["e"])]  # fmt: skip
    options = GenerationOptions(embed_model=minilm, cache_dir=False, show_progress=False)
    kept, dropped, _ = select(asked, corpus, options, most=9, examples=examples)
    assert [c.text for c in kept] == ["move files to a folder"]
    assert dropped[0].reason == "unlike_examples"


@pytest.mark.parametrize(
    ("count", "method", "judges"),
    [(8, "auto", None), (99, "auto", 91), (99, "linear", None), (140, "linear", 132)],
)
def test_real_queries_judge_but_never_those_shown(count, method, judges, tmp_path):
    rows = [{"query": f"word{n} asks of {n}", "document": f"text {n}"} for n in range(count)]
    rows += [{**row, "query": row["query"].upper() + "."} for row in rows[:8] if count == 8]
    (tmp_path / "real.json").write_text(json.dumps(rows))
    given = {"examples": tmp_path / "real.json", "cache_dir": tmp_path, **QUIET}
    written = generate_qa_embedding_pairs(towns(3), Completes(), **given)
    job = Finetune(source=tmp_path, llm="smollm2", examples=tmp_path / "real.json")
    found = job._judges(None, written, method)
    assert (found and len(found)) == judges
    shown = {each.query for each in written.report.shown}
    assert found is None or shown.isdisjoint(found.queries.values())
    assert found is None or set(written.corpus) < set(found.corpus)
