import ast
import inspect
import itertools
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from llama_index.core.base.embeddings.base import BaseEmbedding

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted import EmbeddingAdapterFinetuneEngine as Engine
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted import errors
from llama_index_embeddings_adapted.data.formats import OBJECTS
from llama_index_embeddings_adapted.encoding.base_model import PROBE_TEXTS, fingerprint_of
from llama_index_embeddings_adapted.errors import FolderError, OptionError, ShapeError
from llama_index_embeddings_adapted.evaluation import verdict
from llama_index_embeddings_adapted.evaluation.verdict import LOOKS_RANDOM, Decision, Verdict
from llama_index_embeddings_adapted.training.auto import descent, selection, tune
from llama_index_embeddings_adapted.training.auto.pipelines import SPECS
from tests.conftest import CountingEmbedding, index_of
from tests.support.processes import fresh

NOUNS = ("apple", "whale", "bus", "sea", "bird", "car", "tree", "house", "river", "lamp")
ADJECTIVES = ("red", "blue", "big", "small", "old", "new", "fast", "slow", "warm", "cold")


@pytest.fixture
def things() -> Dataset:
    """A document for each of 100 things, two questions about each, in other words."""
    pairs = list(itertools.product(NOUNS, ADJECTIVES))
    corpus = {f"{a} {noun}": f"{a} {noun} {noun}-facts {a}-facts" for noun, a in pairs}
    asked = [(start, *pair) for pair in pairs for start in ("what", "tell")]
    queries = {f"{start} {a} {noun}": f"{start} {noun}? {a}?" for start, noun, a in asked}
    return Dataset(queries, corpus, {query: [query.partition(" ")[2]] for query in queries})


@pytest.fixture
def options(tmp_path, quiet) -> dict[str, Any]:
    return {"model_output_path": tmp_path / "adapter", **quiet}


Trained = Callable[..., Engine]


@pytest.fixture
def engine_of(things, base, options) -> Trained:
    """Make an engine, for the things and the counting model unless told otherwise."""

    def make(dataset: Any = None, model: Any = None, **given: Any) -> Engine:
        chosen = things if dataset is None else dataset
        return Engine(chosen, base if model is None else model, **{**options, **given})

    return make


@pytest.fixture
def trained(engine_of) -> Trained:
    def train(*arguments: Any, **given: Any) -> Engine:
        engine = engine_of(*arguments, **given)
        engine.finetune()
        return engine

    return train


def test_the_call_of_the_old_tutorial_runs_and_serves(things, base, tmp_path):
    place = {"model_output_path": str(tmp_path / "model_output_test"), "cache_dir": tmp_path / "c"}
    descent_ = {"optimizer_class": torch.optim.SGD, "optimizer_params": {"lr": 0.01}}
    engine = Engine(things, base, epochs=4, verbose=True, **place, **descent_)
    assert engine.finetune() is None
    model = engine.get_finetuned_model()
    assert len(model.get_query_embedding("what apple?")) == 16
    loaded = package.AdaptedEmbedding.from_pretrained(tmp_path / "model_output_test", base)
    assert loaded.adapter == model.adapter
    names = list(inspect.signature(Engine).parameters)
    assert " ".join(names[:12]) == (
        "dataset embed_model batch_size epochs adapter_model dim device model_output_path "
        "model_checkpoint_path checkpoint_save_steps verbose bias"
    )


class Skewed(CountingEmbedding):
    """Sees queries at an angle, as a model does that was trained on other text."""

    def vector(self, role: str, text: str) -> list[float]:
        vector = np.array(super().vector(role, text))
        return (vector + 1.5 * vector[::-1]).tolist() if role == "query" else vector.tolist()


