import pytest
from llama_index.core import Document

from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset, pairs_from_structure
from llama_index_embeddings_adapted.errors import DatasetError, OptionError
from tests.conftest import QUIET

KELP = "Otters wrap themselves in kelp before they sleep, so that no current carries them off."
FERRY = "It leaves at six in the evening from the northern pier and returns after midnight."


def pairs(*nodes: Document, **options: object) -> dict[str, list[str]]:
    data = pairs_from_structure(nodes, **options)
    found = data.relevant_docs.items()
    return {data.queries[query]: [data.corpus[d] for d in documents] for query, documents in found}


@pytest.mark.parametrize("key", ["title", "document_title"])
def test_a_title_asks_for_its_text_which_no_longer_quotes_it(key):
    node = Document(text=KELP, metadata={key: "How otters rest", "year": 2021}, id_="n")
    assert pairs(node) == {"How otters rest": [f"year: 2021\n\n{KELP}"]}
    assert node.metadata[key] == "How otters rest"


@pytest.mark.parametrize(
    "text",
    [
        f"# How otters rest\n\n{KELP}\n\n## The evening ferry ##\n\n{FERRY}\n",
        f"How otters rest\n===============\n{KELP}\n\nThe evening ferry\n---\n{FERRY}",
    ],
    ids=["Markdown", "underlined"],
)
def test_headings_ask_for_their_sections(text):
    data = pairs_from_structure([Document(text=text, id_="page")])
    assert data.corpus == {"page": KELP, "page#2": FERRY}
    first, second = ("How otters rest", ["page"]), ("The evening ferry", ["page#2"])
    assert [(t, d) for t, d in data.query_docid_pairs] == [first, second]
    assert data.report.written == 2


MARKUP = {
    "YAML": f"---\nid: start\ntitle: How otters rest\n---\n\n{KELP}\n",
    "TOML": f'+++\ntitle = "How otters rest"\n+++\n{KELP}',
    "code": f"# How otters rest\n\n{KELP}\n\n```bash\n# log in to the machine first\nls -l\n```",
    "comment": f"# How otters rest\n<!--\n## An older heading\n-->\n{KELP}",
    "link": f"## [How otters](https://x.org) *rest* {{#rest}}\n{KELP}",
    "number": f"## 🦦 3.2 How otters rest\n{KELP}",
    "AsciiDoc": f"== How otters rest ==\n\n{KELP}",
    "reStructuredText": f"How otters rest\n~~~~~~~~~~~~~~~\n{KELP}",
    "Textile": f"h2. How otters rest\n\n{KELP}",
    "HTML": f"<h2 class='a'>How <b>otters</b> rest</h2>\n<p>{KELP}</p>",
    "details": f"<details>\n<summary>How otters rest</summary>\n\n{KELP}\n</details>",
    "page": "<!DOCTYPE html>\n<html><head><style>a {}</style></head><body>\n    <h1>How otters rest"
            f"</h1>\n\n    <p>{KELP}</p></body></html>",
}  # fmt: skip


@pytest.mark.parametrize("text", MARKUP.values(), ids=MARKUP)
def test_headings_are_seen_in_every_markup_and_nothing_else_is_one(text):
    found = pairs(Document(text=text))
    assert list(found) == ["How otters rest"]
    [[body]] = found.values()
    assert KELP in body
    assert not any(sign in body for sign in ("title", "older", "<p>", "</details>"))


def test_the_heading_of_a_page_asks_for_its_sections_and_a_summary_for_the_rest():
    text = f"# Harbour life\n\n## How otters rest\n{KELP}\n\n## The evening ferry\n{FERRY}"
    below = {"How otters rest": [KELP], "The evening ferry": [FERRY]}
    assert pairs(Document(text=text)) == {"Harbour life": [KELP, FERRY], **below}
    node = Document(text=f"Rest of marine mammals.\n\n{KELP}")
    assert pairs(node) == {"Rest of marine mammals.": [KELP]}
    node = Document(text=KELP, metadata={"summary": "Rest of marine mammals"})
    assert pairs(node) == {"Rest of marine mammals": [KELP]}


@pytest.mark.parametrize(
    "text",
    [
        f"**How do otters rest?**\n{KELP}\n\n**When does the ferry leave?**\n{FERRY}",
        f"Q: How do otters rest?\nA: {KELP}\n\nQ: When does the ferry leave?\nA: {FERRY}",
        f"1. How do otters rest?\n\n{KELP}\n\n2. When does the ferry leave?\n\n{FERRY}",
    ],
    ids=["bold", "Q and A", "numbered"],
)
def test_questions_of_an_faq_page_ask_for_their_answers(text):
    found = {"How do otters rest?": [KELP], "When does the ferry leave?": [FERRY]}
    assert pairs(Document(text=text)) == found


def test_headings_that_many_pages_share_and_other_poor_ones_go_and_are_counted():
    text = f"# Page about {{0}}\n{KELP} {{0}}\n## Overview\n{FERRY} {{0}}"
    topics = ("kelp", "ferries", "harbours")
    pages = [Document(text=text.format(topic), id_=topic) for topic in topics]
    pages.append(Document(text=f"## FAQ\n{KELP} x\n## This section\n{FERRY} y", id_="poor"))
    report = pairs_from_structure(pages).report
    assert report.reasons == {"generic_heading": 3, "too_short": 1, "refers_to_passage": 1}
    assert len(report.kept) == 3


def test_the_base_model_is_asked_where_one_is_given(base):
    text = "# {0} {0} facts\n{0} " + "{0} is here and there today " * 3
    texts = [text.format(topic) for topic in ("kelp", "ferry", "harbour")]
    texts.append("# nothing kelp kelp\nnot one word of it is what the heading asks for")
    pages = [Document(text=text) for text in texts]
    data = pairs_from_structure(pages, embed_model=base, round_trip_k=1, **QUIET)
    assert data.report.reasons == {"round_trip": 1}
    assert data.report.examples("round_trip") == ["nothing kelp kelp"]


def test_documents_without_structure_and_bad_options_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="None of 1 nodes has a title, heading, question or"):
        pairs_from_structure([Document(text=KELP)])
    with pytest.raises(DatasetError, match=r"(?s)Not one pair was kept of 1 found.*too short"):
        pairs_from_structure([Document(text=f"# FAQ\n{KELP}")])
    with pytest.raises(OptionError, match='Unknown argument "llm"'):
        pairs_from_structure([Document(text=KELP)], llm=None)


def test_pairs_of_the_nodes_as_they_are_combine_with_others_about_them():
    text = f"# How otters rest\n\n{KELP}\n\n## The evening ferry\n\n{FERRY}\n"
    nodes = [Document(text=text, id_="page"), Document(text="No heading here.", id_="bare")]
    found = pairs_from_structure(nodes, keep_nodes=True)
    assert found.corpus == {"page": text, "bare": "No heading here."}
    assert [docs for _, docs in found.query_docid_pairs] == [["page"], ["page"]]
    assert found.sources == {"structure": 2}
    written = EmbeddingQAFinetuneDataset({"q": "where they sleep"}, found.corpus, {"q": ["page"]})
    assert written.with_provenance("llm").merged(found).sources == {"llm": 1, "structure": 2}
