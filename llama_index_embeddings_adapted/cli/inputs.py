"""What a user points at: a file of pairs, a BEIR folder, or documents to be cut into passages.

Models named by a line of text, as a command line or a configuration file has them; keys are read
from the environment only, by the classes that need them.
"""

from __future__ import annotations

import codecs
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llama_index.core import Document, SimpleDirectoryReader
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import LLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, MetadataMode

from ..core import files
from ..data.dataset import EmbeddingQAFinetuneDataset
from ..data.formats import read_corpus
from ..data.reading import NAMES, Omissions, encoding_of, read_lines
from ..data.records import queries_of
from ..errors import (
    AdaptedError,
    DatasetError,
    FolderError,
    OptionError,
    integration,
    nearest,
    quote_some,
)
from ..lexical.bm25 import BM25Index, Mixture
from ..questions.local_llama import LocalLlama
from ..questions.options import asked_in as asked_in
from ..questions.options import embedded_tokens
from ..serving.embedding import AdaptedEmbedding, resolve_embed_model
from .options import EMBEDDINGS, LLMS

_CORPUS = ("corpus.jsonl", "corpus.jsonl.gz")
_QUERIES = ("qrels", "queries.jsonl", "queries.jsonl.gz")
_ROWS = (".jsonl", ".ndjson", ".parquet")  # never prose
_RECORDS = (".json", ".csv", ".tsv", *_ROWS)
_ROLES = [role for role in NAMES if role != "provenance"]
_PROSE = (".txt", ".md", ".markdown", ".rst", ".html", ".htm")  # in any encoding
_LOOKED_AT = 8192  # bytes that tell text from other files
_BESIDE = ("", ".candidate", ".pairs.json", ".pairs.report.json", ".report.html")  # of an --out
_OURS = (b'"relevant_docs"', b"Skip to the verdict")  # in our JSON, in our pages

check_target = partial(files.check_target, error=OptionError)
check_target_folder = partial(files.check_target_folder, error=OptionError)
_MOST_OF_A_CHUNK, USUAL_CHUNK = 0.8, 512  # of what a model reads, in its tokens; in ours
_SMALL = {
    "questions_per_call": 1,
    "styles": ("question", "keywords"),
    "concurrency": 1,
    "num_questions_per_chunk": 1,  # about more passages instead
    "max_chunks": 120,  # less than ten minutes on two cores, where all passages may take hours
}


def page(
    report: str | None, default: Path | None, out: Path | None = None, read: Sequence[Path] = ()
) -> Path | None:
    """Return where a page goes and can be written, outside ``out``; None for nowhere.

    What the command has ``read`` is not written over.
    """
    if report is not None and report.lower() == "none":
        return None
    path = default if report is None else Path(report)
    if path is not None:
        if out is not None:
            files.check_outside("--report", path, out)
        _check_unread({path.resolve()}, read)
        check_target(path)
    return path


def _check_unread(written: set[Path], read: Sequence[Path]) -> None:
    if clash := {path for path in written.intersection(read) if path.is_file()}:
        raise OptionError(f"{min(clash)}: the command reads it. Write to another file.")


def check_dataset(path: Path) -> None:
    """Refuse, by an OptionError, a file that commands would not take for a dataset again."""
    if path.suffix.lower() != ".json":
        raise OptionError(f"{path}: expected a name that ends in .json. Write to {path.name}.json.")
    check_target(path)


def read_queries(path: Path, columns: Sequence[str] = ()) -> list[str]:
    """Return the queries of a file of rows, or of a text file of one per line."""
    existing(path, " Expected rows, or one query per line.")
    beir: Any = {"query": "text"} if path.name in _QUERIES else {}
    named = roles_of(columns) or beir
    return queries_of(path, named)[0] if holds_pairs(path) else read_lines(path)


def existing(path: Path, hint: str = "") -> Path:
    """Return the path, or raise an OptionError: there is nothing at it."""
    if not path.exists():
        raise OptionError(f"{path}: no such file or folder.{hint}")
    return path


def holds_pairs(path: Path) -> bool:
    """Return whether a path is a dataset, not documents to make one of, or raise an OptionError."""
    existing(path, " Expected a dataset (a file of rows, or a BEIR folder) or documents.")
    if path.is_dir():
        return _corpus_of(path) is not None and any((path / name).exists() for name in _QUERIES)
    return path.name.lower().removesuffix(".gz").endswith(_RECORDS) and _corpus_of(path) is None