def test_training_helps_on_questions_and_documents_it_has_not_seen(things, trained, options):
    base, quiet = Skewed(embed_batch_size=16), {"cache_dir": options["cache_dir"]}
    train, test = things.train_test_split(0.3, by="document", seed=1)
    engine = trained(train, base, learning_rate=0.01, anchor=0.0)
    models = {"base": base, "adapted": engine.get_finetuned_model()}
    compared = package.compare_retrieval(models, test, show_progress=False, **quiet)
    found = compared.significance("base", "adapted")
    assert (found.low > 0, found.verdict.decision, found.seen) == (True, Decision.BETTER, "")
    seen = "adapted: 70 of the 140 test queries are among the 70 kept"
    with pytest.warns(UserWarning, match=seen):
        compared = package.compare_retrieval(models, train, **quiet)
    found = compared.significance("base", "adapted")
    assert (found.low > 0, found.verdict.decision) == (True, Decision.INCONCLUSIVE)
    assert found.verdict.endswith("it was trained on: split first")
    assert engine.report.verdict.startswith("ship")


def test_every_text_is_embedded_once_and_never_again(trained):
    base, other = (CountingEmbedding(embed_batch_size=8) for _ in range(2))
    engine = trained(None, base, epochs=3)
    texts = base.asked_beyond_probes
    assert len(texts) == len(set(texts)) == 200 + 100
    assert engine.report.base_texts == len(base.asked)
    for settings in ({"loss": "corpus"}, {"learning_rate": 0.01, "seed": 3}):
        trained(None, other, epochs=2, **settings)
    assert {text for _, text in other.asked} == set(PROBE_TEXTS)


def test_the_report_has_both_models_an_interval_and_the_history(things, trained, options):
    report = trained(epochs=3).report
    assert report.base.keys() == report.adapted.keys() >= {"ndcg@10", "mrr@10", "hit_rate@5"}
    assert report.interval[0] <= report.overall.difference.mean <= report.interval[1]
    assert 0 < report.p_value <= 1
    assert [epoch.number for epoch in report.history] == [0, 1, 2, 3]
    assert report.known.queries + report.new.queries == report.overall.queries
    assert "new documents: " in str(report)
    saved = json.loads((options["model_output_path"] / "config.json").read_text())
    assert saved["training"]["report"] == report.to_dict()
    assert saved["training"]["data"] == things.fingerprint


def test_queries_of_a_given_validation_set_are_not_trained_on(things, trained):
    train, val = things.train_test_split(0.2, seed=0)
    report = trained(train, val_dataset=val, epochs=2).report
    # All of val, and a tenth of train held out with its documents.
    assert report.overall.queries == pytest.approx(len(val) + 0.1 * len(train), abs=3)
    assert report.new is not None
    with pytest.warns(UserWarning, match='epochs, patience: heeded by method="linear" only'):
        engine = trained(train, val_dataset=val, method="ridge", epochs=2, patience=1)
    report = engine.report  # it judges on all of them, and trains on all in the end
    assert report.train_queries == report.data["queries"] == len(things)
    assert engine.get_finetuned_model().sketch.queries == len(things)
    assert report.overall.queries > len(train)
    shared = things.subset(list(things.queries)[:30])
    with pytest.warns(UserWarning, match="30 training queries are also in val_dataset"):
        engine = trained(val_dataset=shared, epochs=1)
    assert engine.report.train_queries == len(things) - 30


def test_finetune_takes_and_checks_overrides_and_there_is_no_model_before(engine_of, trained):
    engine = engine_of(epochs=9)
    engine.finetune(epochs=1)
    assert len(engine.report.history) == 2
    with pytest.raises(OptionError, match='Unknown argument "epoch"'):
        engine.finetune(epoch=1)
    trained(epochs=1)
    engine = engine_of()
    with pytest.raises(errors.NotTrainedError, match=r"before finetune\(\).*from_pretrained"):
        engine.get_finetuned_model()
    with pytest.raises(errors.NotTrainedError, match="no report"):
        _ = engine.report


def test_an_adapter_given_is_where_training_starts(things, base, trained, options):
    from llama_index.embeddings.adapter import LinearLayer
    from llama_index.embeddings.adapter.utils import TwoLayerNN

    for given, kind in (
        (package.TwoLayerAdapter.identity(16, hidden=8), package.TwoLayerAdapter),
        (TwoLayerNN(16, 8, 16, bias=True, add_residual=True), package.TwoLayerAdapter),
        (LinearLayer(16, 16, bias=True), package.LinearAdapter),
    ):
        engine = trained(adapter_model=given, epochs=6, learning_rate=0.01)
        assert isinstance(engine.candidate.adapter, kind)
        against = engine.report.verdict == LOOKS_RANDOM  # unless new documents prove otherwise
        assert (engine.report.saved == "base") == against
        assert engine.get_finetuned_model(adapter_cls=object).adapter.is_identity == against
    saved = str(options["model_output_path"])
    Engine.from_model_path(things, base, saved, **{**options, "epochs": 1}).finetune()


