import bisect
import difflib
import functools
import inspect
import io
import itertools
import json
import os
import random
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from llama_index.core import Document, SimpleDirectoryReader
from llama_index.core.readers.base import BaseReader
from typer.testing import CliRunner

import llama_index_embeddings_adapted as package
from benchmarks.robustness.scripted_server import ScriptedServer
from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter, errors, ship_candidate
from llama_index_embeddings_adapted.adapters.maps import NudgeAdapter
from llama_index_embeddings_adapted.cli import inputs, options
from llama_index_embeddings_adapted.cli.app import app
from llama_index_embeddings_adapted.cli.inputs import cut, read_documents, read_pairs
from llama_index_embeddings_adapted.errors import (
    DatasetError,
    FolderError,
    MissingExtraError,
    OptionError,
)
from llama_index_embeddings_adapted.evaluation.verdict import Decision, Verdict
from llama_index_embeddings_adapted.operations.folder import as_text, inspect_adapter
from tests.conftest import ROOT, CountingEmbedding
from tests.questions.test_generation import DoubleLLM
from tests.support.files import edit

COMMANDS = (
    "show", "split", "generate", "finetune", "evaluate", "compare", "inspect", "ship", "upgrade",
    "export",
)  # fmt: skip
PAGES = (
    json.dumps, textwrap.wrap, shutil.copytree, statistics.quantiles, random.sample, os.walk,
    itertools.groupby, functools.lru_cache, difflib.get_close_matches, bisect.bisect_left,
    subprocess.run, tempfile.mkstemp,
)  # fmt: skip
TOPICS = [page.__name__ for page in PAGES]
HEADINGS = ("finetune", "--structure")
DOUBLE = ("finetune", "docs", "--llm", "double", "--base", "counting")


class Ran:
    def __init__(self, *arguments: object, process: bool = False) -> None:
        words = [str(argument) for argument in arguments]
        if process:
            command = [sys.executable, "-m", "llama_index_embeddings_adapted.cli", *words]
            real = subprocess.run(command, capture_output=True, text=True, timeout=300)
            self.code, self.out, self.err = real.returncode, real.stdout, real.stderr
            return
        done = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
        self.code, self.out, self.err = done.exit_code, done.stdout, done.stderr
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception

    @property
    def data(self) -> Any:
        return json.loads(self.out)


def done(*arguments: object, code: int = 0) -> Ran:
    """Run a command that has to end with this code."""
    ran = Ran(*arguments)
    assert ran.code == code, ran.err
    return ran


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMA_INDEX_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def counting(monkeypatch) -> CountingEmbedding:
    """A base model that a text can name: ``counting``."""
    base = CountingEmbedding(embed_batch_size=4)
    known_as(monkeypatch, "resolve_model", "counting", base)
    return base


@pytest.fixture
def double(monkeypatch) -> None:
    """An LLM that a text can name: ``double``."""
    known_as(monkeypatch, "resolve_writer", "double", (DoubleLLM(), {}))


def known_as(monkeypatch: pytest.MonkeyPatch, resolver: str, wanted: str, found: Any) -> None:
    resolve = getattr(inputs, resolver)
    monkeypatch.setattr(inputs, resolver, lambda text: found if text == wanted else resolve(text))


@pytest.fixture
def pairs(small, tmp_path) -> Path:
    small.save_json(tmp_path / "pairs.json")
    return tmp_path / "pairs.json"


@pytest.fixture
def documents(tmp_path) -> Path:
    folder = tmp_path / "docs"
    (folder / "more").mkdir(parents=True)
    for number, page in enumerate(PAGES):
        place = folder / "more" if number % 2 else folder
        words = " ".join((inspect.getdoc(page) or "").split()[:80])
        (place / f"{page.__name__}.md").write_text(f"# What {page.__name__} does\n\n{words}")
    (folder / ".hidden.md").write_text("secret")
    return folder


def adapter(folder: Path, base: CountingEmbedding, *, sign: float = 1.0) -> Path:
    weight = sign * np.eye(base.dim, dtype=np.float32)
    AdaptedEmbedding(base, LinearAdapter(weight)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command):
    shown = Ran(command, "--help").out
    found = re.findall(r"^  (--[\w-]+)[^\n]*?(?:\s{2,}(\S.*))?$\n?(\s{10,}\S)?", shown, re.M)
    assert len(found) >= 3
    assert not [name for name, text, below in found if not text and not below]
    assert "Exit codes: 0 done" in shown


