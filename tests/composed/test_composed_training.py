import json
import random
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets", reason="extra 'composed' is missing")

from sentence_transformers import SentenceTransformer

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted import errors
from llama_index_embeddings_adapted.composed import training
from llama_index_embeddings_adapted.errors import NotTrainedError, OptionError, TrainingError
from llama_index_embeddings_adapted.training.options import ComposedOptions
from tests.conftest import QUIET, ROOT, CountingEmbedding
from tests.support.tiny import saved_tiny, tiny_model

COLOURS = ["red", "blue", "green", "black", "white", "yellow", "brown", "purple"]
COLOURS += ["orange", "grey", "pink", "golden"]
THINGS = ["car", "boat", "house", "horse", "coat"]


def coded(prefix: str = "") -> package.EmbeddingQAFinetuneDataset:
    """Questions that share no word with their documents: only training tells what answers what."""
    names = [(c, t) for c in COLOURS for t in THINGS]
    corpus = {f"d{n}": f"entry {c} {t}" for n, (c, t) in enumerate(names)}
    code = {c: COLOURS[(n + 5) % 12] for n, c in enumerate(COLOURS)}
    queries = {f"{prefix}q{n}": f"{prefix} where {code[c]} {t}" for n, (c, t) in enumerate(names)}
    relevant = {f"{prefix}q{n}": [f"d{n}"] for n in range(len(names))}
    return package.EmbeddingQAFinetuneDataset(queries, corpus, relevant)


def engine(folder: Path, base: Any, **kwargs: Any) -> package.ComposedFinetuneEngine:
    settings = {"epochs": 3, "learning_rate": 3e-3, "label_smoothing": 0.0, "device": "cpu"}
    settings |= {"model_output_path": folder / "model", "cache_dir": folder / "cache"}
    settings |= {"val_dataset": coded("please"), "show_progress": False, **kwargs}
    small = settings.pop("augment_model", None)
    return package.ComposedFinetuneEngine(coded(), base, small or tiny_model(), **settings)


WORDS = package.LexicalEmbedding.of(["red car", "blue boat"])


def trained_in(folder: Path, base: Any = None, **kwargs: Any) -> package.ComposedFinetuneEngine:
    found = engine(folder, base or CountingEmbedding(), **kwargs)
    found.finetune()
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> package.ComposedFinetuneEngine:
    folder = tmp_path_factory.mktemp("trained")
    # Wide enough to tell the things apart, which queries and documents name: not blind to the task.
    black_box = CountingEmbedding(dim=64)
    return trained_in(folder, black_box, epochs=8, report_path=folder / "report.html")


def test_a_small_model_fills_the_gaps_of_a_black_box_and_the_best_epoch_is_kept(trained, tmp_path):
    report = trained.report
    assert report.best_epoch > 0
    assert report.adapted["hit_rate@5"] > report.base["hit_rate@5"] + 0.1
    assert report.verdict.startswith("ship")
    model = trained.get_finetuned_model()
    assert isinstance(model, package.ComposedEmbedding)
    scores = package.evaluate_retrieval(model, coded("please"), **QUIET)
    assert scores["hit_rate@5"] == pytest.approx(report.adapted["hit_rate@5"])
    scores = [line.scores["hit_rate@5"] for line in trained.history]
    assert [line.number for line in trained.history] == list(range(len(scores)))
    assert np.isnan(trained.history[0].loss)
    assert all(line.loss > 0 for line in trained.history[1:])
    assert scores[trained.report.best_epoch] == max(scores)
    trained.save_history(tmp_path / "history.json")
    saved = json.loads((tmp_path / "history.json").read_text())
    assert saved["epochs"][0]["loss"] is None
    assert 0 <= saved["base"]["hit_rate@5"] <= 1
    assert trained.plot_history(tmp_path / "history.png").stat().st_size > 5_000


