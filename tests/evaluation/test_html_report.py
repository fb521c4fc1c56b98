import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset, compare_retrieval
from llama_index_embeddings_adapted.core.encoded import NO_DOCUMENT, Qrels
from llama_index_embeddings_adapted.data.dataset import data_statistics
from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.evaluation import page as pages
from llama_index_embeddings_adapted.evaluation.page import MOST_ROWS, Texts, template, wins_losses
from llama_index_embeddings_adapted.evaluation.reports import FinetuneReport
from llama_index_embeddings_adapted.evaluation.retrieval import RetrievalScores, joined
from llama_index_embeddings_adapted.evaluation.verdict import mean_interval
from llama_index_embeddings_adapted.training.auto.tune import tune
from llama_index_embeddings_adapted.training.options import TrainingOptions
from tests.conftest import CountingEmbedding, trained_engine
from tests.evaluation.test_report import part, report
from tests.support.synthetic import rotated_corpus

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "</li></ul><style>body{display:none}</style>",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt;",
    "<a href='javascript:alert(4)'>\u202ehere</a>",
)


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        self.inside.setdefault(self._open[-1] if self._open else "", []).append(data)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def reversing(base: CountingEmbedding) -> package.AdaptedEmbedding:
    """A model whose rankings are upside down: it loses every query it can."""
    return package.AdaptedEmbedding(base, package.LinearAdapter(-np.eye(base.dim)))


def scores(*rows: list[int], relevant: list[list[int]] | None = None) -> RetrievalScores:
    """Rankings by hand; the relevant document of each query is 0 unless told."""
    relevance, documents = Qrels.from_lists(relevant or [[0]] * len(rows)), 1 + max(map(max, rows))
    ids = (tuple(f"{k}{n}" for n in range(s)) for k, s in (("q", len(rows)), ("d", documents)))
    return RetrievalScores(np.array(rows), relevance, *ids)


def test_hostile_texts_come_out_as_text(base, tmp_path):
    queries = {f"q{n}": f"{text} topic{n}" for n, text in enumerate(HOSTILE)}
    corpus = {f"<d{n}>": f"topic{n} {text}" for n, text in enumerate(HOSTILE)}
    data = EmbeddingQAFinetuneDataset(queries, corpus, {q: [f"<d{q[1:]}>"] for q in queries})
    models = {"<b>base</b>": base, "a&b": reversing(base)}
    found = compare_retrieval(models, data, cache_dir=False)
    text = found.to_html(tmp_path / "page.html", title="<script>title</script>").read_text("utf-8")
    page = Reader(text)
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not page.all("img")
    assert all("href" not in a or a["href"] == "#main" for _, a in page.tags)
    assert not [name for _, a in page.tags for name in a if name.startswith("on")]
    shown = " ".join(piece for pieces in page.inside.values() for piece in pieces)
    for hostile_text in HOSTILE:
        assert hostile_text in shown
    assert "<script>title</script>" in "".join(page.inside["h1"])