def test_the_commands_are_listed_and_nothing_heavy_is_loaded_to_say_so():
    code = (
        "import sys\nfrom llama_index_embeddings_adapted.cli.app import main\n"
        "sys.argv = ['llama-index-adapted', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'llama_index', 'yaml'} & set(sys.modules)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert Ran("--version").out == version("llama-index-embeddings-adapted") + "\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["finetune"], 2, "Missing argument"),
        (["finetune", "nothing-here"], 2, "nothing-here: no such file or folder. Expected a"),
        (["finetune", "docs"], 2, "docs holds documents: pass --llm to have questions written"),
        (["finetune", "docs", "--llm", "gpt"], 2, 'llm: expected "smollm2", "gguf:<file>"'),
        (["finetune", "pairs.json", "--llm", "smollm2"], 2, "pairs.json is a dataset: it has"),
        (["finetune", "pairs.json", "--base", "bge"], 2, 'embedding model: expected "minilm"'),
        (["finetune", "pairs.json", "--base", "local:./none"], 2, "no such folder: ./none"),
        (["finetune", "pairs.json", "--epochs", "0"], 2, "Invalid value for '--epochs'"),
        (["finetune", "pairs.json", "--base", "counting", "--method", "magic"], 2, "magic"),
        (["finetune", "pairs.json", "--base", "bge", "--out", "docs"], 2, "docs: holds other"),
        (["finetune", "pairs.json", "--base", "bge", "--report", "docs"], 2, "the path of a file"),
        (["finetune", "damaged.json", "--base", "bge"], 1, "damaged.json"),
        (["generate", "rows.jsonl", "--structure"], 2, "rows.jsonl is a dataset: it has questions"),
        (["generate", "docs", "--structure", "--estimate"], 2, "cost nothing"),
        (["ship", "docs"], 1, "there is no docs.candidate beside it"),
        (["generate", "pairs.json", "--llm", "smollm2"], 2, "it has questions. Point at documents"),
        (["evaluate", "docs", "counting"], 2, "docs: expected a dataset, that is a file of rows"),
        (["compare", "pairs.json", "counting", "counting"], 2, "two are named 'counting'"),
        (["split", "pairs.json", "--share", "1"], 2, "above 0 and below 1"),
        (["upgrade", "counting", "counting", "docs", "--out", "docs"], 2, "docs: holds other"),
        (["inspect", "nothing-here"], 2, "nothing-here: no such file or folder."),
        (["inspect", "docs"], 1, "docs/config.json: no such file. Expected a folder that this lib"),
        (["ship", "nothing-here"], 2, "nothing-here: no such file or folder."),
        (["export", "nothing-here", "--out", "a"], 2, "nothing-here: no such file or folder."),
        (["evaluate", "pairs.json", "adapted:nothing-here"], 2, "nothing-here: no such file"),
        (["finetune", "pairs.json", "--out", "pairs.json/a"], 2, "pairs.json/a: cannot be written"),
        (["finetune", "pairs.json", "--out", "."], 2, ".: expected a path that ends in a name"),
        (["split", "pairs.json", "--train", "a", "--test", "./a"], 2, "two files, both are a"),
        (["compare", "pairs.json", "words"], 2, 'take "bm25" and "<model>+bm25", too'),
        (["compare", "pairs.json", "base=counting+bm25", "base=counting"], 2, "two are named"),
        (["compare", "pairs.json", "adapted:nothing-here", "minlm"], 2, 'Did you mean "minilm"?'),
        (["evaluate", "pairs.json", "counting", "--cache-dir", "odd.csv/b"], 1, "dir none to"),
        (["finetune", "empty.json"], 1, "empty.json: expected rows, it is empty."),
        (["finetune", "empty.csv"], 1, "and rows below it, got"),
        (["finetune", "odd.csv"], 1, "odd.csv: no column is known to hold queries. Rename it to"),
        (["show", "odd.csv", "--column", "query"], 2, "ROLE=NAME, as query=question, got 'query'."),
        (["show", "odd.csv", "--column", "query=frag"], 1, 'query: no column "frag". Columns: "fr'),
        (["show", "odd.csv", "--column", "qury=frage"], 2, 'qury=frage\'. Did you mean "query"?'),
        (["show", "odd.csv", "--column", "min_clicks=1"], 2, "Roles: query, document, negative"),
        (["generate", "docs", "--structure", "--out", "pairs"], 2, "Write to pairs.json"),
        (["split", "pairs.json", "--train", "tr"], 2, "tr: expected a name that ends in .json"),
        (["compare", "pairs.json", "bm25", "--report", "pairs.json"], 2, "the command reads it"),
        (["finetune", "pairs.json", "--report", "./pairs.json"], 2, "the command reads it"),
        ([*HEADINGS, "notes.md", "--report", "notes.md"], 2, "notes.md: the command reads it"),
        ([*HEADINGS, "docs", "--report", "docs/dumps.md"], 2, "dumps.md: is one of the documents"),
        ([*DOUBLE, "--method", "magic"], 2, "method: expected one of auto"),
        ([*DOUBLE, "--learning-rate", "-1"], 2, "learning_rate: expected a number > 0"),
        ([*DOUBLE, "--ship", "never"], 2, "ship: expected one of proven, always"),
        ([*DOUBLE, "--report", "docs"], 2, "docs: expected the path of a file"),
        ([*DOUBLE, "--val", "none.json"], 2, "none.json: no such file"),
    ],
)
@pytest.mark.usefixtures("pairs", "documents", "double")
def test_an_error_is_one_clear_line_and_its_kind_is_the_exit_code(arguments, code, said, counting):
    Path("damaged.json").write_text("{")
    Path("empty.json").write_text("[]")
    Path("empty.csv").write_text("query,document\n")
    Path("odd.csv").write_text("frage,abschnitt\nwas,das\n")
    Path("rows.jsonl").write_text('{"query": "how?", "pos": ["so"]}\n')
    Path("notes.md").write_text("# A question?\n\nAn answer.")
    sent = len(DoubleLLM().sent)
    ran = done(*arguments, code=code)
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert (counting.asked, len(DoubleLLM().sent)) == ([], sent)


