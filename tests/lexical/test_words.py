import math
from collections import Counter

import numpy as np
import pytest

from llama_index_embeddings_adapted.errors import DatasetError, FolderError, OptionError
from llama_index_embeddings_adapted.lexical import bm25 as tokens_module
from llama_index_embeddings_adapted.lexical.bm25 import ARRAYS, CONFIG, LONGEST, BM25Index, tokenize
from tests.support.files import edit

PETS = {"cat": "The cat sat on the mat, the cat of the house.", "dog": "A dog sat."}
OTHER = {"tokyo": "東京都の天気", "emoji": "😀🎉"}
CORPUS = {**PETS, "code": "def parse_http_header(rawText): ...", **OTHER}


@pytest.fixture(scope="module")
def index() -> BM25Index:
    return BM25Index.of(CORPUS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Uber's 10-K, again: uber", ["uber", "s", "10", "k", "again", "uber"]),
        ("parseHTTPHeader", ["parsehttpheader", "parse", "http", "header"]),
        ("parse_http_header", ["parse_http_header", "parse", "http", "header"]),
        ("__init__ MP3 Hello mp3", ["init", "mp3", "hello", "mp3"]),
        ("Straße STRASSE ﬁle Größe_neu", ["strasse", "strasse", "file", "grösse", "neu"]),
        ("हिन्दी की किताब", ["हिन्दी", "की", "किताब"]),  # vowel signs do not cut words
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("東京都 go", ["東", "京", "都", "東京", "京都", "go"]),
        ("ไทย", ["ไ", "ท", "ย", "ไท", "ทย"]),
        ("😀 🎉 … !! __", []),
        ("", []),
    ],
)
def test_tokens(text, expected):
    assert tokenize(text) == expected


def test_long_words_are_cut_and_long_texts_are_not():
    assert tokenize("x" * 100_000) == ["x" * LONGEST]
    assert tokenize("aB" * 100_000)[0] == "ab" * (LONGEST // 2)
    assert len(tokenize("word " * 40_000)) == 40_000
    chinese = "".join(chr(0x4E00 + at % 5_000) for at in range(200_000))
    kept = tokens_module._known_pieces.cache_info().currsize
    assert len(tokenize(chinese)) == 2 * 200_000 - 1
    assert tokens_module._known_pieces.cache_info().currsize == kept


def test_scores_are_those_of_the_formula(index):
    bags = [Counter(tokenize(text)) for text in CORPUS.values()]
    lengths = [sum(bag.values()) for bag in bags]
    mean = sum(lengths) / len(lengths)

    def score(query: str, bag: Counter[str], length: int) -> float:
        total = 0.0
        for token in tokenize(query):
            df = sum(token in other for other in bags)
            idf = math.log(1 + (len(bags) - df + 0.5) / (df + 0.5))
            norm = 1.2 * (1 - 0.75 + 0.75 * length / mean)
            total += idf * bag[token] / (bag[token] + norm)
        return total

    for query in ("the cat", "sat sat", "header of a dog", "天気"):
        expected = [score(query, bag, n) for bag, n in zip(bags, lengths, strict=True)]
        assert index.scores(query) == pytest.approx(np.array(expected), abs=1e-5)


def test_shares_are_of_all_that_a_query_asks_for_and_usual_words_say_little(index, tmp_path):
    shares = index.shares("the cat sat")
    assert index.ids[int(shares.argmax())] == "cat"
    assert shares == pytest.approx(index.scores("the cat sat") / index.highest("the cat sat"))
    assert 0 < shares[1] < shares[0] < 1
    # A word that no document has weighs like the rarest there could be.
    assert (index.shares("the cat sat zebra")[:2] < shares[:2]).all()
    assert index.highest("zebra") == pytest.approx(math.log(1 + (len(CORPUS) + 0.5) / 0.5))
    asked = [f"show me the {thing}" for thing in ("cat", "dog", "header", "mat")]
    index = BM25Index.of(CORPUS, asked)
    assert set(index.usual) == {"show", "me", "the"}  # of three queries or more, and no other
    expected = math.log(1 + 0.5 / 4.5) / math.log(1 + 4.5 / 0.5)
    assert index.usual["the"] == pytest.approx(expected)
    plain = BM25Index.of(CORPUS)
    assert index.scores("the") == pytest.approx(expected * plain.scores("the"))
    assert index.scores("cat") == pytest.approx(plain.scores("cat"))
    assert index.shares("show me the cat")[0] > plain.shares("show me the cat")[0]
    index.save(tmp_path / "words")
    for again in (BM25Index.load(tmp_path / "words"), BM25Index.of(CORPUS, usual=index.usual)):
        assert np.array_equal(again.shares("show me the cat"), index.shares("show me the cat"))


@pytest.mark.parametrize("query", ["", "😀", "zebra", "…"])
def test_a_query_without_a_known_word_scores_nothing(index, query):
    assert index.scores(query).tolist() == [0.0] * len(CORPUS)
    assert index.shares(query).tolist() == [0.0] * len(CORPUS)


def test_saved_and_loaded_it_scores_the_same_and_a_folder_of_others_is_left_alone(index, tmp_path):
    index.save(tmp_path / "words")
    index.save(tmp_path / "words")  # its own files are replaced
    again = BM25Index.load(tmp_path / "words")
    assert again.ids == index.ids
    assert np.array_equal(again.scores("the cat sat"), index.scores("the cat sat"))
    assert sorted(path.name for path in (tmp_path / "words").iterdir()) == [CONFIG, ARRAYS]
    assert "sat on the mat" not in (tmp_path / "words" / CONFIG).read_text()
    empty = BM25Index.of({"a": "😀", "b": ""}, k1=0.4, b=0.1)
    empty.save(tmp_path / "words")
    again = BM25Index.load(tmp_path / "words")
    assert (again.k1, again.b, again.scores("cat").tolist()) == (0.4, 0.1, [0.0, 0.0])
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(FolderError, match="holds other files"):
        index.save(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        {"format_version": 1},
        {"usual": {"the": 0}},
        {"document_ids": ["a", "a", "b", "c", "d"]},
        {"document_ids": ["a"]},
        {"vocabulary": ["one"]},
        {"vocabulary": None},
    ],
)
def test_a_damaged_folder_is_refused(index, tmp_path, damage):
    index.save(tmp_path / "words")
    edit(tmp_path / "words" / CONFIG, **damage)
    with pytest.raises(FolderError, match=r"damaged|expected format 2"):
        BM25Index.load(tmp_path / "words")
    (tmp_path / "words" / ARRAYS).unlink()
    with pytest.raises(FolderError, match="words"):
        BM25Index.load(tmp_path / "words")


def test_what_makes_no_index_is_refused():
    with pytest.raises(DatasetError, match="at least one document"):
        BM25Index.of({})
    with pytest.raises(OptionError, match="k1: expected a number >= 0"):
        BM25Index.of({"a": "b"}, k1=-1)
    with pytest.raises(OptionError, match="b: expected a number >= 0"):
        BM25Index.of({"a": "b"}, b=2)
