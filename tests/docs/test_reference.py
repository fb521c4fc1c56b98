from __future__ import annotations

import re

import pytest

import llama_index_embeddings_adapted as package

pytest.importorskip("griffe", reason="extra 'dev' is missing")
from docs import reference


@pytest.fixture(scope="module")
def page() -> str:
    return reference.page()


def test_the_reference_is_that_of_the_code(page: str) -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == page, "run python -m docs.reference"


def test_every_exported_name_has_a_signature_and_a_docstring(page: str) -> None:
    found = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    assert sorted(found) == sorted(package.__all__)
    for name, entry in found.items():
        assert re.match(rf"```python\n(class |async )?{name}\b", entry), name
        without_code = re.sub(
            r"```.*?```|^Extends [^\n]*", "", entry, flags=re.DOTALL | re.MULTILINE
        )
        assert len(without_code.split()) > 3, name


def test_methods_arguments_and_errors_are_listed(page: str) -> None:
    entry = page.split("## AdaptedEmbedding\n")[1].split("\n## ")[0]
    assert "### AdaptedEmbedding.from_pretrained" in entry
    assert "- `verify`: Ask the model for a few probe vectors" in entry
    assert "- `BaseModelMismatchError`: " in entry
    assert "_get_query_embedding" not in entry


def test_no_markup_of_another_language_is_left(page: str) -> None:
    assert not re.search(r":\w+:`|(?<!`)``(?!`)", page)


def test_every_link_leads_to_a_heading(page: str) -> None:
    headings = [heading.lower() for heading in re.findall(r"^## (\w+)$", page, re.MULTILINE)]
    anchors = re.findall(r"\]\(#([\w-]+)\)", page)
    assert len(anchors) == len(set(anchors)) == len(headings)
    assert {re.sub(r"-\d+$", "", anchor) for anchor in anchors} == set(headings)
