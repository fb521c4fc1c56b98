from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted import (
    AdaptedEmbedding,
    EmbeddingAdapterFinetuneEngine,
    EmbeddingQAFinetuneDataset,
    LinearAdapter,
    TwoLayerAdapter,
    compare_retrieval,
    ship_candidate,
)
from llama_index_embeddings_adapted.encoding.base_model import PROBE_TEXTS, fingerprint_of
from llama_index_embeddings_adapted.errors import (
    AdaptedError,
    DatasetError,
    FolderError,
    NotTrainedError,
    OptionError,
    ShapeError,
    TrainingError,
)
from llama_index_embeddings_adapted.evaluation import verdict
from llama_index_embeddings_adapted.evaluation.verdict import LOOKS_RANDOM, Decision, Verdict
from llama_index_embeddings_adapted.training.auto import descent, selection, tune
from llama_index_embeddings_adapted.training.auto.pipelines import SPECS
from tests.conftest import CountingEmbedding

NOUNS = ("apple", "whale", "bus", "sea", "bird", "car", "tree", "house", "river", "lamp")
ADJECTIVES = ("red", "blue", "big", "small", "old", "new", "fast", "slow", "warm", "cold")


@pytest.fixture
def things() -> EmbeddingQAFinetuneDataset:
    """A document for each of 100 things, two questions about each, in other words."""
    corpus, queries, relevant = {}, {}, {}
    for noun in NOUNS:
        for adjective in ADJECTIVES:
            name = f"{adjective} {noun}"
            corpus[name] = f"{name} {noun}-facts {adjective}-facts"
            for start in ("what", "tell"):
                queries[f"{start} {name}"] = f"{start} {noun}? {adjective}?"
                relevant[f"{start} {name}"] = [name]
    return EmbeddingQAFinetuneDataset(queries, corpus, relevant)


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {
        "model_output_path": tmp_path / "adapter",
        "cache_dir": tmp_path / "cache",
        "show_progress": False,
    }


def test_the_call_of_the_old_tutorial_runs_and_serves(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, tmp_path: Path
) -> None:
    engine = EmbeddingAdapterFinetuneEngine(
        things,
        base,
        model_output_path=str(tmp_path / "model_output_test"),
        epochs=4,
        verbose=True,
        optimizer_class=torch.optim.SGD,
        optimizer_params={"lr": 0.01},
        cache_dir=tmp_path / "cache",
    )
    assert engine.finetune() is None
    model = engine.get_finetuned_model()
    assert len(model.get_query_embedding("what apple?")) == 16
    loaded = AdaptedEmbedding.from_pretrained(tmp_path / "model_output_test", base)
    assert loaded.adapter == model.adapter


def test_arguments_keep_the_order_of_the_old_engine() -> None:
    names = list(inspect.signature(EmbeddingAdapterFinetuneEngine).parameters)
    assert names[:12] == [
        "dataset",
        "embed_model",
        "batch_size",
        "epochs",
        "adapter_model",
        "dim",
        "device",
        "model_output_path",
        "model_checkpoint_path",
        "checkpoint_save_steps",
        "verbose",
        "bias",
    ]


class Skewed(CountingEmbedding):
    """Sees queries at an angle, as a model does that was trained on other text."""

    def vector(self, role: str, text: str) -> list[float]:
        vector = np.array(super().vector(role, text))
        return (vector + 1.5 * vector[::-1]).tolist() if role == "query" else vector.tolist()


def test_training_helps_on_questions_and_documents_it_has_not_seen(
    things: EmbeddingQAFinetuneDataset, options: dict[str, Any]
) -> None:
    base = Skewed(embed_batch_size=16)
    train, test = things.train_test_split(0.3, by="document", seed=1)
    engine = EmbeddingAdapterFinetuneEngine(train, base, learning_rate=0.01, anchor=0.0, **options)
    engine.finetune()
    compared = compare_retrieval(
        {"base": base, "adapted": engine.get_finetuned_model()},
        test,
        cache_dir=options["cache_dir"],
        show_progress=False,
    )
    found = compared.significance("base", "adapted")
    assert (found.low > 0, found.verdict.decision, found.seen) == (True, Decision.BETTER, "")
    models = {"base": base, "adapted": engine.get_finetuned_model()}
    with pytest.warns(
        UserWarning, match="adapted: 70 of the 140 test queries are among the 70 kept"
    ):
        compared = compare_retrieval(models, train, cache_dir=options["cache_dir"])
    found = compared.significance("base", "adapted")
    assert (found.low > 0, found.verdict.decision) == (True, Decision.INCONCLUSIVE)
    assert found.verdict.endswith("it was trained on: split first")
    assert engine.report.verdict.startswith("ship")