def test_checkpoints_are_loadable_adapters(trained, tmp_path):
    folder = tmp_path / "steps"
    trained(epochs=2, model_checkpoint_path=folder, checkpoint_save_steps=2, refit=False)
    saved = sorted(path.name for path in folder.iterdir())
    assert saved[0] == "step_2"
    assert package.LinearAdapter.load(folder / "step_2").input_dim == 16


def test_a_real_model_learns_from_real_texts(minilm: BaseEmbedding, trained: Trained) -> None:
    # The first paragraph of a module's documentation asks for the rest of it.
    documents, queries = {}, {}
    for name in sorted(sys.stdlib_module_names):
        origin = getattr(find_spec(name), "origin", None) or ""
        if origin.endswith(".py") and not name.startswith("_"):
            code = ast.parse(Path(origin).read_text(encoding="utf-8"))
            first, _, rest = (ast.get_docstring(code) or "").partition("\n\n")
            if len(first) > 15 and rest and len(documents) < 40:
                queries[name], documents[name] = first[:200], " ".join(rest.split())[:400]
    fingerprint_of(minilm)  # asks for the probes, unless an earlier test did
    engine = trained(Dataset(queries, documents, {name: [name] for name in queries}), minilm)
    assert engine.report.base["ndcg@10"] > 0.3  # a real model finds real answers
    assert engine.report.adapted["ndcg@10"] >= engine.report.base["ndcg@10"]
    # Probes show whether the model is still the same: a batch of the model's size once, and three.
    probes = minilm.embed_batch_size + 3
    assert engine.report.base_texts == len(queries) + len(documents) + probes


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(descent, "_STEPS", 60)
    monkeypatch.setattr(verdict, "RESAMPLES", 999)


@pytest.mark.usefixtures("quick")
def test_auto_embeds_each_text_once_reports_saves_and_serves(things, trained, options):
    base = Skewed(embed_batch_size=16)
    engine = trained(None, base, method="auto", learning_rate=0.01)
    texts = base.asked_beyond_probes
    assert len(texts) == len(set(texts)) == 200 + 100

    report = engine.report
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
    assert package.AdaptedEmbedding.from_pretrained(folder, base).adapter == model.adapter
    assert engine.candidate.adapter == model.adapter
    assert not folder.with_name("adapter.candidate").exists()  # it is the one that is served


def test_a_candidate_that_is_not_shipped_is_kept_aside(base, trained, options, monkeypatch):
    monkeypatch.setattr(tune, "_judge", lambda *_: Verdict(Decision.INCONCLUSIVE, "better not"))
    monkeypatch.setattr(selection.CrossFittedScores, "choose", lambda self, specs, among: specs[-1])
    engine = trained(method="ridge")
    folder = options["model_output_path"]
    served = package.AdaptedEmbedding.from_pretrained(folder, base)
    kept = package.AdaptedEmbedding.from_pretrained(folder.with_name("adapter.candidate"), base)
    assert served.adapter == engine.get_finetuned_model().adapter == IDENTITY
    assert kept.adapter == engine.candidate.adapter != served.adapter
    holds = "the base model, unchanged; the candidate is in adapter.candidate"
    assert engine.report.holds == served.training["report"]["holds"] == holds
    assert kept.training["report"]["holds"] == "the candidate that was judged"
    assert f"This folder holds {holds}." in (folder / "README.md").read_text("utf-8")

    always = trained(method="ridge", ship="always")
    assert always.get_finetuned_model().adapter == kept.adapter
    assert always.report.verdict.reason == "better not"