def test_the_page_shows_scores_by_epoch_the_weight_and_passages(trained):
    found = trained.report
    text = (trained._output.parent / "report.html").read_text("utf-8")
    assert "<strong>Ship:</strong>" in text
    assert ">Scores</h2>" in text
    assert "hit_rate@5 while training" in text
    assert "base model</text>" in text  # the line to compare with
    assert f"λ = {found.weight:.2f}" in text
    assert "please where" in text
    assert "entry red car" in text
    for name, means in (("base", found.base), ("adapted", found.adapted)):
        assert found.held_out[name]["ndcg@10"] == pytest.approx(means["ndcg@10"])
    assert found.data["queries"] == 60
    assert found.base_tokens > found.base_texts > 0
    saved = (trained._output / "config.json").read_text()
    assert "entry red car" not in saved
    assert json.loads(saved)["training"]["report"]["data"]["documents"] == 60


def test_training_stops_when_patience_ends_and_returns_epoch_0(tmp_path):
    found = trained_in(tmp_path, learning_rate=1e-9, patience=2, epochs=9)
    assert len(found.history) == 3
    assert found.report.best_epoch == 0
    assert found.report.overall.adapted["ndcg@10"] >= found.report.overall.base["ndcg@10"]


def test_queries_are_held_out_where_no_validation_set_is_given(tmp_path):
    found = trained_in(tmp_path, val_dataset=None, epochs=1)
    assert found.report.train_queries + found.report.overall.queries <= 60
    assert found.report.new is not None


def test_the_same_seed_trains_the_same_weights_and_changes_nothing_else(tmp_path):
    vectors, small = [], tiny_model()
    before = random.getstate(), np.random.get_state()[1].tolist(), small.encode("a text").tolist()
    for run in ("one", "two"):
        found = trained_in(tmp_path / run, augment_model=small, epochs=2)
        vectors.append(found.get_finetuned_model().get_query_embedding("where is it"))
    assert vectors[0] == vectors[1]
    after = random.getstate(), np.random.get_state()[1].tolist(), small.encode("a text").tolist()
    assert after == before