def test_an_error_is_json_too_and_debug_shows_where():
    said = "nothing-here: no such file or folder."
    ran = Ran("inspect", "nothing-here", "--json", "--debug")
    assert ran.data["error"] == {"type": "OptionError", "message": said}
    assert "Traceback" in ran.err


def test_exit_codes_tell_proven_from_refused_and_open():
    done, against, unproven = 0, 3, 4
    codes = {kind.value: options.CommandResult("", {}, Verdict(kind, "")).code for kind in Decision}
    assert codes == {
        **dict.fromkeys(("ship", "better", "keep", "watch"), done),
        **dict.fromkeys(("keep_base", "saturated", "do_not_ship", "worse", "retrain"), against),
        **dict.fromkeys(("inconclusive", "promising"), unproven),
    }
    assert options.CommandResult("").code == done


def test_an_interrupt_and_an_unknown_error_end_with_one_line(capsys):
    interrupted = KeyboardInterrupt(), 130, "Interrupted. What is finished is kept"
    refused = ConnectionError("refused\nhere"), 1, "Error: ConnectionError: refused here (--debug"
    for error, code, said in (interrupted, refused):

        class Failing(options.Job):
            def run(self, error: BaseException = error) -> options.CommandResult:
                print("progress")  # goes to standard error with all that is not the result
                raise error

        with pytest.raises(typer.Exit) as end:
            options.run_command(Failing())
        shown = capsys.readouterr()
        assert end.value.exit_code == code
        assert said in shown.err
        assert "progress" in shown.err
        assert shown.out == ""


def test_what_a_stream_cannot_show_ends_no_command(monkeypatch):
    class Arrow(options.Job):
        def run(self) -> options.CommandResult:
            return options.CommandResult(".5 → .6")

    stream = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(typer.Exit, match="0"):
        options.run_command(Arrow())
    stream.flush()
    assert stream.buffer.getvalue() == b".5 ? .6\n"


def test_from_documents_to_a_saved_adapter_in_one_command(minilm, documents, tmp_path):
    """A process of its own, real MiniLM; a scripted server in place of a paid LLM."""
    base = ("--base", "minilm", "--quiet", "--json", "--method", "linear", "--epochs", "2")
    with ScriptedServer() as server:
        llm = f"openai-like:any@{server.api_base}"
        ran = Ran("finetune", documents, *base, "--llm", llm, "--out", "made", process=True)
    assert ran.code in (3, 4), ran.err + ran.out  # synthetic questions never prove anything
    assert "%|" not in ran.err  # quiet: no bar, not of the libraries below either
    assert ran.data["exit_code"] == ran.code
    assert ran.data["data"]["synthetic"] is True
    assert ran.data["data"]["questions"]["kept"] == len(read_pairs(Path("made.pairs.json"), ""))
    assert (tmp_path / "made" / "adapter.safetensors").exists()
    page = (tmp_path / "made.report.html").read_text("utf-8")
    assert "Questions that were written and filtered" in page
    assert "adapted: questions written" in page
    assert "adapted: questions filtered" in page
    assert ran.data["data"]["questions"]["base_texts"] > len(TOPICS)  # passages, and questions
    again = Ran("finetune", "made.pairs.json", *base, "--report", "none", "--exit-zero")
    assert (again.code, again.data["exit_code"], again.data["report_path"]) == (0, 0, None)
    assert again.data["data"]["synthetic"] is True  # the note beside the file says so
    assert again.data["base_texts"] <= 6  # probes: every text is known from the first run