@pytest.mark.parametrize("ship", ["proven", "always"])
def test_where_nothing_is_better_there_is_no_candidate(trained, options, monkeypatch, ship):
    choose = selection.CrossFittedScores.choose

    def nothing(self: Any, specs: Any, among: Any) -> Any:
        return choose(self, specs, among) if not among.all() else selection.IDENTITY

    monkeypatch.setattr(selection.CrossFittedScores, "choose", nothing)
    engine = trained(method="ridge", ship=ship)
    folder = options["model_output_path"]
    assert not folder.with_name("adapter.candidate").exists()
    assert engine.candidate.adapter.is_identity
    assert engine.report.holds == "the base model, unchanged; nothing was better"
    assert engine.report.to_dict()["candidate"] is None
    assert "held-out queries, by what other folds chose; it is not saved" in str(engine.report)
    with pytest.raises(FolderError, match=r"no candidate to ship: there is no adapter.candidate"):
        package.ship_candidate(folder)
    engine.candidate.save_pretrained(folder.with_name("adapter.candidate"))
    with pytest.raises(FolderError, match=r"no candidate to ship: adapter.candidate is the base"):
        package.ship_candidate(folder)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", sorted({*SPECS} - {"linear"}))
def test_every_method_can_be_asked_for_by_name(trained, options, method):
    base = Skewed(embed_batch_size=64)
    adapts = "both" if SPECS[method].moves_documents else "query"
    engine = trained(None, base, method=method, adapts=adapts, ship="always")
    tried = {name.split("(")[0] for name in engine.report.choice.gains}
    assert tried == {"identity", method}
    model = engine.get_finetuned_model()
    assert np.isfinite(model.get_query_embedding("what apple? red?")).all()
    loaded = package.AdaptedEmbedding.from_pretrained(options["model_output_path"], base)
    assert loaded.adapter == model.adapter


def test_a_model_that_moves_documents_serves_an_index(things, trained, monkeypatch):

    monkeypatch.setattr(selection.CrossFittedScores, "choose", lambda self, specs, among: specs[-1])
    base = Skewed(embed_batch_size=64)
    engine = trained(None, base, method="nudge_n", adapts="both", ship="always")
    model = engine.get_finetuned_model()
    assert model.adapter.adapts_documents

    def found_first(embed_model: BaseEmbedding) -> int:
        retriever = index_of(things.corpus, embed_model).as_retriever(similarity_top_k=1)
        best = {query: retriever.retrieve(text)[0] for query, text in things.queries.items()}
        return sum(node.node_id == things.relevant_docs[query][0] for query, node in best.items())

    assert found_first(model) > found_first(base)
    # A text that it does not know keeps the vector of the base model.
    unknown = "an addition about nothing"
    assert model.get_text_embedding(unknown) == pytest.approx(base.get_text_embedding(unknown))


