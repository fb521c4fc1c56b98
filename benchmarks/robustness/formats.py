"""Everything that is read from outside: valid examples of each format, and what reads it."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from benchmarks.robustness import cheap, mutations
from benchmarks.robustness.mutations import Tree
from llama_index_embeddings_adapted import (
    AdaptedEmbedding,
    EmbeddingQAFinetuneDataset,
    LinearAdapter,
    LowRankAdapter,
    MemoryRetriever,
)
from llama_index_embeddings_adapted.adapters import composites, maps, saving
from llama_index_embeddings_adapted.adapters.saving import QuerySketch
from llama_index_embeddings_adapted.cli.inputs import read_pairs
from llama_index_embeddings_adapted.cli.options import read_run_config
from llama_index_embeddings_adapted.composed import embedding, small_model
from llama_index_embeddings_adapted.core import files as folders
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.core.encoded import Qrels
from llama_index_embeddings_adapted.encoding.base_model import Fingerprint
from llama_index_embeddings_adapted.encoding.cache import VectorCache
from llama_index_embeddings_adapted.operations.folder import as_text, inspect_adapter
from llama_index_embeddings_adapted.questions.answers import read_questions
from llama_index_embeddings_adapted.questions.llm import AnswerCache, CachedAnswer
from llama_index_embeddings_adapted.serving.memory import AnswerMemory

DIM = cheap.DIM
BASE = cheap.WordsEmbedding()


@dataclass(frozen=True)
class Format:
    """A format that strangers write."""

    seeds: tuple[Callable[[Path], object], ...]  # each writes a valid example into a folder
    read: Callable[[Path], object]  # and uses what is in a folder

    @functools.cached_property
    def trees(self) -> list[Tree]:
        found = []
        for write in self.seeds:
            with tempfile.TemporaryDirectory() as name:
                write(Path(name))
                found.append(mutations.read(Path(name)))
        return found


def pairs() -> EmbeddingQAFinetuneDataset:
    """Return a small dataset with everything that a file can hold."""
    corpus = {f"d{n}": f"document {n} about boats" for n in range(4)}
    queries = {f"q{n}": f"which boat is {n}" for n in range(4)}
    relevant = {f"q{n}": [f"d{n}", f"d{(n + 1) % 4}"] for n in range(4)}
    more: Any = {"grades": {"q0": {"d0": 2.0, "d1": 1.0}}, "hard_negatives": {"q1": ["d3"]}}
    return EmbeddingQAFinetuneDataset(queries, corpus, relevant, **more)


def _random(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _adapters() -> list[Any]:
    linear, few = LinearAdapter(_random(DIM, DIM), _random(DIM)), l2_normalize(_random(5, DIM))
    gate = composites.Gate(few, few[:2], few[2:], np.ones(2), np.ones(len(composites.FEATURES) + 1),
                -np.ones(len(composites.FEATURES)), np.ones(len(composites.FEATURES)))  # fmt: skip
    nudges = maps.NudgeAdapter.of(np.arange(3, dtype=np.uint64), _random(3, DIM))
    return [
        linear,
        LowRankAdapter.identity(DIM, rank=4),
        maps.TwoLayerAdapter.identity(DIM, hidden=4),
        composites.GatedAdapter(linear, maps.KernelAdapter(linear, few, few), gate),
        maps.KernelAdapter(linear, few, few),
        composites.StackedAdapter(
            LinearAdapter(_random(DIM, DIM), shared=True), nudges, maps.UnitAdapter(DIM)
        ),
    ]


def _save(adapter: Any) -> Callable[[Path], None]:
    overall = {"queries": 9, "base": {"ndcg@10": 0.5}, "adapted": {"ndcg@10": 0.6}}
    report = {
        "verdict": "keep the base model",
        "overall": {**overall, "difference": {"low": 0.0, "high": 0.2}},
        "data": {"queries": 1, "documents": 2},
        "settings": {"seed": 0},
    }

    def write(folder: Path) -> None:
        training, sketch = {"report": report}, QuerySketch.of(_random(9, DIM))
        saving.save(folder, saving.Saved(adapter, training=training, sketch=sketch), BASE)

    return write


def _use_adapter(folder: Path) -> object:
    as_text(inspect_adapter(folder))
    AdaptedEmbedding.from_pretrained(folder, BASE).get_query_embedding("a boat")
    model = AdaptedEmbedding.from_pretrained(folder)
    return model.get_text_embedding("a boat"), repr(model), model.to_dict()


def _save_old(**tensors: Any) -> Callable[[Path], None]:
    """A folder as ``llama-index-finetuning`` writes it."""

    def write(folder: Path) -> None:
        import torch

        state = {name.replace("__", "."): torch.tensor(value) for name, value in tensors.items()}
        torch.save(state, folder / "pytorch_model.bin")
        (folder / folders.CONFIG).write_text('{"in_features": 4, "add_residual": true}')

    return write


def _compose(folder: Path) -> None:
    fingerprint = Fingerprint("WordsEmbedding", np.ones((6, DIM), dtype=np.float32))
    (folder / embedding.SMALL).mkdir(parents=True)
    (folder / embedding.SMALL / "modules.json").write_text("[]")
    digests = small_model.digests(folder / embedding.SMALL)
    base = {"name": "WordsEmbedding", "dim": DIM}
    config = {"format_version": 1, "composed": {"weight": 0.5, "files": digests}}
    config |= {"base_model": base, "training": {}}
    (folder / folders.CONFIG).write_text(json.dumps(config))
    probes = folders.to_bytes({folders.PROBES: fingerprint.probes})
    (folder / embedding.PROBES).write_bytes(probes)


def _remember(folder: Path) -> None:
    answers = Qrels.from_lists([[0], [1, 0]], [[1.0], [1.0, 0.5]])
    memory = AnswerMemory(l2_normalize(_random(2, DIM)), answers, ("a", "b"))
    found = MemoryRetriever(_retriever(), memory, embed_model=BASE, weight=0.5, top_k=3)
    found.save_pretrained(folder)


@functools.cache
def _retriever() -> Any:
    nodes = [TextNode(id_=name, text=f"boat {name}") for name in "abc"]
    return VectorStoreIndex(nodes, embed_model=BASE).as_retriever()


def _use_memory(folder: Path) -> object:
    found = MemoryRetriever.from_pretrained(folder, _retriever(), BASE)
    return found.retrieve("which boat")


OPTIONS = {"finetune": ["source", "base", "epochs", "method"], "evaluate": ["source", "base", "ks"]}
_TOML = 'base = "minilm"\n[finetune]\nepochs = 3\nmethod = "auto"\n[evaluate]\nks = [1, 5]\n'


def _keep(folder: Path) -> None:
    with AnswerCache(folder, {"model": "m"}) as cache:
        for number in range(5):
            cache.put(cache.key(number), CachedAnswer(f"1. What is {number}?", 3, 4, 0.1))


def _read_journal(folder: Path) -> object:
    with AnswerCache(folder, {"model": "m"}) as cache:
        answers = [cache.get(cache.key(number)) for number in range(5)]
        cache.put("new", CachedAnswer("text"))
    billed = sum((a.prompt_tokens or 0) + (a.completion_tokens or 0) for a in answers if a)
    return billed, [read_questions(a.text, limit=3) for a in answers if a]


_PROBES = Fingerprint("model", _random(6, DIM))
_TEXTS = [f"text {number}" for number in range(20)]


def _fill(folder: Path) -> None:
    with closing(VectorCache(folder, _PROBES)) as cache:
        cache.put("query", _TEXTS, _random(20, DIM))


def _use_cache(folder: Path) -> object:
    with closing(VectorCache(folder, _PROBES)) as cache:
        _, found = cache.get("query", _TEXTS)
        assert np.isfinite(found).all(), "vectors that are no numbers"
        cache.put("query", ["another"], _random(1, DIM))
        return found


ANSWERS = [
    '```json\n{"questions": ["Who ran the harbour?", "When did it open?"]}\n```',
    "1. **Question:** Who ran the harbour?\n2) When did it open?\n- And why",
    "<think>hm</think>\nQ1: Who ran the harbour?\n\nQ2: «When did it open?»",
    'Here are two:\n\n["Who ran it?", {"query": \'x\'}]',
]

FORMATS = {
    "dataset JSON": Format(
        (lambda folder: pairs().save_json(folder / "pairs.json"),),
        lambda folder: _used(read_pairs(folder / "pairs.json", "train"), folder),
    ),
    "BEIR folder": Format(
        (lambda folder: pairs().to_beir(folder), lambda folder: _zipped(folder)),
        lambda folder: _used(EmbeddingQAFinetuneDataset.from_beir(folder), folder),
    ),
    "adapter folder": Format(tuple(map(_save, _adapters())), _use_adapter),
    "folder of llama-index-finetuning": Format(
        (
            _save_old(linear__weight=_random(4, 4), linear__bias=_random(4)),
            _save_old(
                linear1__weight=_random(3, 4),
                linear1__bias=_random(3),
                residual_weight=0.5,
                linear2__weight=_random(4, 3),
                linear2__bias=_random(4),
            ),
        ),
        lambda folder: inspect_adapter(folder) and saving.load(folder).adapter.apply(_random(4)),
    ),
    "composed folder": Format((_compose,), embedding.ComposedEmbedding._load),
    "memory folder": Format((_remember,), _use_memory),
    "run configuration": Format(
        (lambda folder: (folder / "run.toml").write_text(_TOML),),
        lambda folder: read_run_config(folder / "run.toml", "finetune", OPTIONS),
    ),
    "journal of answers": Format((_keep,), _read_journal),
    "vector cache": Format((_fill,), _use_cache),
}


def _zipped(folder: Path) -> None:
    import gzip

    pairs().to_beir(folder)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()


def _used(dataset: EmbeddingQAFinetuneDataset, folder: Path) -> object:
    """A dataset that was accepted can be split, written and read again."""
    dataset.save_json(folder / "again.json")
    assert EmbeddingQAFinetuneDataset.from_json(folder / "again.json") == dataset
    dataset.to_beir(folder / "again")
    assert all(np.isfinite(dataset.grade(q, d)) for q, ds in dataset.relevant_docs.items()
               for d in ds)  # fmt: skip
    return dataset.fingerprint
