"""BM25 over a corpus: which documents share words with a query, rare words first; a mixture with
vectors and a document prior, to be judged as one.

Tokens are words of any language, and of code: parts of identifiers, character n-grams.
"""

from __future__ import annotations

import json
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from ..adapters.prior import DocumentPrior
from ..core import files
from ..core.arrays import Keys, Rows, RowSource, Vectors
from ..errors import DatasetError, check_number

CONFIG, ARRAYS = "words.json", "words.safetensors"
FORMAT_VERSION = 2
K1, B = 1.2, 0.75
_ARRAYS = ("data", "indices", "indptr")
_FREQUENT = 8  # a token in an eighth of the documents is
_FEWEST_ASKING = 3  # queries, before a word of theirs counts as usual, and is kept
_BLOCK = 64
_SCORES_PER_BLOCK = 16_000_000
WEIGHT = 0.4  # without a label: the highest of .3, .4, .5 that lost on dev of no set in benchmarks/

#: Of longer words, such as hashes and encoded files, this many characters count.
LONGEST = 64

_ASCII_WORDS = re.compile(r"[A-Za-z0-9_]+")
_HUMPS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z0-9]+")


class BM25Index:
    """Scores the documents of a corpus by the words they share with a query.

    ``score(q, d) = Σ_t g(t) · idf(t) · tf / (tf + k1 · (1 - b + b · |d| / mean |d|))`` over the
    tokens of the query, with ``idf(t) = log(1 + (n - df + ½) / (df + ½))``. ``g(t)``, in (0, 1],
    is the same formula over queries, divided by its highest value: a word that many queries have
    ("how", "show me") says little, however rare it is in documents. Without queries it is 1.

    The score of each token in each document is kept, by token: 8 bytes, so about 1 KB for a
    document of 150 words. The words themselves are kept, the texts are not; of words that only
    queries have, those of three queries or more.

    Documents are added by building the index anew: idf and mean length depend on all of them.

    Args:
        ids: ``m`` distinct document ids.
        vocabulary: ``v`` distinct tokens.
        arrays: ``data`` and ``indices`` ``(entries,)``, ``indptr`` ``(v + 1,)``: the score of a
            token in a document, that document's row, and where each token's entries begin.
        usual: Token → ``g``, where that is not 1.
        k1, b: What the scores were made with.

    Source: Robertson and Zaragoza 2009, DOI 10.1561/1500000019, in the form of Lucene (Kamphuis et
    al. 2020, DOI 10.1007/978-3-030-45442-5_4); scores made when the index is: Lù 2024,
    arXiv:2407.03618. ``g`` is ours.
    """

    def __init__(
        self,
        ids: Sequence[str],
        vocabulary: Sequence[str],
        arrays: Mapping[str, Any],
        usual: Mapping[str, float] | None = None,
        *,
        k1: float = K1,
        b: float = B,
    ) -> None:
        self.ids = tuple(ids)
        self.usual, self.k1, self.b = dict(usual or {}), k1, b
        self._vocabulary = {token: number for number, token in enumerate(vocabulary)}
        self._arrays = {name: np.asarray(arrays[name]) for name in _ARRAYS}
        self._check(vocabulary)
        self._idf = idf_of(np.append(np.diff(self._arrays["indptr"]), 0), len(self.ids))
        self._whole: dict[int, Vectors] = {}  # token → its score in every document

    def _check(self, vocabulary: Sequence[str]) -> None:
        """Refuse, by a DatasetError, parts that do not fit together, as of a damaged folder."""
        data, indices, indptr = (self._arrays[name] for name in _ARRAYS)
        whole = (
            len(set(self.ids)) == len(self.ids) > 0
            and all(isinstance(name, str) for name in (*self.ids, *vocabulary))
            and len(self._vocabulary) == len(vocabulary) == len(indptr) - 1
            and indptr[0] == 0
            and bool((np.diff(indptr) >= 0).all())
            and indptr[-1] == len(data) == len(indices)
            and indices.min(initial=0) >= 0
            and indices.max(initial=0) < len(self.ids)
            and bool((data >= 0).all())
            and all(0.0 < weight <= 1.0 for weight in self.usual.values())
        )
        if not whole:
            raise DatasetError("Expected distinct ids and tokens, and scores that belong to them.")

    @classmethod
    def of(
        cls,
        corpus: Mapping[str, str],
        queries: Iterable[str] = (),
        *,
        usual: Mapping[str, float] | None = None,
        k1: float = K1,
        b: float = B,
    ) -> BM25Index:
        """Build the index of a corpus; one without a document is a DatasetError.

        Args:
            corpus: Document id → text. Documents without a word are never found.
            queries: Such as users ask, to learn which words are usual in them.
            usual: Of another index, instead.
            k1: How fast a repeated word stops counting, ``>= 0``.
            b: How much longer documents are held back, in [0, 1].
        """
        check_number("k1", k1, least=0.0)
        check_number("b", b, least=0.0, most=1.0)
        if not corpus:
            raise DatasetError("corpus: expected at least one document, got none.")
        vocabulary, tokens, starts = numbered_tokens(corpus.values())
        arrays = _scored(tokens, starts, len(vocabulary), k1, b)
        return cls(tuple(corpus), vocabulary, arrays, usual or usual_words(queries), k1=k1, b=b)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Document id → row."""
        return {name: row for row, name in enumerate(self.ids)}

    def scores(self, query: str) -> Vectors:
        """Return the score of every document, ``(m,)``, ``>= 0``; all 0 if no word is known."""
        return self._sum(tokenize(query))

    def _sum(self, tokens: Iterable[str]) -> Vectors:
        total = np.zeros(len(self.ids), dtype=np.float32)
        data, indices, indptr = (self._arrays[name] for name in _ARRAYS)
        for token in tokens:
            number = self._vocabulary.get(token)
            if number is None:
                continue
            entries = slice(indptr[number], indptr[number + 1])
            weight = np.float32(self.usual.get(token, 1.0))
            if (entries.stop - entries.start) * _FREQUENT < len(total):
                total[indices[entries]] += weight * data[entries]
                continue
            if number not in self._whole:  # as a row, it is added ten times as fast
                row = np.zeros_like(total)
                row[indices[entries]] = weight * data[entries]
                self._whole[number] = row
            total += self._whole[number]
        return total

    def highest(self, query: str) -> float:
        """Return ``Σ_t g(t) · idf(t)``, which no document's score reaches; unknown words count."""
        return self._most(tokenize(query))

    def _most(self, tokens: Sequence[str]) -> float:
        unknown = len(self._idf) - 1
        idf = self._idf[[self._vocabulary.get(token, unknown) for token in tokens]]
        return float(idf @ [self.usual.get(token, 1.0) for token in tokens]) if tokens else 0.0

    def shares(self, query: str) -> Vectors:
        """Return how much of a query's words each document has, ``(m,)``, in [0, 1).

        The score divided by :meth:`highest`: where a query's words are found nowhere together,
        they count less than the vectors. (Divided by the best document's score, as is usual, they
        would count the same for every query; on held-out queries that gains less.)
        """
        tokens = tokenize(query)
        return self._sum(tokens) / np.float32(max(self._most(tokens), 1e-6))

    def first(self, query: str, count: int) -> list[str]:
        """Return ids of at most ``count`` documents that share words with a query, best first."""
        scores = self.scores(query)
        rows = np.sort(best_rows(scores, count))
        return [self.ids[row] for row in rows[np.argsort(-scores[rows], kind="stable")]]

    def save(self, folder: str | Path) -> None:
        """Write the index, atomically: its words, no texts, no pickle; or raise a FolderError."""
        target = Path(folder)
        files.check_target_folder(target, frozenset({CONFIG, ARRAYS}))
        with files.atomic_folder(target) as temporary:
            self.write(temporary)

    def write(self, folder: Path) -> None:
        """Write the two files of :meth:`save` into a folder that is there."""
        named = {"format_version": FORMAT_VERSION, "document_ids": self.ids}
        words = {"vocabulary": tuple(self._vocabulary), "usual": self.usual}
        config = {**named, **words, "k1": self.k1, "b": self.b}
        (folder / ARRAYS).write_bytes(files.to_bytes(self._arrays))
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> BM25Index:
        """Read what :meth:`save` wrote; damaged, foreign or too new, it is a FolderError."""
        path = Path(folder)
        config = files.read_format(path / CONFIG, FORMAT_VERSION)
        with files.legible(f"{path}: not an index of words"):
            arrays = files.read_arrays(path / ARRAYS)
            parts = config["document_ids"], config["vocabulary"], arrays, config["usual"]
            given: Any = {name: float(config[name]) for name in ("k1", "b") if name in config}
            return cls(*parts, **given)