def _corpus_of(path: Path) -> Path | None:
    """Return the file of documents as BEIR has them, a JSON line each, that a path is or holds."""
    inside = [path / name for name in _CORPUS] if path.is_dir() else [path]
    return next((file for file in inside if file.name in _CORPUS and file.is_file()), None)


def read_pairs(path: Path, split: str, columns: Sequence[str] = ()) -> EmbeddingQAFinetuneDataset:
    """Read a dataset with its note, or raise an OptionError, and a DatasetError for damage.

    ``columns`` say which column of rows has which role, as ``"query=question_en"``.
    """
    if not holds_pairs(path):
        raise OptionError(
            f"{path}: expected a dataset, that is a file of rows ({', '.join(_RECORDS)}, gzipped "
            "or not) or a folder with corpus.jsonl and qrels. Documents become one with: "
            "llama-index-adapted generate"
        )
    if path.is_dir() and columns:
        raise OptionError(f"--column: {path} is a BEIR folder, which has no rows. Leave it out.")
    if path.is_dir():
        return EmbeddingQAFinetuneDataset.from_beir(path, split)
    dataset = EmbeddingQAFinetuneDataset.from_file(path, **roles_of(columns))
    note = _note(path)
    found = files.read_json_object(note, error=DatasetError) if note.is_file() else {}
    if found.get("data") != dataset.fingerprint:
        return dataset  # the file was edited or replaced: the note is about another one
    report = found["report"] if isinstance(found.get("report"), dict) else None
    # Version 0.1 said only in its note that an LLM wrote the questions.
    return dataset.reported(report, synthetic=bool(found.get("synthetic")))


