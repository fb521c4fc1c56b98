"""Questions that a 135M Llama wrote in the likeness of real ones, and what they are good for."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llama_index.core.schema import TextNode

from benchmarks import environment, sets
from benchmarks.quality import judged, views
from llama_index_embeddings_adapted import (
    Candidate,
    DocumentPrior,
    HybridRetriever,
    LocalLlama,
    generate_qa_embedding_pairs,
)
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.core.arrays import Vectors, content_hashes, l2_normalize
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.questions.options import DRAWN_EXAMPLES
from llama_index_embeddings_adapted.questions.selection import round_trip

#: Set → what its passages and queries are called.
LABELS = {
    "nl2bash": ("Command", "Query"),
    "tldr_pages": ("Command", "Query"),
    "squad_dev": ("Passage", "Question"),
    "scifact": ("Abstract", "Claim"),
    "banking77_intent": ("Message", "Query"),
    "nfcorpus": ("Abstract", "Query"),
    "aws_cli": ("Command", "Query"),
    "docstrings": ("Code", "Query"),
    "uberlyft_10k": ("Passage", "Question"),
    "wordnet": ("Definition", "Query"),
}
SHOWN = 30  # of the first seed
_NAMED = ("model", "examples", "passages", "seed")  # what tells a row from others of its set


def run(
    load: Callable[[str], sets.RealSet], cache: Path, names: Sequence[str], most: int,
    examples: int, seeds: Sequence[int], weights: Path | None = None,
) -> None:  # fmt: skip
    """Per set: have questions written, train on them and nothing else, test on people's.

    Args:
        most: Passages asked about, one question each.
        examples: Pairs of the training part that the writer is shown, drawn by a seed; with 0 it is
            asked in chat turns, in our own styles.
        seeds: Of the examples, of the passages asked about, and of training.
        weights: A GGUF file; None for SmolLM2.
    """
    base, llm = environment.minilm(embed_batch_size=32), LocalLlama(path=weights and str(weights))
    for name in names:
        real = load(name)
        test = views._some(real.tests["test"], views.MOST_TEST)
        for seed in seeds:
            known = (llm.metadata.model_name, examples, most, seed)
            shown = _drawn(real.train, examples, seed)
            row = dict(zip(_NAMED, known, strict=True))
            row |= _measured(name, shown, test, base, llm, cache, most, seed)
            command = f"python -m benchmarks questions --most {most}"
            environment.add("questions", command, (name,), row, by=_NAMED)
            print(name, row["kept"], row["ndcg@10"], row["gains"], flush=True)


def _drawn(train: Dataset, count: int, seed: int) -> Dataset | None:
    """Draw pairs about different documents, unless the writer draws as many itself."""
    if count in (0, DRAWN_EXAMPLES):
        return train if count else None
    queries, asked, drawn = list(train.queries), set[str](), []
    random.Random(seed).shuffle(queries)
    for query in queries:
        document = max(train.relevant_docs[query], key=partial(train.grade, query))
        if document not in asked and len(drawn) < count:
            asked.add(document)
            drawn.append(query)
    return train.subset(drawn)


def _measured(
    name: str, examples: Dataset | None, test: Dataset, base: Any, llm: LocalLlama, cache: Path,
    most: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    nodes = [TextNode(id_=each, text=text) for each, text in test.corpus.items()]
    options: Any = {"num_questions_per_chunk": 1, "max_chunks": most, "seed": seed}
    options |= {"embed_model": base, "cache_dir": cache, "show_progress": False}
    written = generate_qa_embedding_pairs(
        nodes, llm, examples=examples, labels=LABELS[name], **options
    )
    adapters, verdicts = {}, {}
    for method in ("linear", "auto"):
        engine = sets.trained(written, base, cache, method=method, seed=seed)
        adapters[method] = engine.get_finetuned_model().adapter
        verdicts[method] = engine.report.verdict
    served = engine.get_finetuned_retriever(nodes[:1])  # of "auto"
    with Encoder(base, cache_dir=cache, show_progress=False) as encoder:
        scores = _views(written, test, encoder, adapters, served)
    start = scores["base"]
    gains = {v: judged.difference(start, found) for v, found in scores.items() if v != "base"}
    return {
        **_facts(written, base, cache, SHOWN if seed == 0 else 0),
        "test queries": len(test),
        "verdicts": verdicts,
        "ndcg@10": start["ndcg@10"],
        "gains": {v: [gain.mean, gain.low, gain.high] for v, gain in gains.items()},
    }


def _views(
    written: Dataset, test: Dataset, encoder: Encoder, adapters: Mapping[str, Any],
    served: HybridRetriever,
) -> dict[str, Any]:  # fmt: skip
    """Return the scores of base and adapters, alone and with words and a prior at fixed weights.

    ``"retriever"`` is what ``get_finetuned_retriever`` serves of all that, by weights it chose.
    """
    texts = list(written.queries.values())
    bank = l2_normalize(encoder.encode(texts, "query"))
    about = [written.corpus[documents[0]] for documents in written.relevant_docs.values()]
    plain = views._scored(test, texts, bank, encoder)
    data, documents, found = plain.data, l2_normalize(plain.data.documents), {}
    for label, change in {"base": None, **adapters}.items():
        asked, queries = (_adapted(change, each) for each in (bank, l2_normalize(data.queries)))
        nearness = DocumentPrior(asked, content_hashes(about)).nearness(documents, data.keys)
        scored = replace(plain, cosines=queries @ documents.T, nearness=nearness)
        found[label] = scored.mixed(0, 0)
        found[f"{label}, prior"] = scored.mixed(0, views.PENALTY)
        found[f"{label}, words, prior"] = scored.mixed(views.WORDS, views.PENALTY)
        found[f"{label}, words"] = scored.mixed(views.WORDS, 0)
    penalty = served.views.prior.weight if served.views.prior else 0.0
    adapted = plain.adapted(served.embed_model.adapter, bank)
    found["retriever"] = adapted.mixed(served.views.weight, penalty)
    return found


def _adapted(adapter: Any, queries: Vectors) -> Vectors:
    return queries if adapter is None else l2_normalize(adapter.map(queries))


def _facts(written: Dataset, base: Any, cache: Path, shown: int) -> dict[str, Any]:
    report = written.report
    trip = round_trip(report.kept, written.corpus, base, cache_dir=cache, show_progress=False)
    randomness, answers = random.Random(0), report.to_dict()
    return {
        "shown": answers["shown"],
        "written": report.written,
        "kept": len(report.kept),
        "dropped": answers["dropped"],
        "first": float((trip.ranks == 0).mean()),
        "in top 20": float((trip.ranks < 20).mean()),
        "random_kept": [_shown(c) for c in _some(report.kept, shown, randomness)],
        "random_dropped": [
            {"reason": d.reason, **_shown(d.candidate)}
            for d in _some(report.dropped, shown, randomness)
        ],
    }


def _some(items: Sequence[Any], most: int, randomness: random.Random) -> list[Any]:
    return randomness.sample(list(items), min(most, len(items)))


def _shown(candidate: Candidate) -> dict[str, Any]:
    return {"question": candidate.text, "passage": candidate.document}