def best_rows(scores: Vectors, count: int) -> Rows:
    """Return the documents with the highest scores above 0, at most ``count``, in no order."""
    least = np.float32(0.0)
    if len(scores) > _BLOCK * count:  # as many blocks as that have a maximum that is no lower
        whole = len(scores) - len(scores) % _BLOCK
        highest = scores[:whole].reshape(-1, _BLOCK).max(axis=1)
        least = np.partition(highest, -count)[-count]
    rows = np.flatnonzero((scores >= least) & (scores > 0) if least > 0 else scores > 0)
    if len(rows) > count:
        rows = rows[np.argpartition(-scores[rows], count - 1)[:count]]
    return rows


def usual_words(queries: Iterable[str]) -> dict[str, float]:
    """Return what is left of the weight of words that three distinct queries have, in (0, 1]."""
    found = [set(tokenize(query)) for query in queries]
    counts = Counter(token for tokens in found for token in tokens)
    most = idf_of(0, len(found))
    usual = {token: count for token, count in counts.items() if count >= _FEWEST_ASKING}
    return {token: float(idf_of(count, len(found)) / most) for token, count in usual.items()}


def idf_of(found: Any, count: int) -> Any:
    """Return the idf of what so many of ``count`` texts have."""
    return np.log1p((count - found + 0.5) / (found + 0.5))