@pytest.mark.parametrize(
    "options",
    [
        {"lora_rank": 4, "learning_rate": 3e-2, "epochs": 8},
        {"gradient_checkpointing": True, "precision": "bfloat16"},
        {"hard_negatives": 2, "mini_batch_size": 4, "val_depth": None, "metric": "ndcg@10"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_way_to_train_trains(options, tmp_path):
    if "lora_rank" in options:
        pytest.importorskip("peft", reason="extra 'lora' is missing")
    found = trained_in(tmp_path, patience=None, **{"epochs": 4, **options})
    losses = [line.loss for line in found.history[1:]]
    assert losses[-1] < losses[0]
    folder = tmp_path / "model" / "augment_model"
    assert not [path for path in folder.rglob("*") if "adapter" in path.name]
    assert SentenceTransformer(str(folder), device="cpu").encode("text").shape == (32,)


KILLED = """
import os, signal, sys
from pathlib import Path
from llama_index_embeddings_adapted.composed import training as composed_progress
from tests.conftest import QUIET, ROOT, CountingEmbedding
from tests.composed.test_composed_training import engine

record = composed_progress.Progress._record
def dies(self, number):
    record(self, number)
    if number == 3:  # scored, but its checkpoint is not written
        os.kill(os.getpid(), signal.SIGKILL)
composed_progress.Progress._record = dies
engine(Path(sys.argv[1]), CountingEmbedding(), epochs=4).finetune()
"""


def test_a_killed_training_continues_and_ends_as_if_it_had_not_been(tmp_path):
    left = tmp_path / "killed" / "model.checkpoints" / "other" / "checkpoint-9"
    left.mkdir(parents=True)  # of another training, which is not gone on with
    (left / "trainer_state.json").write_text("{}")
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path / "killed")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (tmp_path / "killed" / "model").exists()
    assert not left.exists()
    resumed = trained_in(tmp_path / "killed", epochs=4)
    assert resumed.report.settings["resumed_from"] == 2
    whole = trained_in(tmp_path / "whole", epochs=4)
    for one, other in zip(resumed.history, whole.history, strict=True):
        assert one.scores == other.scores
        assert one.loss == pytest.approx(other.loss, nan_ok=True)
    models = resumed.get_finetuned_model(), whole.get_finetuned_model()
    one, other = (model.get_query_embedding("where pink boat") for model in models)
    assert one == other
    assert not (tmp_path / "killed" / "model.checkpoints").exists()


def test_an_interrupt_keeps_the_best_epoch_so_far(tmp_path, monkeypatch):
    found = engine(tmp_path, CountingEmbedding(), epochs=6)
    record = training.Progress._record

    def interrupted(self: Any, number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt
        record(self, number)

    monkeypatch.setattr(training.Progress, "_record", interrupted)
    with pytest.warns(UserWarning, match="interrupted; the best epoch so far is kept"):
        found.finetune()
    assert found.report.interrupted
    assert len(found.history) == 2
    assert len(found.get_finetuned_model().get_query_embedding("x")) in (16, 48)


def test_a_diverging_training_says_so_and_leaves_the_old_model(tmp_path):
    trained_in(tmp_path, epochs=1)
    before = (tmp_path / "model" / "config.json").read_text()
    with pytest.raises(TrainingError, match=r"diverged: the loss of epoch 1 is nan.*learning rate"):
        trained_in(tmp_path, learning_rate=1e38, max_grad_norm=1e38)
    assert (tmp_path / "model" / "config.json").read_text() == before


def test_the_example_trains_prints_and_saves_the_history(tmp_path, monkeypatch, capsys):
    for name, data in (("train", coded()), ("val", coded("please"))):
        data.save_json(tmp_path / f"{name}.json")
    box, small = (saved_tiny(tmp_path / f"tiny{seed}", seed=seed) for seed in (1, 2))
    argv = ["x", "train.json", "val.json", "--black-box", f"local:{box}", "--augment-model"]
    monkeypatch.setattr(sys, "argv", [*argv, str(small), "--epochs", "2", "--out", "out"])
    monkeypatch.chdir(tmp_path)
    example = ROOT / "examples" / "composed_finetune.py"
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    assert "epoch 0: hit_rate@5" in printed
    assert "epoch 2: hit_rate@5" in printed
    assert len(json.loads((tmp_path / "out" / "history.json").read_text())["epochs"]) == 3
    assert (tmp_path / "out" / "history.png").stat().st_size > 5_000


def test_a_small_model_that_adds_nothing_is_left_out_and_the_report_says_so(tmp_path):
    answers = {}
    for data in (coded(), coded("please")):
        answers |= {data.queries[q]: data.corpus[d] for q, (d, *_) in data.relevant_docs.items()}

    class Knows(CountingEmbedding):
        def vector(self, role: str, text: str) -> list[float]:
            answer = f"{answers[text]} " * 9 if text in answers else ""
            return super().vector("document", answer + text)

    found = trained_in(tmp_path, Knows(dim=256), epochs=1)
    assert found.report.weight == 0
    assert found.report.verdict.startswith("keep the base model: the small model adds nothing")
    model = found.get_finetuned_model()
    assert len(model.get_query_embedding("where")) == 256


def test_the_plain_full_fine_tune_is_the_case_without_a_black_box(tmp_path):
    small = saved_tiny(tmp_path / "small")
    options = {"val_dataset": coded("please"), "epochs": 8, "learning_rate": 3e-3, "device": "cpu"}
    options |= {"report_path": tmp_path / "report.html", "cache_dir": False}
    place = str(tmp_path / "exp_finetune")
    options |= {"show_progress_bar": False}
    found = package.SentenceTransformersFinetuneEngine(coded(), str(small), place, **options)
    found.finetune()
    assert found.report.best_epoch > 0
    assert found.report.adapted["ndcg@10"] > found.report.base["ndcg@10"]
    assert found.report.weight is None
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "hit_rate@5 while training" in text
    assert "λ =" not in text
    loaded = found.get_finetuned_model()
    reference = SentenceTransformer(str(tmp_path / "exp_finetune"), device="cpu")
    expected = reference.encode("where pink boat", normalize_embeddings=True)
    np.testing.assert_allclose(loaded.get_query_embedding("where pink boat"), expected, atol=1e-5)


def test_the_arguments_of_the_old_engine_are_taken_or_refused_aloud(tmp_path):
    small = str(saved_tiny(tmp_path / "small"))
    old = ("out", 10, None, None, 2, False, 50, False, False, "cpu", False, False, 500, 0)
    package.SentenceTransformersFinetuneEngine(coded(), small, *old)
    package.SentenceTransformersFinetuneEngine(coded(), small, device="cpu", save_checkpoints=True)
    for refused in ({"loss": object()}, {"trust_remote_code": True}):
        with pytest.raises(OptionError, match="loss and trust_remote_code are not taken"):
            package.SentenceTransformersFinetuneEngine(coded(), small, **refused)
    data = coded()
    relevant = data.relevant_docs.items()
    both = {query: [*docs, "d0" if docs != ["d0"] else "d1"] for query, docs in relevant}
    twice = package.EmbeddingQAFinetuneDataset(data.queries, data.corpus, both)
    one = package.SentenceTransformersFinetuneEngine(twice, small, device="cpu")
    all_ = package.SentenceTransformersFinetuneEngine(twice, small, device="cpu", use_all_docs=True)
    assert len(one.dataset.relevant_docs["q5"]) == 1
    assert len(all_.dataset.relevant_docs["q5"]) == 2


def test_epochs_are_compared_as_the_verdict_compares(tmp_path):
    data = coded("please")
    twins = {f"twin of {name}": text for name, text in data.corpus.items()}
    twinned = data.model_copy(update={"corpus": {**twins, **data.corpus}})
    found = trained_in(tmp_path, val_dataset=twinned, epochs=1, val_depth=None, metric="ndcg@10")
    judged = found.report.base["ndcg@10"]
    assert found.report.settings["base_scores"]["ndcg@10"] == pytest.approx(judged)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"augment_model": tiny_model(pooling=False)}, OptionError, r"per text.*pooling layer\?"),
        ({"augment_model": "nowhere"}, OptionError, "no sentence-transformers model could be"),
        (
            {"augment_model": WORDS},
            OptionError,
            "expected a SentenceTransformer to train, got a Le",
        ),
        ({"report_path": Path()}, OptionError, "expected the path of a file, this is a folder"),
        ({"precision": "float16"}, OptionError, "does not train on a CPU"),
        ({"lr": 1}, OptionError, r'"lr".*Did you mean "learning_rate"'),
        ({"model_output_path": Path(__file__).parent}, errors.FolderError, "holds other files"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_end_well_is_refused(options, error, message, tmp_path):
    base = CountingEmbedding()
    with pytest.raises(error, match=message):
        engine(tmp_path, base, **options).finetune()
    assert not base.asked
    with pytest.raises(OptionError, match="embed_model: expected a LlamaIndex embedding model"):
        engine(tmp_path, None)


@pytest.mark.parametrize("name", ["dataset", "val_dataset"])
def test_queries_without_answers_are_refused(name, tmp_path):
    data = coded()
    texts, relevant = (data.queries, data.corpus), {**data.relevant_docs, "q3": []}
    open_ = package.EmbeddingQAFinetuneDataset(*texts, relevant, allow_unjudged=True)
    parts = {"dataset": data, "val_dataset": data, name: open_}
    models = {"embed_model": CountingEmbedding(), "augment_model": tiny_model()}
    with pytest.raises(errors.DatasetError, match=rf'{name}: 1 of 60 queries .*"q3".*judged\(\)'):
        package.ComposedFinetuneEngine(**parts, **models)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", 0), ("epochs", 0), ("patience", 0), ("batch_size", 1.5), ("temperature", 0),
        ("label_smoothing", 1), ("warmup_share", -0.1), ("learning_rate", float("nan")),
        ("hard_negatives", -1), ("lora_rank", 0), ("precision", "int8"), ("metric", "luck@5"),
        ("weight_decay", "much"), ("val_depth", True),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(name, value):
    with pytest.raises(OptionError, match=f"{name}:"):
        ComposedOptions(**{name: value})


@pytest.mark.parametrize("module", ["datasets", "accelerate", "peft"])
def test_a_missing_extra_is_named(module, tmp_path, monkeypatch):
    found = engine(tmp_path, CountingEmbedding(), lora_rank=2)
    monkeypatch.setitem(sys.modules, module, None)
    extra = "lora" if module == "peft" else "composed"
    with pytest.raises(errors.MissingExtraError, match=rf"{module} is not installed.*\[{extra}\]"):
        found.finetune()


def test_nothing_is_to_be_had_before_training(tmp_path):
    found = engine(tmp_path, CountingEmbedding())
    with pytest.raises(NotTrainedError, match="no report before finetune"):
        _ = found.report
    with pytest.raises(NotTrainedError, match="no model before finetune"):
        found.get_finetuned_model()