def test_generate_writes_pairs_and_says_what_was_kept(documents):
    with ScriptedServer() as server:
        llm = ("--llm", f"openai-like:any@{server.api_base}", "--quiet")
        ran = done("generate", documents, *llm, "--out", "made.json", "--max-chunks", 4)
    assert "| **kept** |" in ran.out
    found = read_pairs(Path("made.json"), "train")
    assert found.synthetic
    assert found.report["passages"] == 4
    assert set(found.corpus) == {f"{'more/' * (n % 2)}{t}.md#0" for n, t in enumerate(TOPICS)}
    edit(Path("made.json"), queries=dict.fromkeys(found.queries, "other"))
    again = read_pairs(Path("made.json"), "train")
    assert again.report is None  # the note is about another file
    assert again.synthetic  # the file itself says where its queries are from


@pytest.mark.usefixtures("double")
def test_an_estimate_asks_once_and_writes_nothing(documents):
    ran = done("generate", documents, "--llm", "double", "--estimate", "--json", "--quiet")
    assert ran.data["estimate"]["calls"] == len(TOPICS) - 2  # two were asked as probes
    assert not Path("pairs.json").exists()


def test_headings_become_questions_without_an_llm(counting, documents):
    ran = done("generate", documents, "--structure", "--quiet", "--json", "--max-chunks", "1")
    assert "--max-chunks: without effect, as headings are taken as they are" in ran.err
    assert not read_pairs(Path("pairs.json"), "train").synthetic
    assert ran.data["queries"] == len(TOPICS)


def test_a_second_run_reads_the_same_documents(counting, documents, monkeypatch):
    monkeypatch.chdir(documents)
    before = [node.node_id for node in read_documents(Path())]
    (documents.parent / "beside").mkdir()
    (documents.parent / "beside" / "far.md").write_text("linked")
    quiet = ("--structure", "--quiet", "--cache-dir", "kept")
    for _ in range(2):
        ran = done("generate", ".", *quiet, "--out", "made.json", "--json")
        assert (ran.data["documents"], ran.err) == (len(TOPICS), "")
        tuned = ("--base", "counting", "--val", "made.json", "--exit-zero")
        ran = done("finetune", ".", *quiet, *tuned)
        assert "Left out" not in ran.err
        assert len(read_pairs(Path("adapter.pairs.json"), "").corpus) == len(TOPICS)
    earlier = ("finetune", ".", *quiet, *tuned, "--val", "adapter.pairs.json")
    assert "adapter.pairs.json: the command reads it" in done(*earlier, code=2).err
    done(*earlier, "--out", "other")
    for name in ("made.json", "made.report.json"):
        Path(name).unlink()
    shutil.rmtree("kept")
    Path("here").symlink_to("../beside")
    Path("again").symlink_to(".")
    found = [node.node_id for node in read_documents(Path())]
    assert found == sorted([*before, "here/far.md"])


def test_evaluate_scores_one_model_and_show_draws_queries(counting, pairs, small):
    ran = done("evaluate", pairs, "counting", "--k", 1, "--k", 3, "--quiet", "--json")
    assert set(ran.data["metrics"]) >= {"hit_rate@1", "ndcg@3"}
    assert "ndcg@5" not in ran.data["metrics"]
    assert ran.data["queries"] == len(small)
    for model in ("counting", "bm25", "counting+bm25"):
        assert "hit_rate@10" in Ran("evaluate", pairs, model, "--quiet", "--cache-dir", "none").out
    assert not Path("none").exists()
    Path("odd.csv").write_text("frage,abschnitt\nwas,das\n")
    own_names = ("--column", "query=frage", "--column", "document=abschnitt")
    assert "was  [q-" in Ran("show", "odd.csv", *own_names).out
    ran = done("show", pairs, "--number", 2, "--seed", 1)
    assert "12 queries" in ran.out
    data = Ran("show", pairs, "--number", 2, "--seed", 1, "--json").data
    assert data["statistics"]["documents"] == 6
    assert len(data["queries"]) == 2
    for drawn in data["queries"]:
        assert drawn["query"] == small.queries[drawn["query_id"]]
        assert list(drawn["documents"]) == list(small.relevant_docs[drawn["query_id"]])
        assert drawn["query"] in ran.out


