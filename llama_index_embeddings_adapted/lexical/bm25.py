"""BM25 over a corpus: which documents share words with a query, rare words first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..core import files
from ..core.arrays import Rows, Vectors
from ..errors import DatasetError, FolderError, check_number, truncate
from .tokens import tokenize

CONFIG, ARRAYS = "words.json", "words.safetensors"
FORMAT_VERSION = 1
_ARRAYS = ("data", "indices", "indptr")


class BM25Index:
    """Scores the documents of a corpus by the words they share with a query.

    ``score(q, d) = Σ_t idf(t) · tf / (tf + k1 · (1 - b + b · |d| / mean |d|))`` over the tokens of
    the query, with ``idf(t) = log(1 + (n - df + ½) / (df + ½))``. The work is done by ``bm25s``,
    which keeps one number per document and distinct token: 8 bytes each, so about 1 KB for a
    document of 150 words. The words themselves are kept, the texts are not.

    Documents are added by building the index anew: idf and mean length depend on all of them.

    Args:
        ids: ``m`` distinct document ids.
        vocabulary: ``v`` distinct tokens.
        arrays: ``data`` and ``indices`` ``(entries,)``, ``indptr`` ``(v + 1,)``: the score of a
            token in a document, that document's row, and where each token's entries begin.

    Source:
        Robertson and Zaragoza 2009, DOI 10.1561/1500000019, in the form of Lucene (Kamphuis et al.
        2020, DOI 10.1007/978-3-030-45442-5_4). ``bm25s``: Lù 2024, arXiv:2407.03618.
    """

    def __init__(
        self, ids: Sequence[str], vocabulary: Sequence[str], arrays: Mapping[str, Any]
    ) -> None:
        self.ids = tuple(ids)
        self._vocabulary = {token: number for number, token in enumerate(vocabulary)}
        self._arrays = {name: np.asarray(arrays[name]) for name in _ARRAYS}
        _check(self.ids, self._vocabulary, vocabulary, self._arrays)

    @classmethod
    def of(cls, corpus: Mapping[str, str], *, k1: float = 1.2, b: float = 0.75) -> BM25Index:
        """Build the index of a corpus.

        Args:
            corpus: Document id → text. Documents without a word are never found.
            k1: How fast a repeated word stops counting, ``>= 0``.
            b: How much longer documents are held back, in [0, 1].

        Raises:
            DatasetError: No document.
            OptionError: ``k1`` or ``b`` out of range.
        """
        check_number("k1", k1, least=0.0)
        check_number("b", b, least=0.0, below=1.0 + 1e-9)
        if not corpus:
            raise DatasetError("corpus: expected at least one document, got none.")
        numbers: dict[str, int] = {}
        tokens = [
            [numbers.setdefault(token, len(numbers)) for token in tokenize(text)]
            for text in corpus.values()
        ]
        return cls(tuple(corpus), tuple(numbers), _scored(tokens, len(numbers), k1, b))

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.ids)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Document id → row."""
        return {name: row for row, name in enumerate(self.ids)}

    @cached_property
    def _scorer(self) -> Any:
        import bm25s

        scorer = bm25s.BM25()
        scorer.scores = {**self._arrays, "num_docs": len(self.ids)}
        scorer.nonoccurrence_array = None
        return scorer

    def scores(self, query: str) -> Vectors:
        """Return the score of every document, ``(m,)``, ``>= 0``; all 0 if no word is known."""
        known = [self._vocabulary[t] for t in tokenize(query) if t in self._vocabulary]
        if not known:
            return np.zeros(len(self.ids), dtype=np.float32)
        return np.asarray(self._scorer.get_scores_from_ids(known), dtype=np.float32)

    def shares(self, query: str, allowed: Any = None) -> Vectors:
        """Return the scores divided by the best one, ``(m,)``, in [0, 1].

        Args:
            query: Any text.
            allowed: ``(m,)``, booleans: the documents that may be found; others get 0. None for
                all.
        """
        scores = self.scores(query)
        if allowed is not None:
            scores = np.where(allowed, scores, np.float32(0.0))
        best = float(scores.max())
        return scores / np.float32(best) if best > 0.0 else scores

    def first(self, query: str, count: int) -> list[str]:
        """Return the ids of the documents that share words with a query, best first.

        Args:
            query: Any text.
            count: How many at most.
        """
        scores = self.scores(query)
        rows = np.sort(best_rows(scores, count))
        return [self.ids[row] for row in rows[np.argsort(-scores[rows], kind="stable")]]

    def save(self, folder: str | Path) -> None:
        """Write the index: atomic, without texts or pickle. Its words can be read in it.

        Raises:
            FolderError: The folder exists and holds something else.
        """
        target = Path(folder)
        files.check_target_folder(target, frozenset({CONFIG, ARRAYS}))
        with files.atomic_folder(target) as temporary:
            self.write(temporary)

    def write(self, folder: Path) -> None:
        """Write the two files of :meth:`save` into a folder that is there."""
        config = {
            "format_version": FORMAT_VERSION,
            "document_ids": self.ids,
            "vocabulary": tuple(self._vocabulary),
        }
        (folder / ARRAYS).write_bytes(files.to_bytes(self._arrays))
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> BM25Index:
        """Read what :meth:`save` wrote.

        Raises:
            FolderError: Missing, damaged, foreign or too new.
        """
        path = Path(folder)
        config = files.read_json_object(
            path / CONFIG, error=FolderError, most=files.MOST_CONFIG_BYTES
        )
        version = config.get("format_version")
        if version != FORMAT_VERSION:
            raise FolderError(
                f"{path / CONFIG}: expected format {FORMAT_VERSION}, found {version!r}."
            )
        try:
            arrays = files.read_arrays(path / ARRAYS)
            return cls(config["document_ids"], config["vocabulary"], arrays)
        except (KeyError, TypeError, ValueError, IndexError) as cause:
            reason = truncate(str(cause), 300)
            raise FolderError(f"{path}: not an index of words, or damaged ({reason}).") from cause