def roles_of(columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns that are named, by role, or raise an OptionError."""
    roles: dict[str, list[str]] = {}
    for column in columns:
        role, _, name = column.partition("=")
        if not name or role not in _ROLES:
            raise OptionError(
                f"--column: expected ROLE=NAME, as query=question, got {column!r}."
                f"{nearest(role, _ROLES)} Roles: {', '.join(_ROLES)}."
            )
        roles.setdefault(role, []).append(name)
    return roles


def save_pairs(dataset: EmbeddingQAFinetuneDataset, path: Path) -> None:
    """Write a dataset as JSON, and beside it what the filters made of its questions."""
    dataset.save_json(path)
    report = None if dataset.report is None else dataset.report.to_dict()
    files.write_json(_note(path), {"data": dataset.fingerprint, "report": report})


def read_texts(path: Path, read: Callable[[Path], EmbeddingQAFinetuneDataset]) -> list[str]:
    """Return the texts that an index holds: the corpus of a dataset, or documents as passages."""
    if holds_pairs(path):
        return list(read(path).corpus.values())
    passages = cut(read_documents(path), None, None, None)
    return [node.get_content(MetadataMode.EMBED) for node in passages]


def _note(path: Path) -> Path:
    return path.with_name(f"{path.stem}.report.json")


def cut(
    documents: list[BaseNode], model: BaseEmbedding | None, size: int | None, overlap: int | None
) -> list[BaseNode]:
    """Cut documents into passages, or raise a DatasetError; ids are relative paths and numbers."""
    read = embedded_tokens(model)
    size = size or (round(_MOST_OF_A_CHUNK * read) if read else USUAL_CHUNK)
    overlap = min(size - 1, size // 10 if overlap is None else overlap)
    splitter = SentenceSplitter(
        chunk_size=size, chunk_overlap=overlap, id_func=lambda part, whole: f"{whole.id_}#{part}"
    )
    nodes = [node for node in splitter(documents) if node.get_content().strip()]
    if not nodes:
        raise DatasetError("No text in any of the files.")
    return nodes


def read_documents(
    path: Path, written: Sequence[Path] = (), read: Sequence[Path] = ()
) -> list[BaseNode]:
    """Read documents as LlamaIndex does, one or more per file; ids are relative paths.

    Files that are not text are left out with a warning, unless LlamaIndex has a reader for them,
    and so are files of records; without one, what commands have ``written``, or ``read`` besides.
    Paths are no part of what is embedded or shown to an LLM. A BEIR ``corpus.jsonl`` without
    queries has ids of its own. No file to read is a DatasetError; a document that would be written
    over is an OptionError.
    """
    corpus = _corpus_of(path)
    if corpus is not None:
        omissions = Omissions(corpus)
        texts = read_corpus(corpus.with_name("corpus.jsonl"), omissions)
        omissions.tell()
        return [Document(id_=name, text=text) for name, text in texts.items()]
    root, found = path.parent, [path]
    _check_spared(path, written, read)
    if path.is_dir():
        saved = {
            file.parent.resolve() for file in path.rglob(files.CONFIG) if _is_saved(file.parent)
        }
        apart = _beside(saved.union(written)).union(read, map(_note, [*written, *read]))
        root, found = path, sorted(_files(path, apart - {path.resolve()}))
    documents = _load(path, root, found)
    parts = Counter[str]()
    for document in documents:
        name = str(Path(document.metadata["file_path"]).relative_to(root))
        document.id_ = f"{name}:{parts[name]}" if parts[name] else name
        parts[name] += 1
        document.excluded_embed_metadata_keys.append("file_path")
        document.excluded_llm_metadata_keys.append("file_path")
    return list(documents)


def _check_spared(source: Path, written: Sequence[Path], read: Sequence[Path]) -> None:
    """Refuse, by an OptionError, to write over a document, or what else the command reads."""
    _check_unread(_beside(written), read)
    for target in written:
        inside = target.is_file() and source.resolve() in target.parents
        if inside and not any(mark in target.read_bytes() for mark in _OURS):
            raise OptionError(f"{target}: is one of the documents. Write to another file.")


def _beside(written: Iterable[Path]) -> set[Path]:
    return {path.with_name(path.name + ending) for path in written for ending in _BESIDE}


def _is_saved(folder: Path) -> bool:
    try:
        config = files.read_config(folder)
    except FolderError:
        return False
    return (folder / files.WEIGHTS).is_file() or "composed" in config


def _files(root: Path, apart: set[Path]) -> Iterator[Path]:
    """Yield files of a folder and of those below, links too, each folder once; none is hidden."""
    seen = set(apart)
    for place, folders, names in os.walk(root, followlinks=True):
        here = Path(place)
        if here.resolve() in seen:
            folders.clear()
            continue
        seen.add(here.resolve())
        shown = (name for name in folders if not name.startswith("."))
        folders[:] = sorted(shown, key=lambda name: ((here / name).is_symlink(), name))
        found = (here / name for name in names if not name.startswith("."))
        yield from (file for file in found if file.is_file() and file.resolve() not in apart)


def _load(path: Path, root: Path, found: list[Path]) -> list[Document]:
    """Read what of the files can be read, and warn of the others, or raise a DatasetError."""
    readers = SimpleDirectoryReader.supported_suffix_fn()
    documents: list[Document] = []
    left: list[Path] = []
    wanted: dict[str, None] = {}
    omissions = Omissions(path)
    for file in found:
        kind = file.suffix.lower()
        if kind in _ROWS or not (kind in readers or _is_text(file)):
            left.append(file)
            continue
        encoding = "utf-8" if kind in readers else encoding_of(file, omissions)
        try:
            documents += SimpleDirectoryReader(input_files=[file], encoding=encoding).load_data()
        except ImportError as cause:  # of what the reader of such files needs
            left.append(file)
            wanted[" ".join(str(cause).split())] = None
    omissions.tell()
    if ".pdf" not in readers and any(file.suffix.lower() == ".pdf" for file in left):
        wanted["For PDF: pip install llama-index-readers-file pypdf."] = None
    hint = "".join(f" {each}" for each in wanted)
    if not documents:
        raise DatasetError(f"{path}: no file of text in it ({len(left)} files).{hint}")
    if left:
        warnings.warn(
            f"Left out {len(left)} of {len(found)} files that are not text or hold records: "
            f"{quote_some(file.relative_to(root) for file in left)}.{hint}",
            stacklevel=3,
        )
    return documents


def _is_text(file: Path) -> bool:
    with file.open("rb") as stream:
        start = stream.read(_LOOKED_AT)
    prose = file.suffix.lower() in _PROSE
    if b"\0" in start:
        return prose and start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return prose or "\ufffd" not in start.decode("utf-8", "replace")[:-4]


def resolve_writer(spec: str) -> tuple[LLM, dict[str, Any]]:
    """Build the LLM that a text names; return it with the settings of generation that suit it.

    Or raise an OptionError or MissingExtraError.
    """
    kind, _, rest = spec.partition(":")
    model, _, url = rest.partition("@")
    if spec == "smollm2":
        return LocalLlama(max_tokens=48, stop=["\n"]), _SMALL
    if kind == "gguf" and rest:
        return LocalLlama(path=str(existing(Path(rest)))), {"concurrency": 1}
    if kind == "ollama" and model:
        settings = {"base_url": url} if url else {}
        made = integration("llms.ollama", "Ollama")(model=model, request_timeout=300.0, **settings)
        return made, {"concurrency": 2}
    if kind == "openai" and rest:
        return integration("llms.openai", "OpenAI")(model=rest, temperature=0.0), {}
    if kind == "openai-like" and model and url:
        key = os.environ.get("OPENAI_API_KEY", "none")
        about: Any = {"api_base": url, "is_chat_model": True, "context_window": 8192}
        like = integration("llms.openai_like", "OpenAILike")
        return like(model=model, api_key=key, **about), {}
    raise OptionError(f"llm: expected {LLMS}, got {spec!r}.{nearest(spec, ['smollm2'])}")


def check_apart(out: Path, *specs: str) -> None:
    """Refuse, by an error, a folder to write that a model is read from, or that others hold."""
    check_target_folder(out)
    if any(Path(spec.removeprefix("adapted:")).resolve() == out.resolve() for spec in specs):
        raise OptionError(f"--out: {out} holds one of the models. Write to another folder.")


def resolve_model(spec: str) -> BaseEmbedding:
    """Build the embedding model that a text names; errors are those of resolving one."""
    kind, _, rest = spec.partition(":")
    if kind in ("local", "adapted") and not rest.strip() and not Path(spec).exists():
        raise OptionError(f'embedding model: expected a folder after "{kind}:", got {spec!r}.')
    if spec.startswith("adapted:"):
        existing(Path(spec.removeprefix("adapted:")))
    try:
        return resolve_embed_model(spec)
    except ValueError as cause:
        if isinstance(cause, AdaptedError) or "must start with" not in str(cause):
            raise
        raise OptionError(
            f"embedding model: expected {EMBEDDINGS}, got {spec!r}."
            f'{nearest(spec, ["minilm"])} compare and evaluate take "bm25" and "<model>+bm25", too.'
        ) from cause


def named_models(specs: list[str], corpus: Mapping[str, str]) -> dict[str, Any]:
    """Build models from texts, a lone adapter or mixture beside its base.

    A text is ``"name=model"``, or ``"model"``, which is then its own name. ``"bm25"`` is words
    alone, in ``corpus``; ``"model+bm25"`` words beside a model, at the weight that is safe without
    labels.
    """
    named: dict[str, tuple[str, str]] = {}
    for spec in specs:
        name, mark, rest = spec.partition("=")
        vectors = (rest if mark else spec).removesuffix("+bm25")
        named[spec] = (name if mark else Path(spec).name or spec, vectors)
    # A misspelled name is said before seconds go to loading another model.
    distinct = {vectors for _, vectors in named.values()} - {"bm25"}
    in_order = sorted(distinct, key=lambda v: v == "minilm" or ":" in v or Path(v).exists())
    loaded = {vectors: resolve_model(vectors) for vectors in in_order}
    models: dict[str, Any] = {}
    for spec in specs:
        label, vectors = named[spec]
        model: Any = BM25Index.of(corpus) if vectors == "bm25" else loaded[vectors]
        mixed = spec.endswith("+bm25")
        if len(specs) == 1 and isinstance(model, AdaptedEmbedding):
            models["base"] = model.base_embed_model
        elif len(specs) == 1 and mixed:
            models[Path(vectors).name] = model
        if label in models:
            own = spec.partition("=")[2] or spec
            raise OptionError(f"models: two are named {label!r}. Name them: other={own}")
        models[label] = Mixture(model) if mixed else model
    return models