def test_compare_gates_on_the_last_model_with_a_page_or_a_split(counting, pairs, tmp_path, small):
    good, bad = (adapter(tmp_path / n, counting, sign=s) for n, s in (("good", 1.0), ("bad", -1.0)))
    ran = done("compare", pairs, bad, "--quiet", "--json", "--report", "comparison.html", code=3)
    assert list(ran.data["models"]) == ["base", "bad"]
    assert ran.data["verdict"].startswith("worse")
    page = Path("comparison.html").read_text("utf-8")
    assert "Wins and losses: bad against base" in page
    assert "<title>base, bad on pairs.json</title>" in page
    assert Ran("compare", pairs, f"a={bad}", f"b={good}", "--quiet").code == 0
    assert Ran("compare", pairs, good, "--quiet").code == 4
    words = Ran("compare", pairs, "counting", "words=bm25", "both=counting+bm25", "--json")
    assert list(words.data["models"]) == ["counting", "words", "both"], words.err
    for lone, names in ((f"{bad}+bm25", ["base", "bad+bm25"]), ("counting+bm25", ["counting"])):
        ran = Ran("compare", pairs, lone, "--quiet", "--json", "--exit-zero")
        assert list(ran.data["models"])[: len(names)] == names, ran.err
        assert len(ran.data["models"]) == 2
    assert Ran("compare", pairs, bad, "--quiet", "--exit-zero", "--report", "none").code == 0
    small.to_beir(tmp_path / "beir", split="test")
    assert "| counting |" in done("compare", "beir", "counting", "--quiet").out
    assert "BEIR folder" in Ran("compare", "beir", "counting", "--column", "query=a", "--quiet").err
    assert Ran("compare", "beir", "counting", "--split", "dev", "--quiet").code == 1


def test_split_cuts_by_document_and_overwrites_nothing(pairs):
    ran = done("split", pairs, "--share", 0.4, "--json")
    train, test = (read_pairs(Path(f"{part}.json"), "train") for part in ("train", "test"))
    assert ran.data["test"] == {"path": "test.json", "queries": len(test)}
    assert len(train) + len(test) == 12
    asked = [{d for docs in part.relevant_docs.values() for d in docs} for part in (train, test)]
    assert not asked[0] & asked[1]
    assert "train.json is there already" in done("split", pairs, code=2).err


def test_upgrade_maps_a_new_model_into_the_old_index(counting, documents, tmp_path):
    names = [f"document {n} about {topic}" for n in range(3) for topic in TOPICS]
    corpus = {f"d{n}": text for n, text in enumerate(names)}
    dataset = package.EmbeddingQAFinetuneDataset({"q": TOPICS[0]}, corpus, {"q": ["d0"]})
    dataset.save_json("many.json")
    ran = done("upgrade", "counting", "counting", "many.json", "--judged", "many.json", "--json")
    assert ran.data["agreement"] == 1.0  # the same model, so the map is the identity
    assert ran.data["scores"]["kept"]["ndcg@10"] == 1.0
    assert AdaptedEmbedding.from_pretrained(tmp_path / "upgrade", counting).adapter is not None
    tuned = ("finetune", "many.json", "--base", "adapted:upgrade")
    for job in (("upgrade", "upgrade", "counting", "many.json"), tuned):
        again = done(*job, "--out", "upgrade", code=2)
        assert "--out: upgrade holds one of the models" in again.err
    few = done("upgrade", "counting", "counting", documents, "--out", "other", code=1)
    assert "at least 20 distinct" in few.err


def test_to_look_and_to_compare_a_folder_may_be_read_only(counting, pairs, tmp_path):
    for command in (["show", pairs], ["compare", pairs, "a=counting", "b=counting", "--exit-zero"]):
        done(*command)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "pairs.json"]


def test_inspect_says_what_a_folder_says_and_whether_queries_have_moved(counting, pairs, tmp_path):
    done("finetune", pairs, "--base", "counting", "--out", "adapter", "--quiet", "--exit-zero")
    asked = len(counting.asked)
    found = Ran("inspect", "adapter", "--json").data
    assert len(counting.asked) == asked
    assert found["adapter"]["roles"] == ["query"]
    assert found["base_model"]["dim"] == counting.dim
    assert 0 <= found["age_days"] < 1
    files = ["README.md", "adapter.safetensors", "config.json", "queries.safetensors"]
    assert sorted(found["bytes"]) == files
    assert found["data"]["queries"] == 12
    assert found["moved_documents"] is None
    shown = Ran("inspect", "adapter").out
    assert f"verdict: {found['verdict']}" in shown
    assert "trained on: 12 queries, 6 documents" in shown
    assert Ran("inspect", "adapter", "--verify").out.endswith("it gave in training\n")
    live = tmp_path / "live.txt"
    live.write_text("\n\n".join(f"zebra {n} quartz" for n in range(40)), encoding="utf-8")
    ran = done("inspect", "adapter", "--queries", live, "--json", "--quiet", code=3)
    assert "%|" not in ran.err
    assert ran.data["live_queries"]["queries"] == 40
    assert ran.data["live_queries"]["far_share"] > 0.5
    shown = done("inspect", "adapter", "--queries", live, "--exit-zero").out
    assert "\nlive queries: retrain" in shown
    ran = done("inspect", "adapter", "--queries", "missing.txt", code=2)
    assert "missing.txt: no such file or folder. Expected rows, or one query per line" in ran.err


