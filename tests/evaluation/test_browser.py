from collections.abc import Iterator
from pathlib import Path

import pytest

import llama_index_embeddings_adapted as package
from tests.conftest import QUIET, CountingEmbedding, trained_engine
from tests.evaluation.test_html_report import HOSTILE, reversing
from tests.support.browser import Tab, browser

THINGS = "apple", "whale", "bus", "sea", "bird", "car"
TOPICS = *THINGS, "moon", "river", "stone", "cloud", "bread", "forest"
CONTRASTS = """(() => {
  const part = (c) => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)];
    return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
  };
  const least = (css, property) => Math.min(...[...document.querySelectorAll(css)].map(
    (e) => ratio(parse(getComputedStyle(e)[property]), behind(e))));
  const words = "p, h1, h2, th, td, li, caption, label, summary, span, strong, footer";
  return [least(words, "color"), least("svg text", "fill"),
          least("svg .bar", "fill"), least("svg .line", "stroke")];
})()"""
WIDTHS_AND_SCHEMES = [(400, False), (400, True), (1400, False), (1400, True)]


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A page with every section, from hostile texts, a long word and models of long names."""
    folder = tmp_path_factory.mktemp("page")
    base = CountingEmbedding(embed_batch_size=4)
    texts = [f"the {topic} {HOSTILE[n % len(HOSTILE)]}" for n, topic in enumerate(TOPICS)]
    corpus = {f"d{n}": f"all about {text} {'x' * 300}" for n, text in enumerate(texts)}
    asked = {n: f"is the {topic} {HOSTILE[n % len(HOSTILE)]}" for n, topic in enumerate(TOPICS)}
    ways = "what", "where"
    queries = {f"q{n}-{way}": f"{way} {text}" for n, text in asked.items() for way in ways}
    relevant = {query: [f"d{query[1:].partition('-')[0]}"] for query in queries}
    dataset = package.EmbeddingQAFinetuneDataset(queries, corpus, relevant)
    engine = trained_engine(dataset, base, folder, epochs=3)
    long = "a_model_with_a_name_longer_than_any_telephone_is_wide"
    models = {"base": base, long: engine.get_finetuned_model(), "upside down": reversing(base)}
    with pytest.warns(UserWarning, match="it was trained on. Split first"):
        found = package.compare_retrieval(models, dataset, **QUIET)
    return found.to_html(folder / "page.html")


@pytest.mark.parametrize(("width", "dark"), WIDTHS_AND_SCHEMES)
def test_nothing_is_complained_of_asked_for_or_cut_off(tab, page, width, dark):
    tab.open(page, width=width, dark=dark)
    tab.run("document.querySelectorAll('details').forEach((one) => one.open = true)")
    assert tab.complaints == []
    assert tab.requests == []
    assert tab.run("innerWidth") == width
    assert tab.run("document.documentElement.scrollWidth") <= width
    beyond = tab.run(
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 90))"
    )
    assert beyond == []
    smallest = "Math.min(...[...document.querySelectorAll('figure svg')].map((e) => 11 * "
    assert tab.run(smallest + "e.getBoundingClientRect().width / 340))") >= 8  # px of its letters


@pytest.mark.parametrize("dark", [False, True])
def test_letters_stand_out_from_what_is_behind_them(tab, page, dark):
    """WCAG 2.1, 1.4.3: a contrast of at least 4.5 for text, 3 for the colours of the charts."""
    tab.open(page, width=1400, dark=dark)
    text, axes, bars, lines = tab.run(CONTRASTS)
    assert min(text, axes) >= 4.5
    assert min(bars, lines) >= 3
    background = tab.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(15, 20, 25)" if dark else "rgb(255, 255, 255)")


def test_the_search_finds_words_of_queries_and_passages(tab, page):
    tab.open(page, width=1400, dark=False)
    pair = "[...document.querySelectorAll('.pair')].pop()"
    rows = f"[...{pair}.querySelectorAll('.rows > li:not([hidden])')]"
    everything = tab.run(f"{rows}.length")
    assert everything > 4

    def enter(field: str, event: str, value: str) -> None:
        found = f"{pair}.querySelector('{field}')"
        tab.run(f"{found}.value = '{value}'; {found}.dispatchEvent(new Event('{event}'))")

    enter("input", "input", "WHALE where")
    shown = tab.run(f"{rows}.map((row) => row.textContent.toLowerCase())")
    assert 0 < len(shown) < everything
    assert all("whale" in text and "where" in text for text in shown)
    said = tab.run(f"{pair}.querySelector('output').textContent")
    assert said == f"{len(shown)} of {everything} shown"
    enter("input", "input", "")
    enter("select", "change", "loss")
    kinds = tab.run(f"{rows}.map((row) => row.dataset.kind)")
    assert set(kinds) == {"loss"}
    assert tab.complaints == []


def test_a_script_smuggled_into_the_page_is_refused(tab, page, tmp_path):
    """The test can fail: the browser reports what the policy forbids, and requests are seen."""
    more = '<script>document.title = "smuggled"</script><img src="http://127.0.0.1:9/x"><main'
    changed = page.read_text("utf-8").replace("<main", more)
    (tmp_path / "changed.html").write_text(changed, "utf-8")
    tab.open(tmp_path / "changed.html", width=1400, dark=False)
    assert tab.run("document.title") != "smuggled"
    assert any("script-src" in text for text in tab.complaints)
    assert any("img-src" in text or "default-src" in text for text in tab.complaints)