def test_every_text_is_embedded_once_and_never_again(
    things: EmbeddingQAFinetuneDataset, options: dict[str, Any]
) -> None:
    base = CountingEmbedding(embed_batch_size=8)
    engine = EmbeddingAdapterFinetuneEngine(things, base, epochs=3, **options)
    engine.finetune()
    texts = [entry for entry in base.asked if entry[1] not in PROBE_TEXTS]
    assert len(texts) == len(set(texts)) == 200 + 100
    assert engine.report.base_texts == len(base.asked)

    other = CountingEmbedding(embed_batch_size=8)
    for settings in ({"loss": "corpus"}, {"learning_rate": 0.01, "seed": 3}):
        again = EmbeddingAdapterFinetuneEngine(things, other, epochs=2, **settings, **options)
        again.finetune()
    assert {text for _, text in other.asked} == set(PROBE_TEXTS)


def test_the_report_has_both_models_an_interval_and_the_history(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, options: dict[str, Any]
) -> None:
    engine = EmbeddingAdapterFinetuneEngine(things, base, epochs=3, **options)
    engine.finetune()
    report = engine.report
    assert report.base.keys() == report.adapted.keys() >= {"ndcg@10", "mrr@10", "hit_rate@5"}
    assert report.interval[0] <= report.overall.difference.mean <= report.interval[1]
    assert 0 < report.p_value <= 1
    assert [epoch.number for epoch in report.history] == [0, 1, 2, 3]
    assert report.known is not None
    assert report.new is not None
    assert report.known.queries + report.new.queries == report.overall.queries
    assert "documents without" in str(report)
    saved = json.loads((options["model_output_path"] / "config.json").read_text())
    assert saved["training"]["report"] == report.to_dict()
    assert saved["training"]["data"] == things.fingerprint


def test_queries_of_a_given_validation_set_are_not_trained_on(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, options: dict[str, Any]
) -> None:
    train, val = things.train_test_split(0.2, seed=0)
    engine = EmbeddingAdapterFinetuneEngine(train, base, val_dataset=val, epochs=2, **options)
    engine.finetune()
    # All of val, and a tenth of train held out with its documents.
    assert engine.report.overall.queries == pytest.approx(len(val) + 0.1 * len(train), abs=3)
    assert engine.report.new is not None


def test_training_queries_that_are_also_in_the_validation_set_are_left_out(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, options: dict[str, Any]
) -> None:
    shared = things.subset(list(things.queries)[:30])
    engine = EmbeddingAdapterFinetuneEngine(things, base, val_dataset=shared, epochs=1, **options)
    with pytest.warns(UserWarning, match="30 training queries are also in val_dataset"):
        engine.finetune()
    assert engine.report.train_queries == len(things) - 30


class TurnedQueries(CountingEmbedding):
    """Turns every query away from its words, so that there is something to learn."""

    def vector(self, role: str, text: str) -> list[float]:
        found = super().vector("document", text)
        return [*found[1:], found[0]] if role == "query" else found


def test_one_seed_gives_bit_equal_adapters(
    things: EmbeddingQAFinetuneDataset, options: dict[str, Any]
) -> None:
    base, adapters = TurnedQueries(), []
    options |= {"epochs": 10, "learning_rate": 0.01}
    for seed in (5, 5, 6):
        engine = EmbeddingAdapterFinetuneEngine(things, base, seed=seed, **options)
        engine.finetune()
        assert engine.get_finetuned_model().adapter != LinearAdapter.identity(16)
        adapters.append(engine.get_finetuned_model().adapter)
    assert adapters[0] == adapters[1] != adapters[2]


def test_finetune_takes_and_checks_overrides(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, options: dict[str, Any]
) -> None:
    engine = EmbeddingAdapterFinetuneEngine(things, base, epochs=9, **options)
    engine.finetune(epochs=1)
    assert len(engine.report.history) == 2
    with pytest.raises(OptionError, match='Unknown argument "epoch"'):
        engine.finetune(epoch=1)