def test_live_queries_are_lines_or_rows(tmp_path):
    asked = ["how do I, of all people, do it?", "and how not?"]
    table, alone, rows = (tmp_path / name for name in ("a.csv", "b.CSV", "c.jsonl"))
    table.write_text(f'query,user\n"{asked[0]}",7\n{asked[1]},8\n', encoding="utf-8")
    alone.write_text(f'question\n"{asked[0]}"\n{asked[1]}\n', encoding="utf-8")
    rows.write_text("".join(json.dumps({"query": q}) + "\n" for q in asked), encoding="utf-8")
    queries = dict(zip("ab", asked, strict=True))
    judged = {key: ["d"] for key in queries}
    package.EmbeddingQAFinetuneDataset(queries, {"d": "so"}, judged).save_json(tmp_path / "d.json")
    (tmp_path / "e.txt").write_text("\n\n".join(asked), encoding="utf-8")
    for name in ("a.csv", "b.CSV", "c.jsonl", "d.json", "e.txt"):
        assert inputs.read_queries(tmp_path / name) == asked
    alone.write_text("\n".join(f'"{q}"' for q in asked), encoding="utf-8")  # no name above it
    lines = (json.dumps({"_id": key, "text": q}) for key, q in queries.items())
    (tmp_path / "queries.jsonl").write_text("\n".join(lines), encoding="utf-8")  # of BEIR
    for name in ("b.CSV", "queries.jsonl"):
        assert inputs.read_queries(tmp_path / name) == asked
    table.write_text("user,when\n7,now\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="no column is known to hold queries"):
        inputs.read_queries(table)
    assert inputs.read_queries(table, ["query=when"]) == ["now"]


def test_what_is_shown_is_what_the_file_holds_and_a_candidate_can_be_shipped(counting, tmp_path):
    part = {"base": {"ndcg@10": 0.5}, "adapted": {"ndcg@10": 0.6}, "queries": 9,
            "difference": {"low": -0.1, "high": 0.3}}  # fmt: skip
    report = {"verdict": "do not ship: NDCG@10 drops on new documents", "overall": part}
    served = "served", "the base model, unchanged", np.eye(16)
    candidate = "served.candidate", "the candidate that was judged", -np.eye(16)
    for name, holds, weight in (served, candidate):
        training = {"report": {**report, "holds": holds, "candidate": "unchanged" in holds}}
        model = AdaptedEmbedding(counting, LinearAdapter(weight), training=training)
        model.save_pretrained(tmp_path / name)
    card = tmp_path / "served" / "README.md"
    shown = Ran("inspect", "served").out
    assert "holds: the base model, unchanged; the candidate is in served.candidate" in shown
    assert "\ncandidate, all held-out queries: NDCG@10 0.5000 → 0.6000" in shown
    assert "holds the base model, unchanged" in card.read_text()
    before, shown = len(counting.asked), done("ship", "served").out
    assert "holds: the adapter, shipped 20" in shown
    assert "\nall held-out queries: NDCG@10 0.5000" in shown
    assert "unchanged" not in card.read_text()
    assert 'from_pretrained("served"' in card.read_text()
    assert len(counting.asked) == before
    served = AdaptedEmbedding.from_pretrained(tmp_path / "served", counting)
    assert np.array_equal(served.adapter.weight, -np.eye(16))
    assert ship_candidate("served") == Path("served")  # again: the candidate stays
    for seed, why in ((0, "is of an earlier training"), (1, "trained on another base model")):
        other = AdaptedEmbedding(CountingEmbedding(seed=seed), LinearAdapter(np.eye(16)))
        other.save_pretrained(tmp_path / "served")
        assert inspect_adapter("served")["candidate"] is None
        with pytest.raises(FolderError, match=why):
            ship_candidate("served")


def test_a_folder_is_exported_in_every_format(counting, tmp_path):
    adapter(tmp_path / "saved", counting, sign=-1.0)
    for format in ("onnx", "json", "numpy", "sql"):
        ran = Ran("export", "saved", "--format", format, "--out", f"out/a.{format}", "--json")
        assert ran.data["out"] == f"out/a.{format}"
        assert Path(ran.data["out"]).stat().st_size > 100
    done("export", "saved", "--out", "out/a.npz")  # as its ending says
    for name in ("numpy", "npz"):
        assert np.array_equal(np.load(f"out/a.{name}")["weight"], -np.eye(16))
    ran = done("export", "saved", "--format", "zip", "--out", "a.zip", code=2)
    assert "expected one of onnx, json" in ran.err


def test_moved_documents_are_counted_with_how_far_they_went(counting, tmp_path):
    offsets = np.zeros((3, counting.dim), dtype=np.float32)
    offsets[0, 0], offsets[1, 1] = 0.3, 0.1
    nudges = NudgeAdapter.of(np.arange(3, dtype=np.uint64), offsets)
    AdaptedEmbedding(counting, nudges).save_pretrained(tmp_path / "nudged")
    found = inspect_adapter(tmp_path / "nudged")
    moved = found["moved_documents"]
    assert moved["documents"] == 2
    assert moved["mean_drift"] == pytest.approx(0.2)
    assert moved["largest_drift"] == pytest.approx(0.3)
    assert "moved documents: 2, by 0.200 on average and 0.300 at most" in as_text(found)


def test_passages_have_the_same_ids_in_every_run_and_no_path_in_their_text(documents):
    first, again = (cut(read_documents(documents), None, 20, 0) for _ in range(2))
    assert [node.node_id for node in first] == [node.node_id for node in again]
    assert {"dumps.md#0", "more/wrap.md#1"} <= {node.node_id for node in first}
    assert not any(str(documents) in node.get_content("embed") for node in first)
    assert not any("secret" in node.get_content() for node in first)
    (documents / "picture.bin").write_bytes(bytes(range(256)))
    (documents / "rows.jsonl").write_text('{"query": "how?", "pos": ["so"]}\n')
    with pytest.warns(UserWarning, match=r'Left out 2 of 14 files .* hold records: "p.+"rows'):
        assert len(read_documents(documents)) == len(TOPICS)
    assert len(read_documents(documents / "dumps.md")) == 1
    for encoding in ("utf-16", "cp1252"):
        (documents / f"{encoding}.md").write_text("Größe, Höhe und Länge", encoding=encoding)
    with pytest.warns(UserWarning, match="Left out 2 of 16|not all UTF-8, read as cp1252"):
        found = {node.node_id: node.get_content() for node in read_documents(documents)}
    assert found["utf-16.md"] == found["cp1252.md"] == "Größe, Höhe und Länge"


class NeedsMore(BaseReader):
    def load_data(self, *_: Any, **__: Any) -> list[Document]:
        raise ImportError("docx2txt is required: `pip install docx2txt`")


def test_files_that_miss_a_package_are_left_out_with_what_it_is_called(documents, monkeypatch):
    for name in ("a.pdf", "pdf/b.PDF"):
        (documents / name).parent.mkdir(exist_ok=True)
        (documents / name).write_bytes(b"%PDF-\xff\0")
    with pytest.raises(
        DatasetError, match=r"\(1 files\)\. For PDF: pip install llama-index-readers"
    ):
        read_documents(documents / "pdf")
    found = {".docx": NeedsMore, ".pdf": NeedsMore}
    monkeypatch.setattr(SimpleDirectoryReader, "supported_suffix_fn", lambda: found)
    with pytest.warns(
        UserWarning, match=r'Left out 2 of 14 .*"a.pdf", "pdf/b.PDF"\. docx2txt is r'
    ):
        assert len(read_documents(documents)) == len(TOPICS)


def test_a_corpus_without_queries_is_read_as_its_documents(tmp_path):
    lines = [json.dumps({"_id": str(n), "title": "Valve", "text": f"opens at {n}"}) for n in (1, 2)]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(lines))
    for path in (tmp_path, corpus):
        found = {node.node_id: node.get_content("embed") for node in read_documents(path)}
        assert found == {"1": "Valve opens at 1", "2": "Valve opens at 2"}
        pieces = cut(read_documents(path), None, None, None)
        assert [node.node_id for node in pieces] == ["1#0", "2#0"]
    corpus.write_text(lines[0] + '\n{"text": 3}')
    with pytest.warns(UserWarning, match="1 lines of corpus.jsonl without an id and a text"):
        assert len(read_documents(corpus)) == 1
    corpus.write_text('{"text": 3}')
    with pytest.raises(errors.DatasetError, match="expected at least one text with an id"):
        read_documents(corpus)