IDENTITY = package.LinearAdapter.identity(16)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dataset": {}}, r"dataset: expected an EmbeddingQA.*got dict"),
        ({"model": "local:x"}, r"embed_model: 'local:x' names no model here"),
        ({"model": 7}, r"embed_model: expected a LlamaIndex.*got int"),
        ({"lr": 0.1}, 'Unknown argument "lr". Did you mean "learning_rate"'),
        ({"optimiser_class": 1}, 'Did you mean "optimizer_class"'),
        ({"method": "magic"}, "method: expected one of auto, .* got 'magic'"),
        ({"adapts": "documents"}, "adapts: expected one of query, both, got 'doc"),
        ({"ship": "never"}, "ship: expected one of proven, always, got 'never'"),
        ({"start": "zero"}, "start: expected one of whitening, identity"),
        ({"expect": 1.2}, "expect: expected a number >= 0 and <= 1, got 1.2"),
        ({"expect": "0.5"}, "expect: expected a number >= 0 and <= 1, got '0.5'"),
        ({"epochs": -1}, "epochs: expected a whole number >= 1"),
        ({"optimizer_params": [("lr", 0.1)]}, "optimizer_params: expected a dict.*got list"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
        ({"device": "gpu"}, "device: expected None or one this machine has.*got 'gpu'"),
        ({"method": []}, "method: expected at least one"),
        ({"checkpoint_save_steps": 0}, "checkpoint_save_steps"),
        ({"val_dataset": "dev.json"}, "val_dataset: expected an Embedding.*got str"),
        ({"method": "ridge", "adapter_model": IDENTITY}, 'method="ridge" starts where it sees fit'),
        ({"adapter_model": torch.nn.Linear(16, 16)}, "expected a LinearAdapter.*got Linear "),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_embedded(engine_of, base, wrong, message):
    with pytest.raises(OptionError, match=message):
        engine_of(**wrong)
    assert base.asked == []


@pytest.mark.parametrize("place", ["adapter", "adapter.candidate"])
def test_a_folder_with_other_files_is_refused_before_embedding(place, engine_of, base, tmp_path):
    (tmp_path / place).mkdir()
    (tmp_path / place / "thesis.tex").write_text("precious")
    with pytest.raises(FolderError, match=r"holds other files \(thesis.tex\)"):
        engine_of(method="ridge").finetune()
    engine = engine_of(model_output_path=tmp_path / place / "thesis.tex" / "adapter")
    with pytest.raises(FolderError, match=r"cannot be written \((File exists|Not a directory)\)"):
        engine.finetune()
    assert base.asked == []


def test_dimensions_that_do_not_fit_are_refused_before_the_texts_are_embedded(trained, base):
    with pytest.raises(ShapeError, match=r"dim: expected 16, as the base model gives, got 384\."):
        trained(dim=384)
    with pytest.raises(ShapeError, match=r"adapter_model: expected 16 → 16.*got 8 → 8"):
        trained(adapter_model=package.LinearAdapter.identity(8))
    assert {text for _, text in base.asked} == set(PROBE_TEXTS)


def test_too_few_queries_are_an_error_or_keep_the_base_model_and_say_so(trained):
    one = Dataset({"q": "why?"}, {"d": "because"}, {"q": ["d"]})
    with pytest.raises(errors.DatasetError, match=r"1 leave.*Add queries, or pass val_dataset"):
        trained(one, method="linear")
    engine = trained(one)
    said = "keep the base model: Cross-fitting in 5 folds needs at least 5 queries, got 1"
    assert engine.report.verdict == said
    assert engine.report.headline[0] == "saved: the base model, unchanged"
    assert engine.get_finetuned_model().adapter == IDENTITY


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({}, "auto"),
        ({"seed": 3, "ship": "always", "bias": False}, "auto"),
        ({"epochs": 4}, "linear"),
        ({"optimizer_params": {"lr": 0.1}}, "linear"),
        ({"adapter_model": IDENTITY}, "linear"),
        ({"model_checkpoint_path": "there"}, "linear"),
        ({"epochs": 4, "method": "auto"}, "auto"),
        ({"epochs": 4, "adapts": "both"}, "auto"),
        ({"method": ("auto", "nudge"), "adapts": "both"}, ["auto", "nudge"]),
    ],
)
def test_who_speaks_of_a_training_loop_means_linear_and_all_others_auto(given, method, engine_of):
    assert engine_of(**given)._options_for({}).method == method


def test_diverging_training_leaves_what_was_saved_before(trained, tmp_path):
    trained(epochs=1)
    before = (tmp_path / "adapter" / "adapter.safetensors").read_bytes()
    with pytest.raises(errors.TrainingError, match="Lower the learning rate"):
        trained(learning_rate=1e6)
    assert (tmp_path / "adapter" / "adapter.safetensors").read_bytes() == before


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_engine_is_a_base_embedding_finetune_engine():
    pytest.importorskip("llama_index.embeddings.adapter", reason="the old package is missing")
    from llama_index.finetuning.types import BaseEmbeddingFinetuneEngine as Theirs

    assert issubclass(Engine, Theirs)  # which is imported after ours, and there before it
    code = "from llama_index.finetuning.types import BaseEmbeddingFinetuneEngine as Theirs\n"
    code += "from llama_index_embeddings_adapted import EmbeddingAdapterFinetuneEngine as Engine\n"
    assert fresh(code + "print(int(issubclass(Engine, Theirs)))") == 1


def test_a_network_of_ones_own_is_not_taken_for_one_with_the_same_tensors(engine_of):
    from llama_index.embeddings.adapter import LinearLayer

    class Squashed(LinearLayer):
        def forward(self, embed: torch.Tensor) -> torch.Tensor:
            return torch.tanh(4 * super().forward(embed))

    with pytest.raises(OptionError, match="its forward computes something else"):
        engine_of(adapter_model=Squashed(16, 16))