def test_an_adapter_given_is_where_training_starts(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, options: dict[str, Any]
) -> None:
    from llama_index.embeddings.adapter import LinearLayer
    from llama_index.embeddings.adapter.utils import TwoLayerNN

    for given, kind in (
        (TwoLayerAdapter.identity(16, hidden=8), TwoLayerAdapter),
        (TwoLayerNN(16, 8, 16, bias=True, add_residual=True), TwoLayerAdapter),
        (LinearLayer(16, 16, bias=True), LinearAdapter),
    ):
        engine = EmbeddingAdapterFinetuneEngine(
            things, base, adapter_model=given, epochs=6, learning_rate=0.01, **options
        )
        engine.finetune()
        assert isinstance(engine.candidate.adapter, kind)
        against = engine.report.verdict == LOOKS_RANDOM  # unless new documents prove otherwise
        assert (engine.report.saved == "base") == against
        assert engine.get_finetuned_model(adapter_cls=object).adapter.is_identity == against
    resumed = EmbeddingAdapterFinetuneEngine.from_model_path(
        things, base, str(options["model_output_path"]), **{**options, "epochs": 1}
    )
    resumed.finetune()
    with pytest.raises(OptionError, match=r"adapter_model: expected a LinearAdapter.*got Linear "):
        EmbeddingAdapterFinetuneEngine(
            things, base, adapter_model=torch.nn.Linear(16, 16), **options
        )


def test_checkpoints_are_loadable_adapters(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, options: dict[str, Any]
) -> None:
    folder = options["cache_dir"].parent / "steps"
    engine = EmbeddingAdapterFinetuneEngine(
        things,
        base,
        epochs=2,
        model_checkpoint_path=folder,
        checkpoint_save_steps=2,
        refit=False,
        **options,
    )
    engine.finetune()
    saved = sorted(path.name for path in folder.iterdir())
    assert saved[0] == "step_2"
    assert LinearAdapter.load(folder / "step_2").input_dim == 16