def test_models_are_named_by_texts(monkeypatch):
    pytest.importorskip("llama_index.llms.ollama", reason="extra 'dev' is missing")
    ollama, _ = inputs.resolve_writer("ollama:llama3.2:1b@http://localhost:9")
    assert (ollama.model, ollama.base_url) == ("llama3.2:1b", "http://localhost:9")
    _, small = inputs.resolve_writer("smollm2")
    assert (small["questions_per_call"], small["max_chunks"]) == (1, 120)
    with pytest.raises(OptionError, match="got 'openai-like:model-without-address'"):
        inputs.resolve_writer("openai-like:model-without-address")
    monkeypatch.setitem(sys.modules, "llama_index.llms.openai_like", None)
    with pytest.raises(MissingExtraError, match="pip install llama-index-llms-openai-like"):
        inputs.resolve_writer("openai-like:m@http://localhost:9/v1")


OPTIONS = {"finetune": ["source", "base", "epochs", "cache_dir"], "compare": ["data", "cache_dir"]}


def test_a_file_holds_a_whole_run(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        '\ufeffcache-dir = "c"\nbase = "b"\n[finetune]\nepochs = 3\n[compare]\ndata = "d"'
    )
    found = options.read_run_config(path, "finetune", OPTIONS)
    assert found == {"cache_dir": "c", "base": "b", "epochs": 3}
    assert options.read_run_config(path, "compare", OPTIONS) == {"cache_dir": "c", "data": "d"}
    with pytest.raises(OptionError, match=r"expected TOML\. Convert it to run\.toml: a line 'epo"):
        options.read_run_config(path.with_suffix(".yaml"), "compare", OPTIONS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[finetune]\nepoch = 3", 'unknown key "epoch". Did you mean "epochs"'),
        ("[compare]\nepochs = 3", 'unknown key "epochs". Known: data, cache_dir'),
        ("bsae = 3", 'unknown key "bsae". Did you mean "base"'),
        ("[fine-tune]\nepochs = 3", 'unknown key "fine_tune". Did you mean "finetune"'),
        ("finetune = 3", "finetune: expected a table of options, got 3"),
        ("a = ", "cannot be read"),
    ],
)
def test_a_key_that_no_command_has_is_refused(text, said, tmp_path):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(OptionError, match=re.escape(said)):
        options.read_run_config(tmp_path / "run.toml", "finetune", OPTIONS)