def test_a_query_that_stands_in_the_corpus_is_trained_and_judged_without_itself(trained):
    words = [f"w{number} w{number + 1} w{number + 2} w{number * 7 % 50}" for number in range(60)]
    corpus = {f"d{number}": text for number, text in enumerate(words)}
    relevant = {name: [f"d{(number + 1) % 60}"] for number, name in enumerate(corpus)}
    data = Dataset(corpus, corpus, relevant)
    engine = trained(data, epochs=2)
    assert "60 queries" not in engine.report.verdict
    assert "(ignore_identical_ids)" in str(engine.report)
    plain = trained(data.scored(ignore_identical_ids=False), epochs=2)
    assert plain.report.base["hit_rate@1"] == 0.0 < engine.report.base["hit_rate@1"]


@pytest.mark.parametrize("method", ["whitening", "linear"])
def test_numbers_of_numpy_and_a_device_of_torch_are_taken(method, things, trained):
    numbers = {"seed": np.int64(3), "expect": np.float32(0.5), "device": torch.device("cpu")}
    loop = {"epochs": np.int64(1), "learning_rate": np.float32(1e-3), "bias": np.bool_(True)}
    engine = trained(things, method=method, **numbers, **(loop if method == "linear" else {}))
    assert json.dumps(engine.report.to_dict())
    assert engine.report.settings["seed"] == 3


@pytest.mark.parametrize("name", ["model_checkpoint_path", "report_path"])
def test_nothing_is_written_into_the_folder_that_saving_replaces(name, engine_of, tmp_path):
    engine = engine_of(epochs=1, **{name: tmp_path / "adapter" / "inside"})
    with pytest.raises(OptionError, match=f"{name}: expected a path outside"):
        engine.finetune()
    assert not (tmp_path / "adapter").exists()


def test_what_linear_alone_heeds_or_does_not_says_so(engine_of):
    with pytest.warns(UserWarning, match='bias: heeded by method="linear" only'):
        engine_of(method="whitening", bias=False).finetune()
    with pytest.warns(UserWarning, match='method="linear" moves queries only'):
        engine_of(method="linear", adapts="both", epochs=1).finetune()


def test_calls_of_the_old_model_and_datasets_of_the_old_class_work(things, base, trained, quiet):
    adapter = (engine := trained(epochs=1)).candidate.adapter
    plain = package.AdaptedEmbedding(base, adapter).get_query_embedding("x")
    again = package.AdaptedEmbedding(base, adapter, torch.nn.Linear, device="cpu")
    assert again.get_query_embedding("x") == plain
    assert engine.get_finetuned_model(device="cpu", adapter_cls=None).adapter
    old = SimpleNamespace(**{name: getattr(things, name) for name in OBJECTS})
    assert things.merged(old) == things
    assert package.mine_hard_negatives(old, base, **quiet).hard_negatives


def test_a_written_query_is_none_of_people_because_its_id_is_one_of_theirs(things, trained):
    renamed = {name: f"{text} please" for name, text in things.queries.items()}
    written = Dataset(renamed, things.corpus, things.relevant_docs).with_provenance("llm")
    mine = things.subset(list(renamed)[:80]).with_provenance("human")
    report = trained(written, val_dataset=mine, method="whitening").report
    assert report.settings["judged_on"] == {"human": 80}


@pytest.mark.parametrize("method", ["whitening", "linear"])
@pytest.mark.parametrize("people", [40, 90])
def test_beside_written_queries_people_judge_alone_or_are_shown_alone(
    people, method, things, engine_of
):
    mine = [name for name in things.queries if name.startswith("what")][:people]
    written = things.subset([name for name in things.queries if name not in mine])
    train, val = written.with_provenance("llm"), things.subset(mine).with_provenance("human")
    engine = engine_of(train, val_dataset=val, method=method)
    engine.finetune()
    report = engine.report
    judged = report.settings["judged_on"]
    if people >= verdict.FEWEST_ALONE:
        assert set(judged) == {"human"}
        assert report.people is report.to_dict()["people"] is None
    else:
        assert set(judged) == {"human", "llm"}
        assert report.people.queries <= people < report.overall.queries  # each once
        assert f"of people alone: {report.people}" in str(report)
        assert report.verdict.decision is not Decision.SHIP