def best_rows(shares: Vectors, count: int) -> Rows:
    """Return the documents with the highest scores above 0, at most ``count``, in no order."""
    rows = np.flatnonzero(shares > 0)
    if len(rows) > count:
        rows = rows[np.argpartition(-shares[rows], count - 1)[:count]]
    return rows


def _scored(tokens: list[list[int]], words: int, k1: float, b: float) -> dict[str, Any]:
    if not words:  # emoji, punctuation, empty texts: bm25s would divide by a mean length of 0
        empty = np.zeros(0, dtype=np.int32)
        return {"data": empty.astype(np.float32), "indices": empty, "indptr": np.zeros(1, np.int64)}
    import bm25s

    builder = bm25s.BM25(k1=k1, b=b, method="lucene")
    scores: dict[str, Any] = builder.build_index_from_ids(
        list(range(words)), tokens, show_progress=False
    )
    return scores


def _check(
    ids: tuple[str, ...], numbers: Mapping[str, int], vocabulary: Sequence[str], arrays: Any
) -> None:
    """Refuse parts that do not fit together, as those of a damaged folder.

    Raises:
        DatasetError: They do not.
    """
    data, indices, indptr = (arrays[name] for name in _ARRAYS)
    whole = (
        len(set(ids)) == len(ids) > 0
        and all(isinstance(name, str) for name in (*ids, *vocabulary))
        and len(numbers) == len(vocabulary) == len(indptr) - 1
        and indptr[0] == 0
        and bool((np.diff(indptr) >= 0).all())
        and indptr[-1] == len(data) == len(indices)
        and indices.min(initial=0) >= 0
        and indices.max(initial=0) < len(ids)
        and bool((data >= 0).all())
    )
    if not whole:
        raise DatasetError("Expected distinct ids and tokens, and scores that belong to them.")