def test_a_folder_of_the_user_is_where_it_is_on_the_command_line_and_in_a_file(
    documents, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("run.toml").write_text('out = "~/of_file.json"\nsource = "~/docs"\nstructure = true')
    for given in ((), ("--out=~/of_line.json",)):
        done("generate", "--config=~/run.toml", *given, "--cache-dir=~/kept")
    assert (tmp_path / "of_file.json").is_file()
    assert (tmp_path / "of_line.json").is_file()
    assert not Path("~").exists()


def test_the_command_line_wins_over_the_file(counting, pairs):
    Path("run.toml").write_text(
        f'quiet = true\nseed = 5\n[finetune]\nsource = "{pairs}"\nbase = "counting"\nepochs = 2\n'
        'out = "from_file"\nreport = "none"\n'
    )
    ran = Ran("finetune", "--config", "run.toml", "--out", "from_line", "--json")
    assert ran.code in (0, 3, 4), ran.err
    assert ran.data["out"] == "from_line"
    assert (ran.data["settings"]["epochs"], ran.data["settings"]["seed"]) == (2, 5)
    assert not Path("from_file").exists()
    assert "missing.toml: no such file" in done("finetune", "--config", "missing.toml", code=2).err


GUIDE = (ROOT / "docs" / "command-line.md").read_text("utf-8")


def test_the_commands_of_all_pages_exist_with_their_options():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    called = re.compile(r"(?:^|`)(llama-index-adapted \w[^`\n]*)", re.MULTILINE)
    lines = [line for page in pages for line in called.findall(page.read_text("utf-8"))]
    assert {line.split()[1] for line in lines} == set(COMMANDS)
    for line in lines:
        _, command, *rest = shlex.split(line, comments=True)
        shown = Ran(command, "--help").out
        assert all(f"{word} " in shown for word in rest if word.startswith("--")), line


def test_the_configuration_file_of_the_guide_is_one(counting, pairs, tmp_path):
    text = GUIDE.partition("```toml\n")[2].partition("```")[0]
    Path("run.toml").write_text(text)
    adapter(tmp_path / "adapter", counting)
    pairs.rename("test.json")
    ran = done("compare", "--config", "run.toml", "--quiet", code=4)
    assert "| adapter |" in ran.out
    assert Path("cache").is_dir()