class Custom(BaseEmbedding):
    """The least a user can write; only one of its two sides works."""

    asynchronous: bool = False

    def _vector(self, text: str) -> list[float]:
        random = np.random.default_rng(sum(map(ord, text)) * 31 + len(text))
        return random.standard_normal(8).tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        if self.asynchronous:
            raise NotImplementedError
        return self._vector(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        if not self.asynchronous:
            raise NotImplementedError
        return self._vector(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_query_embedding(text)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await self._aget_query_embedding(text)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_any_embedding_model_will_do(
    things: EmbeddingQAFinetuneDataset, options: dict[str, Any], asynchronous: bool
) -> None:
    model = Custom(asynchronous=asynchronous)
    engine = EmbeddingAdapterFinetuneEngine(things, model, epochs=1, **options)
    engine.finetune()
    # Vectors without meaning: nothing can be learned, and that is what it says.
    assert engine.report.verdict.decision.stance == "against"


def test_a_real_model_learns_from_real_texts(minilm: BaseEmbedding, tmp_path: Path) -> None:
    # The first paragraph of a module's documentation asks for the rest of it.
    documents, queries = {}, {}
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in ("antigravity", "this", "idlelib"):
            continue
        code = f"import {name}; print((({name}.__doc__ or '').strip()))"
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
        paragraphs = done.stdout.decode(errors="replace").split("\n\n")
        if len(paragraphs) > 1 and len(paragraphs[0]) > 15:
            queries[name] = paragraphs[0][:200]
            documents[name] = " ".join(paragraphs[1:])[:400]
        if len(documents) == 40:
            break
    dataset = EmbeddingQAFinetuneDataset(queries, documents, {name: [name] for name in queries})
    engine = EmbeddingAdapterFinetuneEngine(
        dataset,
        minilm,
        model_output_path=tmp_path / "adapter",
        cache_dir=tmp_path / "cache",
        show_progress=False,
    )
    fingerprint_of(minilm)  # asks for the probes, unless an earlier test did
    engine.finetune()
    assert engine.report.base["ndcg@10"] > 0.3  # a real model finds real answers
    assert engine.report.adapted["ndcg@10"] >= engine.report.base["ndcg@10"]
    # Probes show whether the model is still the same: a batch of the model's size once, and three.
    probes = minilm.embed_batch_size + 3
    assert engine.report.base_texts == len(queries) + len(documents) + probes


# --- methods --------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train maps for a few steps only."""
    monkeypatch.setattr(descent, "_STEPS", 60)
    monkeypatch.setattr(verdict, "RESAMPLES", 999)


@pytest.mark.usefixtures("quick")
def test_auto_embeds_each_text_once_reports_saves_and_serves(
    things: EmbeddingQAFinetuneDataset, options: dict[str, Any]
) -> None:
    base = Skewed(embed_batch_size=16)
    engine = EmbeddingAdapterFinetuneEngine(
        things, base, method="auto", learning_rate=0.01, **options
    )
    engine.finetune()
    texts = [entry for entry in base.asked if entry[1] not in PROBE_TEXTS]
    assert len(texts) == len(set(texts)) == 200 + 100

    report = engine.report
    assert report.choice is not None
    assert report.verdict == report.choice.verdict
    assert report.verdict.startswith("ship: held-out queries gain")
    assert report.train_queries == len(things)
    assert report.settings["method"] == "auto"
    assert f"chosen: {report.choice.recipe} of {len(report.choice.gains)} candidates" in str(report)
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["choice"]["recipe"] == report.choice.recipe

    folder = options["model_output_path"]
    saved = json.loads((folder / "config.json").read_text())
    assert saved["training"]["report"] == told
    model = engine.get_finetuned_model()
    assert AdaptedEmbedding.from_pretrained(folder, base).adapter == model.adapter
    assert engine.candidate.adapter == model.adapter
    assert not folder.with_name("adapter.candidate").exists()  # it is the one that is served


def test_a_candidate_that_is_not_shipped_is_kept_aside(
    things: EmbeddingQAFinetuneDataset,
    base: CountingEmbedding,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tune, "_judge", lambda *_: Verdict(Decision.INCONCLUSIVE, "better not"))
    monkeypatch.setattr(selection.CrossFittedScores, "choose", lambda self, specs, among: specs[-1])
    engine = EmbeddingAdapterFinetuneEngine(things, base, method="ridge", **options)
    engine.finetune()
    folder = options["model_output_path"]
    served = AdaptedEmbedding.from_pretrained(folder, base)
    kept = AdaptedEmbedding.from_pretrained(folder.with_name("adapter.candidate"), base)
    assert served.adapter == engine.get_finetuned_model().adapter == LinearAdapter.identity(16)
    assert kept.adapter == engine.candidate.adapter != served.adapter
    holds = "the base model, unchanged; the candidate is in adapter.candidate"
    assert engine.report.holds == served.training["report"]["holds"] == holds
    assert kept.training["report"]["holds"] == "the candidate that was judged"
    assert f"This folder holds {holds}." in (folder / "README.md").read_text("utf-8")

    always = EmbeddingAdapterFinetuneEngine(things, base, method="ridge", ship="always", **options)
    always.finetune()
    assert always.get_finetuned_model().adapter == kept.adapter
    assert always.report.verdict.reason == "better not"


@pytest.mark.parametrize("ship", ["proven", "always"])
def test_where_nothing_is_better_there_is_no_candidate(
    things: EmbeddingQAFinetuneDataset,
    base: CountingEmbedding,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    ship: str,
) -> None:
    choose = selection.CrossFittedScores.choose

    def nothing(self: Any, specs: Any, among: Any) -> Any:
        return choose(self, specs, among) if not among.all() else selection.IDENTITY

    monkeypatch.setattr(selection.CrossFittedScores, "choose", nothing)
    engine = EmbeddingAdapterFinetuneEngine(things, base, method="ridge", ship=ship, **options)
    engine.finetune()
    folder = options["model_output_path"]
    assert not folder.with_name("adapter.candidate").exists()
    assert engine.candidate.adapter.is_identity
    assert engine.report.holds == "the base model, unchanged; nothing was better"
    assert engine.report.to_dict()["candidate"] is None
    assert "held-out queries, by what other folds chose; it is not saved" in str(engine.report)
    with pytest.raises(FolderError, match=r"no candidate to ship: there is no adapter.candidate"):
        ship_candidate(folder)
    engine.candidate.save_pretrained(folder.with_name("adapter.candidate"))
    with pytest.raises(FolderError, match=r"no candidate to ship: adapter.candidate is the base"):
        ship_candidate(folder)


def test_what_stands_in_the_place_of_the_candidate_is_not_written_over(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, options: dict[str, Any]
) -> None:
    place = options["model_output_path"].with_name("adapter.candidate")
    place.mkdir()
    (place / "thesis.tex").write_text("precious")
    engine = EmbeddingAdapterFinetuneEngine(things, base, method="ridge", **options)
    with pytest.raises(FolderError, match=r"holds other files \(thesis.tex\)"):
        engine.finetune()
    assert base.asked == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", sorted({*SPECS} - {"linear"}))
def test_every_method_can_be_asked_for_by_name(
    things: EmbeddingQAFinetuneDataset, options: dict[str, Any], method: str
) -> None:
    base = Skewed(embed_batch_size=64)
    adapts = "both" if SPECS[method].moves_documents else "query"
    engine = EmbeddingAdapterFinetuneEngine(
        things, base, method=method, adapts=adapts, ship="always", **options
    )
    engine.finetune()
    assert engine.report.choice is not None
    tried = {name.split("(")[0] for name in engine.report.choice.gains}
    assert tried == {"identity", method}
    model = engine.get_finetuned_model()
    assert np.isfinite(model.get_query_embedding("what apple? red?")).all()
    loaded = AdaptedEmbedding.from_pretrained(options["model_output_path"], base)
    assert loaded.adapter == model.adapter


def test_a_validation_set_is_learned_from_and_judged_on_too(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, options: dict[str, Any]
) -> None:
    train, val = things.train_test_split(0.2, seed=0)
    engine = EmbeddingAdapterFinetuneEngine(train, base, val_dataset=val, method="ridge", **options)
    engine.finetune()
    assert engine.report.train_queries == len(train) + len(val)
    assert engine.report.overall.queries > len(train)


def test_a_model_that_moves_documents_serves_an_index(
    things: EmbeddingQAFinetuneDataset, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    monkeypatch.setattr(selection.CrossFittedScores, "choose", lambda self, specs, among: specs[-1])
    base = Skewed(embed_batch_size=64)
    engine = EmbeddingAdapterFinetuneEngine(
        things, base, method="nudge_n", adapts="both", ship="always", **options
    )
    engine.finetune()
    model = engine.get_finetuned_model()
    assert model.adapter.adapts_documents

    def found_first(embed_model: BaseEmbedding) -> int:
        nodes = [TextNode(id_=name, text=text) for name, text in things.corpus.items()]
        index = VectorStoreIndex(nodes, embed_model=embed_model)
        retriever = index.as_retriever(similarity_top_k=1)
        return sum(
            retriever.retrieve(text)[0].node_id == things.relevant_docs[query][0]
            for query, text in things.queries.items()
        )

    assert found_first(model) > found_first(base)
    # A text that it does not know keeps the vector of the base model.
    unknown = "an addition about nothing"
    assert model.get_text_embedding(unknown) == pytest.approx(base.get_text_embedding(unknown))


def test_an_adapter_to_start_from_is_for_the_linear_method_only(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, options: dict[str, Any]
) -> None:
    with pytest.raises(OptionError, match='method="ridge" starts where it sees fit'):
        EmbeddingAdapterFinetuneEngine(
            things, base, method="ridge", adapter_model=LinearAdapter.identity(16), **options
        )


# --- errors ---------------------------------------------------------------------------------


def test_there_is_no_model_before_finetune_even_if_an_earlier_run_left_one(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, options: dict[str, Any]
) -> None:
    EmbeddingAdapterFinetuneEngine(things, base, epochs=1, **options).finetune()
    engine = EmbeddingAdapterFinetuneEngine(things, base, **options)
    with pytest.raises(NotTrainedError, match=r"before finetune\(\).*from_pretrained"):
        engine.get_finetuned_model()
    with pytest.raises(NotTrainedError, match="no report"):
        _ = engine.report


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"lr": 0.1}, OptionError, 'Unknown argument "lr". Did you mean "learning_rate"'),
        ({"optimiser_class": 1}, OptionError, 'Did you mean "optimizer_class"'),
        ({"method": "magic"}, OptionError, "method: expected one of auto, .* got 'magic'"),
        ({"adapts": "documents"}, OptionError, "adapts: expected one of query, both, got 'doc"),
        ({"ship": "never"}, OptionError, "ship: expected one of proven, always, got 'never'"),
        ({"start": "zero"}, OptionError, "start: expected one of whitening, identity"),
        ({"expect": 1.2}, OptionError, r"expect: expected a share in \[0, 1\] or None"),
        ({"epochs": -1}, OptionError, "epochs: expected a whole number >= 1"),
        ({"checkpoint_save_steps": 0}, OptionError, "checkpoint_save_steps"),
        ({"val_dataset": "dev.json"}, OptionError, "val_dataset: expected an Embedding.*got str"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_embedded(
    things: EmbeddingQAFinetuneDataset,
    base: CountingEmbedding,
    wrong: dict[str, Any],
    error: type[AdaptedError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        EmbeddingAdapterFinetuneEngine(things, base, **wrong)
    assert base.asked == []


def test_an_output_folder_with_other_files_is_refused_before_anything_is_embedded(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    engine = EmbeddingAdapterFinetuneEngine(things, base, model_output_path=tmp_path)
    with pytest.raises(FolderError, match=r"holds other files \(thesis.tex\)"):
        engine.finetune()
    engine = EmbeddingAdapterFinetuneEngine(
        things, base, model_output_path=tmp_path / "thesis.tex" / "adapter"
    )
    with pytest.raises(FolderError, match=r"cannot be written \((File exists|Not a directory)\)"):
        engine.finetune()
    assert base.asked == []


def test_wrong_types_are_refused(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding
) -> None:
    with pytest.raises(OptionError, match=r"embed_model: 'local:x' names no model here"):
        EmbeddingAdapterFinetuneEngine(things, "local:x")
    with pytest.raises(OptionError, match=r"embed_model: expected a LlamaIndex.*got int"):
        EmbeddingAdapterFinetuneEngine(things, 7)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"dataset: expected an EmbeddingQA.*got dict"):
        EmbeddingAdapterFinetuneEngine({}, base)  # type: ignore[arg-type]


def test_dimensions_that_do_not_fit_are_refused_before_the_texts_are_embedded(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, options: dict[str, Any]
) -> None:
    with pytest.raises(ShapeError, match=r"dim: expected 16, as the base model gives, got 384\."):
        EmbeddingAdapterFinetuneEngine(things, base, dim=384, **options).finetune()
    with pytest.raises(ShapeError, match=r"adapter_model: expected 16 → 16.*got 8 → 8"):
        EmbeddingAdapterFinetuneEngine(
            things, base, adapter_model=LinearAdapter.identity(8), **options
        ).finetune()
    assert {text for _, text in base.asked} == set(PROBE_TEXTS)


def test_too_few_queries_are_an_error_that_says_what_to_do(
    base: CountingEmbedding, options: dict[str, Any]
) -> None:
    one = EmbeddingQAFinetuneDataset({"q": "why?"}, {"d": "because"}, {"q": ["d"]})
    with pytest.raises(DatasetError, match=r"1 leave.*Add queries, or pass val_dataset"):
        EmbeddingAdapterFinetuneEngine(one, base, method="linear", **options).finetune()


def test_too_few_queries_to_cross_fit_keep_the_base_model_and_say_so(
    base: CountingEmbedding, options: dict[str, Any]
) -> None:
    one = EmbeddingQAFinetuneDataset({"q": "why?"}, {"d": "because"}, {"q": ["d"]})
    engine = EmbeddingAdapterFinetuneEngine(one, base, **options)
    engine.finetune()
    assert engine.report.verdict == (
        "keep the base model: Cross-fitting in 5 folds needs at least 5 queries, got 1"
    )
    assert engine.report.headline[0] == "saved: the base model, unchanged"
    assert engine.get_finetuned_model().adapter == LinearAdapter.identity(16)


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({}, "auto"),
        ({"seed": 3, "ship": "always", "bias": False}, "auto"),
        ({"epochs": 4}, "linear"),
        ({"optimizer_params": {"lr": 0.1}}, "linear"),
        ({"adapter_model": LinearAdapter.identity(16)}, "linear"),
        ({"model_checkpoint_path": "there"}, "linear"),
        ({"epochs": 4, "method": "auto"}, "auto"),
        ({"epochs": 4, "adapts": "both"}, "auto"),
        ({"method": ("auto", "nudge"), "adapts": "both"}, ["auto", "nudge"]),
    ],
)
def test_who_speaks_of_a_training_loop_means_linear_and_all_others_auto(
    given: dict[str, Any], method: Any, things: EmbeddingQAFinetuneDataset, base: CountingEmbedding
) -> None:
    engine = EmbeddingAdapterFinetuneEngine(things, base, **given)
    assert engine._options_for({}).method == method


def test_diverging_training_leaves_what_was_saved_before(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, options: dict[str, Any]
) -> None:
    EmbeddingAdapterFinetuneEngine(things, base, epochs=1, **options).finetune()
    before = (options["model_output_path"] / "adapter.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="Lower the learning rate"):
        EmbeddingAdapterFinetuneEngine(things, base, learning_rate=1e6, **options).finetune()
    assert (options["model_output_path"] / "adapter.safetensors").read_bytes() == before


# --- the old package ------------------------------------------------------------------------

ISINSTANCE = """
import warnings
warnings.simplefilter("ignore")
{imports}
from tests.conftest import CountingEmbedding
dataset = EmbeddingQAFinetuneDataset({{"q": "a"}}, {{"d": "b"}}, {{"q": ["d"]}})
engine = EmbeddingAdapterFinetuneEngine(dataset, CountingEmbedding())
assert isinstance(engine, BaseEmbeddingFinetuneEngine)
"""
OURS = (
    "from llama_index_embeddings_adapted import "
    "EmbeddingAdapterFinetuneEngine, EmbeddingQAFinetuneDataset"
)
THEIRS = "from llama_index.finetuning.types import BaseEmbeddingFinetuneEngine"


@pytest.mark.parametrize("order", [(OURS, THEIRS), (THEIRS, OURS)])
@pytest.mark.slow
def test_an_engine_is_a_base_embedding_finetune_engine(order: tuple[str, str]) -> None:
    pytest.importorskip("llama_index.embeddings.adapter", reason="the old package is missing")
    code = ISINSTANCE.format(imports="\n".join(order))
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_everything_works_where_the_old_package_cannot_be_imported(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["llama_index.finetuning"] = None
sys.modules["mistralai"] = None
{OURS}
from tests.conftest import CountingEmbedding
n = range(30)
dataset = EmbeddingQAFinetuneDataset(
    {{f"q{{i}}": f"what {{i}}" for i in n}}, {{f"d{{i}}": f"word {{i}}" for i in n}},
    {{f"q{{i}}": [f"d{{i}}"] for i in n}})
engine = EmbeddingAdapterFinetuneEngine(
    dataset, CountingEmbedding(), epochs=1, model_output_path=r"{tmp_path / "a"}",
    cache_dir=r"{tmp_path / "c"}", show_progress=False)
engine.finetune()
engine.get_finetuned_model().get_query_embedding("x")
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


def test_a_network_of_ones_own_is_not_taken_for_one_with_the_same_tensors(
    things: EmbeddingQAFinetuneDataset, base: CountingEmbedding, options: dict[str, Any]
) -> None:
    from llama_index.embeddings.adapter import LinearLayer

    class Squashed(LinearLayer):
        def forward(self, embed: torch.Tensor) -> torch.Tensor:
            return torch.tanh(4 * super().forward(embed))

    with pytest.raises(OptionError, match="its forward computes something else"):
        EmbeddingAdapterFinetuneEngine(things, base, adapter_model=Squashed(16, 16), **options)


def test_a_string_names_a_model(
    things: EmbeddingQAFinetuneDataset, options: dict[str, Any]
) -> None:
    engine = EmbeddingAdapterFinetuneEngine(things, "minilm", **options)
    assert isinstance(engine.embed_model, BaseEmbedding)
    with pytest.raises(OptionError, match="names no model here"):
        EmbeddingAdapterFinetuneEngine(things, "nonsense", **options)


def test_a_query_that_stands_in_the_corpus_is_trained_and_judged_without_itself(
    base: CountingEmbedding, options: dict[str, Any]
) -> None:
    words = [f"w{number} w{number + 1} w{number + 2} w{number * 7 % 50}" for number in range(60)]
    corpus = {f"d{number}": text for number, text in enumerate(words)}
    relevant = {name: [f"d{(number + 1) % 60}"] for number, name in enumerate(corpus)}
    data = EmbeddingQAFinetuneDataset(corpus, corpus, relevant)
    engine = EmbeddingAdapterFinetuneEngine(data, base, epochs=2, **options)
    engine.finetune()
    assert "60 queries" not in engine.report.verdict
    assert "(ignore_identical_ids)" in str(engine.report)
    plain = EmbeddingAdapterFinetuneEngine(
        data.scored(ignore_identical_ids=False), base, epochs=2, **options
    )
    plain.finetune()
    assert plain.report.base["hit_rate@1"] == 0.0 < engine.report.base["hit_rate@1"]