def _scored(tokens: Rows, starts: Rows, words: int, k1: float, b: float) -> dict[str, Any]:
    """Return the arrays of an index of numbered tokens, of which ``words`` are distinct."""
    from scipy.sparse import csr_matrix  # serving needs no scipy

    lengths = np.diff(starts)
    ones = np.ones(len(tokens), dtype=np.float32)
    counts = csr_matrix((ones, tokens, starts), shape=(len(lengths), words)).tocsc()
    counts.sum_duplicates()  # of a token, the documents stand in order
    found, tf = np.diff(counts.indptr), counts.data
    idf = idf_of(found, len(lengths)).astype(np.float32)
    norm = k1 * (1.0 - b + b * lengths / max(1.0, lengths.mean())).astype(np.float32)
    data = np.repeat(idf, found) * tf / (tf + norm[counts.indices])
    return {"data": data.astype(np.float32), "indices": counts.indices, "indptr": counts.indptr}


@dataclass(frozen=True, eq=False)
class Mixture:
    """A model with words and a prior beside it: ``cosine + weight · words - prior``.

    :func:`evaluate_retrieval` scores it as :class:`HybridRetriever` would rank with as many
    candidates as there are documents; so ``weight`` and prior can be chosen on held-out queries.

    Args:
        embed_model: Any LlamaIndex embedding model, adapted or not.
        weight: Of words, in cosine units, ``>= 0``, else it is an OptionError.
        prior: Made with vectors of the same model; None for none.
        queries: Such as users ask, see :class:`BM25Index`; not those to be judged on.
    """

    embed_model: BaseEmbedding
    weight: float = WEIGHT
    prior: DocumentPrior | None = None
    queries: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0.0)

    def rank(
        self,
        texts: Sequence[str],
        corpus: Mapping[str, str],
        queries: Vectors,
        documents: RowSource,
        keys: Keys,
        *,
        depth: int,
    ) -> Rows:
        """Rank the documents of a corpus, exactly.

        Args:
            texts: ``n``, of the queries.
            corpus: Id → text of ``m`` documents.
            queries, documents: ``(n, dim)`` and ``(m, dim)``, unit rows, adapted if the model is.
            keys: ``(m,)``, content keys of the documents.
            depth: ``(n, min(depth, m))`` rows of documents come back, best first, ties by row.
        """
        matrix = documents[:]
        words = BM25Index.of(corpus, self.queries)
        shifts = 0.0 if self.prior is None else self.prior.shifts(matrix, keys)
        return ranked(words, texts, queries, matrix, self.weight, shifts, depth)


