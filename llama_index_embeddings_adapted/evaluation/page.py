"""From scores to a page that a person reads: verdict first, then what it rests on.

The frame of a report: one HTML file that needs nothing else, and runs only our own script.

Jinja2 comes with LlamaIndex (through ``banks``) and escapes every value; a policy inside the page
forbids any request, and any script and style whose hash is not ours.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from ..core import files
from ..core.files import library_version
from . import metrics
from .page_parts import COLOURS, Curves, Dots, Table, WinsLosses, training_section, wins_losses
from .retrieval import RetrievalScores, Texts
from .verdict import Decision, Verdict, mean_interval, paired_difference

_PACKAGE = "llama_index_embeddings_adapted"
_TEMPLATES = "evaluation/templates"


def draw(chart: Curves | Dots) -> str:
    """Return one chart, as the page has it."""
    return str(_template("charts").module.figure(chart))  # type: ignore[attr-defined]


@functools.cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader(_PACKAGE, _TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.globals["colours"] = COLOURS
    return environment.get_template(f"{name}.html.j2")


@functools.cache
def _part(name: str) -> str:
    return (resources.files(_PACKAGE) / _TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the hash by which a content policy admits an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


METRIC = "ndcg@10"
_SHOWN = {"hit_rate@5": "Hit rate@5", "mrr@10": "MRR@10", "ndcg@10": "NDCG@10, which decides"}
_MEANING = (
    "NDCG@10 decides: 1 where the right documents come first, less the lower they stand, 0 where "
    "none is among the first ten. Hit rate@5 is the share of queries with a right document among "
    "the first five, MRR@10 the mean of 1 / place of the first right one."
)
_TONES = {
    Decision.SHIP: "good",
    Decision.BETTER: "good",
    Decision.DO_NOT_SHIP: "bad",
    Decision.WORSE: "bad",
}
_FACTS = (
    ("queries", "queries"),
    ("documents", "documents"),
    ("judgements", "relevance judgements"),
    ("documents_asked_for", "documents relevant to a query"),
    ("query_words", "words of a query (least / median / most)"),
    ("document_words", "words of a document (least / median / most)"),
)


@dataclass(frozen=True, eq=False)
class PageData:
    """Everything a page is made of; what is not known is left out of the page.

    Without a verdict it is taken from the scores, whose first model is what others are compared
    with. ``trained`` are ``FinetuneReport.to_dict()`` by model; ``note`` says how the scores came
    about; ``queries`` how many they are, where some are judged more than once.
    """

    title: str
    verdict: Verdict | None = None
    holds: str = ""
    scores: Mapping[str, RetrievalScores] = field(default_factory=dict)
    texts: Texts | None = None
    trained: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    queries: int = 0
    notes: Sequence[str] = ()


def write_page(path: str | Path, page_data: PageData) -> Path:
    """Write the page, atomically; return its path."""
    target = Path(path)
    with files.atomic_file(target) as temporary:
        temporary.write_text(page(page_data), encoding="utf-8")
    return target


def page(page_data: PageData) -> str:
    """Return the page: HTML that needs no other file and no network."""
    scores, models = page_data.scores, list(page_data.scores)
    verdict, *others = [page_data.verdict] if page_data.verdict else _differences(scores)
    counted = "judgements" if _judged_twice(page_data) else "queries"
    settings: Any = {"texts": page_data.texts, "metric": METRIC, "counted": counted}
    named = list(scores.items())
    pairs = [wins_losses(named[0], other, **settings) for other in named[1:]]
    style, script = (_part(f"report.{suffix}") for suffix in ("css", "js"))
    return _template("report").render(
        {
            "style": Markup(style),
            "script": Markup(script),
            "style_hash": _hash(style),
            "script_hash": _hash(script),
            "title": page_data.title,
            "subtitle": _subtitle(page_data),
            "tone": _TONES.get(verdict.decision, "even"),
            "word": verdict.decision.words.capitalize(),
            "reason": verdict.reason,
            "others": others,
            "summary": _summary(page_data, verdict, pairs),
            "models": models,
            "scores_note": page_data.note or "Means over all judged queries, with 95 % intervals.",
            "meaning": _MEANING,
            "charts": [_chart(scores, metric) for metric in _fitting(scores, tuple(_SHOWN))],
            "metrics": _metrics(scores),
            "trainings": [training_section(name, t) for name, t in page_data.trained.items()],
            "pairs": pairs,
            "data": _data(page_data),
            "cost": _cost(page_data),
            "cost_note": "Calls of filtering, training and judging go to the base model; a text "
            "that was embedded before costs none. Its tokens are about a fourth of the characters "
            "sent.",
            "footer": f"llama-index-embeddings-adapted {library_version()}. "
            "This page holds queries and passages of yours; it sends nothing anywhere.",
        }
    )


def _subtitle(page_data: PageData) -> str:
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    first = next(iter(page_data.scores.values()), None)
    if first is None:
        return made
    judged = len(first.query_ids)
    queries = f"{judged:,} queries"
    if _judged_twice(page_data):
        queries = f"{page_data.queries:,} queries, judged {judged:,} times"
    return f"{queries}, {len(first.document_ids):,} documents, {made}"


def _judged_twice(page_data: PageData) -> bool:
    judged = max((len(scores.query_ids) for scores in page_data.scores.values()), default=0)
    return 0 < page_data.queries < judged


# --- the verdict, and what it means to who decides ----------------------------------------------
_SOURCES = {
    "human": "written by people",
    "feedback": "from users' feedback",
    "llm": "written by an LLM",
    "structure": "taken from the documents' headings",
    "unknown": "of unknown origin",
}
_JUDGE = "judge it on queries of your own: llama-index-adapted compare judged.json ADAPTER"
_NEXT = {
    Decision.SHIP: f"Before all users get it, {_JUDGE}",
    Decision.PROMISING: f"Collect 50 queries of users or more and {_JUDGE}",
    Decision.INCONCLUSIVE: "Keep the base model for now. Add judged queries and train again",
    Decision.KEEP_BASE: "Keep the base model. Train again with queries about more documents, or "
    "with method auto",
    Decision.SATURATED: "Keep the base model: there is little left to gain",
    Decision.DO_NOT_SHIP: "Keep the base model. Look at the losses below: wrong labels show there",
    Decision.BETTER: "Use it, and judge it again on new queries now and then",
    Decision.WORSE: "Do not use it. Look at the losses below: wrong labels show there",
}


def _summary(
    page_data: PageData, verdict: Verdict, pairs: Sequence[WinsLosses]
) -> list[tuple[str, str]]:
    """Return label and sentence of each thing that who decides should know."""
    scores = page_data.scores
    base, *others = scores or ["base"]
    if page_data.verdict is not None:  # of a training: views stand beside what was trained
        others = [name for name in others if name in page_data.trained] or others
    new = max(others, key=lambda name: scores[name][METRIC]) if others else "adapted"
    if page_data.verdict and "adapted" in scores:  # a report has views beside it
        new = "adapted"
    report = page_data.trained.get(new, {})
    found = [scores[name] for name in (base, new) if others]
    sources = _sources(page_data, report)
    lost = next((pair for pair in pairs if pair.new == new), None)
    facts = {
        "In short": _of_hundred(
            found, "this" if page_data.verdict else new, open_=verdict.decision.stance == "open"
        ),
        "Saved": page_data.holds,
        "In training": "" if page_data.verdict else report.get("verdict", ""),
        "Judged by": _judges(page_data, sources),
        "Scores": "; ".join(page_data.notes),
        "Cost per query": _cost_per_query(report.get("deployment")),
        "What could go wrong": " ".join(_risks(report, sources, lost)),
        "Next step": _NEXT[verdict.decision] if others or page_data.verdict else "",
        "To undo": _undo(report.get("deployment")) if report.get("saved") != "base" else "",
    }
    return [
        (label, f"{text[0].upper()}{text[1:].rstrip('.')}.")
        for label, text in facts.items()
        if text
    ]


def _of_hundred(found: Sequence[RetrievalScores], new: str, *, open_: bool) -> str:
    if not found:
        return ""
    before, after = (round(100 * scores["hit_rate@5"]) for scores in found)
    chance = "; that may be chance" if open_ and before != after else ""
    today = f"Of 100 queries, {before} find a right document among the first five today"
    return f"{today}, {after if before != after else 'as many'} with {new}{chance}"


def _sources(page_data: PageData, report: Mapping[str, Any]) -> Mapping[str, int]:
    """Return where the judging queries are from, as far as that is known."""
    held_out = (report.get("settings") or {}).get("judged_on") if page_data.verdict else None
    return held_out or page_data.data.get("provenance") or {}


def _judges(page_data: PageData, sources: Mapping[str, int]) -> str:
    judged = page_data.queries or len(next(iter(page_data.scores.values())).query_ids)
    whose = ", ".join(f"{n:,} {_SOURCES.get(source, source)}" for source, n in sources.items())
    return f"{judged:,} queries{': ' * bool(whose)}{whose}"


def _cost_per_query(deployment: Mapping[str, Any] | None) -> str:
    if not deployment:
        return ""
    step = deployment["query_us"]
    calls = "no extra call; documents keep their vectors"
    if deployment["moves_documents"]:
        calls = "no extra call; documents need an index of their own, built once"
    return f"{step:,.0f} µs after the base model's call, {calls}" if step else calls


def _risks(
    report: Mapping[str, Any], sources: Mapping[str, int], lost: WinsLosses | None
) -> Iterator[str]:
    new = report.get("new")
    if new:
        before, after = (new[model][METRIC] for model in ("base", "adapted"))
        yield f"On documents without training queries, NDCG@10 goes {before:.3f} → {after:.3f}."
    elif report:
        yield "Documents without training queries were not judged."
    if lost is not None and lost.lost:
        yield f"{lost.lost:,} queries rank lower than before; they are listed below."
    if sources.get("llm"):
        yield "An LLM wrote queries: users may ask otherwise."
    if report:
        yield "Users' queries change: llama-index-adapted inspect --queries says when."


def _undo(deployment: Mapping[str, Any] | None) -> str:
    if not deployment:
        return ""
    if deployment["moves_documents"]:
        return f"Keep the old index, and go back to it with {deployment['base']}"
    return f"Set {deployment['base']} as the embedding model again; the index is unchanged"


def _differences(scores: Mapping[str, RetrievalScores]) -> list[Verdict]:
    """Say how each model compares with the first, the best one first."""
    (base, *others) = scores.items()
    if not others:
        return [Verdict(Decision.INCONCLUSIVE, "one model: nothing to compare it with")]
    others.sort(key=lambda item: -item[1][METRIC])
    verdicts = []
    for name, found in others:
        difference = replace(
            paired_difference(base[1].values(METRIC), found.values(METRIC), metric=METRIC),
            seen=found.seen,
        )
        means = f"{base[1][METRIC]:.4f} → {found[METRIC]:.4f}, {difference.numbers}"
        reason = (
            f"{name} against {base[0]}, NDCG@10 {means}, p = {difference.p_value:.4f}; "
            f"{difference.verdict.reason}"
        )
        verdicts.append(Verdict(difference.verdict.decision, reason, difference))
    return verdicts


# --- scores -----------------------------------------------------------------------------------
def _fitting(scores: Mapping[str, RetrievalScores], names: Sequence[str]) -> list[str]:
    """Leave out the cut-offs that are deeper than what was retrieved."""
    if not scores:
        return []
    cut = [s.ranked.shape[1] for s in scores.values() if s.ranked.shape[1] < len(s.document_ids)]
    return [name for name in names if all(metrics.parse(name)[1] <= depth for depth in cut)]


def _chart(scores: Mapping[str, RetrievalScores], metric: str) -> Dots:
    values = {model: [mean_interval(found.values(metric))] for model, found in scores.items()}
    return Dots(_SHOWN[metric], values)


def _metrics(scores: Mapping[str, RetrievalScores]) -> Table:
    first = next(iter(scores.values()), None)
    columns = () if first is None else _fitting(scores, first.headline)
    rows = [[name, *(f"{found[c]:.4f}" for c in columns)] for name, found in scores.items()]
    return Table("Means over all judged queries", ["model", *columns], rows)


# --- data and cost ----------------------------------------------------------------------------
def _data(page_data: PageData) -> list[Table]:
    tables = []
    known = {"judged on": page_data.data} if page_data.data else {}
    known |= {
        f"{name}: trained on": r["data"] for name, r in page_data.trained.items() if r.get("data")
    }
    if known:
        rows = [[label, *(_cell(data, key) for data in known.values())] for key, label in _FACTS]
        tables.append(Table("Queries and documents", ["", *known], rows, numbers=False))
    for title, data in known.items():
        if data.get("questions"):
            tables.append(_filters(title, data["questions"]))
    return tables


def _cell(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " / ".join(f"{each:g}" for each in value)
    return f"{value:,}" if isinstance(value, int) else "unknown"


def _filters(title: str, questions: Mapping[str, Any]) -> Table:
    written = questions["written"]
    counts = {"written": written, "kept": questions["kept"]}
    counts |= {f"dropped: {r.replace('_', ' ')}": n for r, n in questions["dropped"].items()}
    caption = f"Questions that were written and filtered ({title})"
    rows = [[name, f"{n:,}", f"{n / (written or 1):.0%}"] for name, n in counts.items()]
    return Table(caption, ["questions", "number", "share"], rows, numbers=False)


def _cost(page_data: PageData) -> Table:
    rows = []
    for name, report in page_data.trained.items():
        asked = (report.get("data") or {}).get("questions")
        if asked:
            tokens = asked["prompt_tokens"] + asked["completion_tokens"]
            rows.append(
                _row(f"{name}: questions written", asked["seconds"], asked["calls"], None, tokens)
            )
            filtered = (asked.get(f"base_{what}") for what in ("calls", "texts", "tokens"))
            rows.append(_row(f"{name}: questions filtered", None, *filtered))
        spent = (report.get(k) for k in ("seconds", "base_calls", "base_texts", "base_tokens"))
        rows.append(_row(f"{name}: training", *spent))
    rows += [
        _row(f"{name}: judging", s.seconds, s.base_calls, s.base_texts, s.base_tokens)
        for name, s in page_data.scores.items()
        if s.seconds
    ]
    head = ["step", "seconds", "calls", "texts sent", "tokens"]
    return Table("Seconds, calls and tokens", head, rows)


def _row(name: str, seconds: Any, *numbers: Any) -> list[str]:
    shown = ["–" if number is None else f"{number:,}" for number in numbers]
    return [name, "–" if seconds is None else f"{seconds:,.1f}", *shown]