def test_the_page_needs_nothing_else_and_says_the_verdict_first(base, small, tmp_path):
    found = compare_retrieval({"base": base, "upside": reversing(base)}, small, cache_dir=False)
    text = found.to_html(tmp_path / "page.html").read_text("utf-8")
    page = Reader(text)
    policy = next(a["content"] for a in page.all("meta") if "content-security" in str(a).lower())
    assert policy.startswith("default-src 'none'")
    for tag in ("script", "style"):
        content = "".join(page.inside[tag]).encode()
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    loaded = [a for _, a in page.tags for name in ("src", "href", "style") if name in a]
    assert loaded == [{"class": "skip", "href": "#main"}]
    assert text.index("Verdict</h2>") < text.index("first five today") < text.index("Scores</h2>")
    assert '<section class="verdict bad"' in text
    assert "<strong>Worse:</strong> upside against base" in text
    for heading in ("NDCG@10, which decides", "Wins and losses", "Data", "What it cost"):
        assert heading in text
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")][:2] == ["h1", "h2"]
    drawings = [a for a in page.all("svg") if a.get("role") == "img"]
    ids = [a.get("id") for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert len(drawings) == 3
    for drawing in drawings:  # each is said in words
        assert all(name in ids for name in str(drawing["aria-labelledby"]).split())
    assert page.all("html") == [{"lang": "en"}]
    alone = compare_retrieval({"base": base}, small, cache_dir=False).to_html(tmp_path / "p.html")
    assert "nothing to compare it with" in alone.read_text("utf-8")


@pytest.mark.parametrize("method", ["linear", "ridge"])
def test_every_method_writes_a_page_with_history_passages_and_cost(method, base, small, tmp_path):
    options = {"epochs": 3} if method == "linear" else {}
    options |= {"method": method, "report_path": tmp_path / "report.html"}
    engine = trained_engine(small, base, tmp_path, **options)
    found, text = engine.report, (tmp_path / "report.html").read_text("utf-8")
    assert found.verdict.partition(":")[0].partition(";")[0].capitalize() in text
    assert "Training of adapted" in text
    assert "<title>Adapter adapter for CountingEmbedding</title>" in text
    assert 'class="level"' in text  # the line to compare with
    said = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert re.match(r"Of 100 queries, \d+ find a right document .* with this", said["In short"])
    assert re.match(r"\d+ µs after the base model&#39;s call", said["Cost per query"])
    assert re.fullmatch(r"\d+ queries: \d+ of unknown origin\.", said["Judged by"])
    assert {"Saved", "With words", "Next step", "What could go wrong"} <= set(said)
    assert ("To undo" in said) == (found.saved == "candidate")
    assert ("Training loss" in text) == (method == "linear")
    assert ("candidates competed" in text) == (method == "ridge")
    judged = len(found.held_out["base"].query_ids) if found.held_out else 0
    twice = f"{found.overall.queries:,} queries, judged {judged:,} times, "
    assert (twice in text) == (judged > found.overall.queries) == (method == "ridge")
    assert f"<td>{found.base_calls:,}</td>" in text
    assert found.data["queries"] == len(small)
    assert set(found.held_out.texts.queries) <= set(small.queries.values())
    assert set(found.held_out.texts.documents) == set(small.corpus.values())
    saved = json.loads((tmp_path / "adapter" / "config.json").read_text())
    assert saved["training"]["report"]["data"] == json.loads(json.dumps(found.data))
    assert "what is a city bus" not in json.dumps(saved)


def test_held_out_and_cross_fitted_rankings_give_the_scores_of_the_report(base, small, tmp_path):
    asked, corpus = {"v": "bus in the city"}, {"x": "a city bus", "y": "nothing"}
    judges = EmbeddingQAFinetuneDataset(asked, corpus, {"v": ["x"]})
    options = {"epochs": 3, "start": "identity", "val_dataset": judges}
    found = trained_engine(small, base, tmp_path, **options).report
    for name, means in (("base", found.base), ("adapted", found.adapted)):
        for metric in ("ndcg@10", "mrr@10", "hit_rate@1"):
            assert found.held_out[name][metric] == pytest.approx(means[metric])
    assert "bus in the city" in found.held_out.texts.queries
    assert len(found.held_out.texts.documents) == len(found.held_out["base"].document_ids)
    assert found.to_html(tmp_path / "page.html").exists()
    data, _ = rotated_corpus(documents=60)
    tuned = tune(data, TrainingOptions(method="ridge"), show_progress=False)
    weights = [tuned.parts.known.queries, tuned.parts.new.queries]
    for name in ("base", "adapted"):
        parts = [getattr(p, name)["ndcg@10"] for p in (tuned.parts.known, tuned.parts.new)]
        expected = np.average(parts, weights=weights)
        assert tuned.judged[name]["ndcg@10"] == pytest.approx(expected)
    assert tuned.judged["adapted"]["ndcg@10"] > tuned.judged["base"]["ndcg@10"]


def test_reports_without_rankings_make_a_page_whose_colour_follows_the_verdict(tmp_path):
    text = report(part(0.3, 0.1)).to_html(tmp_path / "page.html").read_text("utf-8")
    assert "<strong>Ship:</strong>" in text
    assert "Scores</h2>" not in text
    assert "Epoch 1 of 1 was kept" in text
    nothing_new: dict[str, Any] = {"settings": {}, "choice": None, "history": ()}
    assert report(part(0.0), best_epoch=0, **nothing_new).to_html(tmp_path / "old.html").exists()

    def tone(found: FinetuneReport) -> str:
        text = found.to_html(tmp_path / "page.html").read_text("utf-8")
        return text.partition('<section class="verdict ')[2].partition('"')[0]

    assert tone(report(part(0.3, 0.1))) == "good"
    assert tone(report(part(0.3, -0.29))) == "even"
    assert tone(report(part(0.3, 0.1), new=part(-0.3, -0.1))) == "bad"


def test_wins_and_losses_are_counted_ordered_capped_and_shown_with_passages():
    before = scores([1, 2, 0], [0, 1, 2], [0, 1, 2], [1, 0, 2])
    after = scores([0, 1, 2], [1, 2, 0], [0, 1, 2], [0, 1, 2])
    texts = Texts(("one", "two", "three", "four"), ("right", "wrong", "other " * 200))
    found = wins_losses(("base", before), ("new", after), texts, metric="ndcg@10")
    assert found.summary.startswith("2 of 4 queries win, 1 lose and 1 stay as they are")
    kinds = [("win", "one"), ("win", "four"), ("loss", "two")]
    assert [(row.kind, row.query) for row in found.rows] == kinds
    first = found.rows[0]
    assert first.change == "+0.500"
    assert first.ranks == "first relevant passage: place 3 → place 1"
    assert [p.text[:5] for p in first.before] == ["wrong", "other", "right"]
    assert [p.relevant for p in first.after] == [True, False, False]
    assert len(first.before[1].text) == 400
    before, after = ("base", scores([1, 2])), ("new", scores([0, 1]))
    assert "beyond 2" in wins_losses(before, after, texts, metric="hit_rate@1").rows[0].ranks
    many = MOST_ROWS + 20
    before, after = scores(*[[1, 0]] * many), scores(*[[0, 1]] * many)
    texts = Texts(("text",) * many, ("a", "b"))
    found = wins_losses(("base", before), ("new", after), texts, metric="ndcg@2")
    assert len(found.rows) == MOST_ROWS
    assert f"Shown are the {MOST_ROWS} largest of each" in found.summary
    with pytest.raises(OptionError, match="base and new were scored on different queries"):
        wins_losses(("base", before), ("new", scores([0, 1])), None, metric="mrr@2")


def test_joined_scores_keep_corpora_apart_unless_they_are_one():
    one, other = scores([0, 1], [1, 0]), scores([1, NO_DOCUMENT], relevant=[[1]])
    found = joined([one, other])
    best = [[0, 1], [1, 0], [3, NO_DOCUMENT]]
    assert found.ranked.tolist() == [[*row, NO_DOCUMENT, NO_DOCUMENT] for row in best]
    assert found.retrieved("q1", 3) == ["d1", "d0"]
    assert found.values("hit_rate@1").tolist() == [1.0, 0.0, 1.0]
    assert found.values("precision@4").tolist() == [0.25, 0.25, 0.25]
    assert len(found.document_ids) == 4
    same = RetrievalScores(one.ranked, one.relevance, one.query_ids, one.document_ids)
    assert joined([one, same]).document_ids == one.document_ids


def test_an_interval_holds_the_mean_and_one_query_tells_nothing():
    mean, low, high = mean_interval(np.array([0.0, 1.0] * 50))
    assert mean == 0.5
    assert 0.39 < low < 0.45
    assert 0.55 < high < 0.61
    assert mean_interval(np.ones(9)) == (1.0, 1.0, 1.0)
    assert mean_interval(np.array([1.0])) == (1.0, 0.0, 1.0)


def test_dots_stand_on_one_axis_in_words_and_curves_leave_out_what_is_not_known():
    rows = {"a": [(0.5, 0.4, 0.6), None], "<b>": [(-0.25, -0.3, 0.1), (0.1, 0.0, 0.2)]}
    dots = pages.Dots("Change", rows, "+.2f")
    drawn = Reader(template("charts").module.figure(dots))
    places = [float(str(dot["cx"])) for dot in drawn.all("circle")]
    assert len(places) == 3
    assert (places[0] - places[2]) / (places[2] - places[1]) == pytest.approx(0.4 / 0.35, abs=0.01)
    assert {"a", "<b>"} <= set(drawn.inside["text"])
    assert "<b> -0.25 (-0.300 to 0.100) and +0.10" in "".join(drawn.inside["desc"])
    gains = {"all": [0.0, float("nan"), 0.2]}
    marked = {"level": (0.0, "base model"), "mark": (2, "kept")}
    curves = pages.Curves("Gain", [0, 1, 2], gains, **marked)
    drawn = Reader(template("charts").module.figure(curves))
    [line] = drawn.all("polyline")
    points = [tuple(map(float, point.split(","))) for point in str(line["points"]).split()]
    assert len(points) == 2
    assert points[0][1] > points[1][1]  # higher values stand higher
    assert {"base model", "kept"} <= set(drawn.inside["text"])


def test_candidates_of_a_choice_are_drawn_best_first_with_the_chosen_one():
    gains = {f"c{n}": (n / 100, None) for n in range(30)}
    choice = {"gains": gains, "recipe": "c3", "expect": 0.5, "margins": {"c29": (0.02, None)}}
    found = pages._candidates(choice)
    assert list(found.rows) == [*(f"c{n}" for n in range(29, 17, -1)), "chosen: c3"]
    assert found.rows["c29"] == [(0.29, pytest.approx(0.27), pytest.approx(0.31)), None]
    assert found.rows["chosen: c3"][0] == (0.03, 0.03, 0.03)
    assert "best 13 of 30" in found.title


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.47, 0.93, [0.4, 0.6, 0.8, 1.0]),
        (-0.01, 0.26, [-0.1, 0.0, 0.1, 0.2, 0.3]),
        (0.0, 0.0, [0.0, 0.0005]),
    ],
)
def test_axes_are_marked_at_round_numbers_around_all_values(low, high, ticks):
    found = [float(tick) for tick in pages._ticks([low, high])]
    assert found == pytest.approx(ticks)
    assert found[0] <= low <= high <= found[-1]


def test_data_statistics_count_and_hold_no_text(small):
    shown = {"kept": 2, "shown": [{"query": "of a user", "passage": "whale"}], "examples": {}}
    found = data_statistics(small.reported(shown, synthetic=True))
    assert found["questions"] == {"kept": 2, "failed": 0}
    assert (found["queries"], found["documents"], found["documents_asked_for"]) == (12, 6, 6)
    assert found["query_words"] == [5.0, 5.5, 6.0]
    assert found["synthetic"] is True
    assert "whale" not in json.dumps(found)