def ranked(
    words: BM25Index,
    texts: Sequence[str],
    queries: Vectors,
    documents: Vectors,
    weight: float,
    shifts: Any,
    depth: int,
) -> Rows:
    """Rank all documents for each query by ``cosine + weight · words - shifts``.

    ``texts`` are those of the queries, ``(n, dim)``, unit rows as the documents are, ``(m, dim)``;
    ``shifts`` are ``(m,)`` or 0. ``(n, min(depth, m))`` rows come back, best first, ties by row.
    """
    found = np.empty((len(texts), min(depth, len(documents))), dtype=np.int64)
    step = max(1, _SCORES_PER_BLOCK // len(documents))
    for start in range(0, len(texts), step):
        part = slice(start, start + step)
        shares = np.stack([words.shares(text) for text in texts[part]])
        scores = queries[part] @ documents.T + np.float32(weight) * shares - shifts
        if depth == 1:  # a million documents need no sorting
            found[part, 0] = scores.argmax(axis=1)
        else:
            found[part] = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return found


def tokenize(text: str) -> list[str]:
    """Return the tokens of a text, in order, repeated as often as they stand there.

    Words are runs of letters, marks, digits and underscores, in lower case; nothing is stemmed, no
    word is left out. ``parseHTTPHeader`` and ``parse_http_header`` give ``parse``, ``http`` and
    ``header`` besides themselves. Scripts that put no spaces between words (Chinese, Japanese,
    Thai, Lao, Khmer, Burmese) give every character and every pair of neighbours.
    """
    if text.isascii():
        words = _ASCII_WORDS.findall(text)
    else:
        words = _patterns()[0].findall(unicodedata.normalize("NFKC", text))
    found: list[str] = []
    for word in words:
        if word.islower() and word.isalnum() and word.isascii():  # most words: nothing to do
            found.append(word[:LONGEST])
        elif len(word) > LONGEST:  # a whole sentence of Chinese, or a file in base64: not kept
            found.extend(_pieces(word))
        else:
            found.extend(_known_pieces(word))
    return found


def numbered_tokens(texts: Iterable[str]) -> tuple[tuple[str, ...], Rows, Rows]:
    """Tokenize many texts, what stands between two spaces once.

    Returns the distinct tokens; those of all texts, one text after the other, as numbers of these;
    and ``(n + 1,)``, where each text begins.
    """
    words, tokens, starts = _Words(), array("i"), array("q", [0])
    for text in texts:
        tokens.extend(chain.from_iterable(map(words.__getitem__, text.split())))
        starts.append(len(tokens))
    return tuple(words.numbers), np.array(tokens), np.array(starts)


class _Words(dict[str, tuple[int, ...]]):
    """The tokens of a word, as numbers; of one that is long, perhaps a clause of Chinese, anew."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __missing__(self, word: str) -> tuple[int, ...]:
        numbers = self.numbers
        found = tuple([numbers.setdefault(token, len(numbers)) for token in tokenize(word)])
        if len(word) <= (LONGEST if word.isascii() else 16):
            self[word] = found
        return found


@lru_cache(maxsize=65_536)
def _known_pieces(word: str) -> tuple[str, ...]:
    return tuple(_pieces(word))


def _pieces(word: str) -> Iterator[str]:
    if word.isascii():
        yield from _identifier(word[:LONGEST])
        return
    for place, piece in enumerate(_patterns()[1].split(word)):
        if place % 2:  # a run of a script without spaces
            yield from piece
            yield from (piece[at : at + 2] for at in range(len(piece) - 1))
        else:
            yield from (part[:LONGEST].casefold() for part in piece.split("_") if part)


def _identifier(word: str) -> Iterator[str]:
    parts = _HUMPS.findall(word)
    if parts:
        yield word.strip("_").lower()
    if len(parts) > 1:
        yield from (part.lower() for part in parts)


@cache
def _patterns() -> tuple[Any, Any]:
    """Return what finds words, and what splits off runs of scripts without spaces."""
    import regex  # comes with llama-index-core; the standard library knows no scripts

    unspaced = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    return regex.compile(r"[\p{L}\p{M}\p{N}_]+"), regex.compile(f"([{unspaced}]+)")
