"""What a user points at: a file of pairs, a BEIR folder, or documents to be cut into passages."""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

from llama_index.core.schema import BaseNode

from llama_index_embeddings_adapted import files
from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.errors import DatasetError, OptionError, examples

_CORPUS = ("corpus.jsonl", "corpus.jsonl.gz")
_LOOKED_AT = 8192  # bytes that tell text from other files


class FiledReport:
    """A report on questions as it was kept beside the pairs: counts, no questions."""

    def __init__(self, counts: dict[str, Any]) -> None:
        self._counts = counts

    def to_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return self._counts


def holds_pairs(path: Path) -> bool:
    """Return whether a path is a dataset, and not documents to make one of.

    Raises:
        OptionError: There is nothing at the path.
    """
    if not path.exists():
        raise OptionError(
            f"{path}: no such file or folder. Expected a dataset (JSON, or a BEIR folder) or "
            "documents."
        )
    if path.is_dir():
        return any((path / name).is_file() for name in _CORPUS)
    return path.suffix == ".json"


def read_pairs(path: Path, split: str) -> EmbeddingQAFinetuneDataset:
    """Read a dataset: JSON, or one split of a BEIR folder.

    Questions that an LLM wrote are known as such where :func:`save_pairs` left its note.

    Raises:
        OptionError: There is nothing at the path, or something else.
        DatasetError: It is damaged.
    """
    if not holds_pairs(path):
        raise OptionError(
            f"{path}: expected a dataset, that is a .json file or a folder with corpus.jsonl. "
            "Documents become one with: llama-index-adapted generate"
        )
    if path.is_dir():
        return EmbeddingQAFinetuneDataset.from_beir(path, split)
    dataset = EmbeddingQAFinetuneDataset.from_json(path)
    note = _note(path)
    if not note.is_file():
        return dataset
    found = files.read_json_object(note, error=DatasetError)
    if found.get("data") != dataset.fingerprint:
        return dataset  # the file was edited or replaced: the note is about another one
    report = FiledReport(found["report"]) if isinstance(found.get("report"), dict) else None
    return dataset.reported(report, synthetic=bool(found.get("synthetic")))


def save_pairs(dataset: EmbeddingQAFinetuneDataset, path: Path) -> None:
    """Write a dataset as JSON, and beside it what is known of where its questions are from."""
    dataset.save_json(path)
    report = None if dataset.report is None else dataset.report.to_dict()
    found = {"data": dataset.fingerprint, "synthetic": dataset.synthetic, "report": report}
    files.write_json(_note(path), found)


def _note(path: Path) -> Path:
    return path.with_name(f"{path.stem}.report.json")


def read_passages(path: Path, *, chunk_size: int = 512, chunk_overlap: int = 50) -> list[BaseNode]:
    """Read documents with LlamaIndex's ``SimpleDirectoryReader`` and cut them into passages.

    Ids are relative paths and numbers, the same in every run. The path of a file is no part of the
    text that is embedded or shown to an LLM.

    Args:
        path: A file, or a folder, with all folders in it.
        chunk_size: Tokens of a passage, at most.
        chunk_overlap: Tokens that neighbours share.

    Raises:
        OptionError: There is nothing at the path, or sizes do not fit.
        DatasetError: No text in it.
    """
    from llama_index.core.node_parser import SentenceSplitter

    if not 0 <= chunk_overlap < chunk_size:
        raise OptionError(
            f"chunk_overlap: expected a number from 0 to below chunk_size ({chunk_size}), got "
            f"{chunk_overlap}."
        )
    splitter = SentenceSplitter(chunk_size=chunk_size, chunk_overlap=chunk_overlap)
    counts: defaultdict[str, int] = defaultdict(int)
    nodes = [node for node in splitter(read_documents(path)) if node.get_content().strip()]
    for node in nodes:
        source = str(node.ref_doc_id)
        node.id_ = f"{source}#{counts[source]}"
        counts[source] += 1
    if not nodes:
        raise DatasetError(f"{path}: no text in any of its files.")
    return nodes


def read_documents(path: Path) -> list[BaseNode]:
    """Read documents as LlamaIndex does, one or more per file; ids are relative paths.

    Files that are not text are left out with a warning, unless LlamaIndex has a reader for them.

    Raises:
        OptionError: There is nothing at the path.
        DatasetError: No file that can be read.
    """
    from llama_index.core import SimpleDirectoryReader

    holds_pairs(path)  # refuses a path with nothing at it
    root = path if path.is_dir() else path.parent
    documents = SimpleDirectoryReader(input_files=_readable(path, root)).load_data()
    parts: defaultdict[str, int] = defaultdict(int)
    for document in documents:
        name = str(Path(document.metadata["file_path"]).relative_to(root))
        document.id_ = f"{name}:{parts[name]}" if parts[name] else name
        parts[name] += 1
        document.excluded_embed_metadata_keys.append("file_path")
        document.excluded_llm_metadata_keys.append("file_path")
    return list(documents)


def _readable(path: Path, root: Path) -> list[Path]:
    from llama_index.core import SimpleDirectoryReader

    readers = tuple(SimpleDirectoryReader.supported_suffix_fn())
    wanted = [
        file
        for file in (sorted(root.rglob("*")) if path.is_dir() else [path])
        if file.is_file() and not any(part[0] == "." for part in file.relative_to(root).parts)
    ]
    readable = [file for file in wanted if file.suffix.lower() in readers or _is_text(file)]
    if not readable:
        raise DatasetError(f"{path}: no file of text in it ({len(wanted)} files).")
    if len(readable) < len(wanted):
        left = [str(f.relative_to(root)) for f in wanted if f not in readable]
        warnings.warn(
            f"Left out {len(left)} of {len(wanted)} files that are not text: {examples(left)}. "
            "pip install llama-index-readers-file reads PDF, DOCX and others.",
            stacklevel=3,
        )
    return readable


def _is_text(file: Path) -> bool:
    with file.open("rb") as stream:
        start = stream.read(_LOOKED_AT)
    return b"\0" not in start and "\ufffd" not in start.decode("utf-8", "replace")[:-4]
