import json
import re
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import ROOT

PLACES = "*.md", "docs/*.md", "benchmarks/README.md", "examples/*.ipynb"
PAGES = [page for place in PLACES for page in sorted(ROOT.glob(place))]
LINK = re.compile(r"\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)")


def prose(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    taken: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{anchor}-{taken[anchor]}" if taken[anchor] else anchor)
        taken[anchor] += 1
    return found


def fault(page: Path, target: str) -> str | None:
    address = urlsplit(target)
    if address.scheme or address.netloc:
        good = address.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", address.netloc)
        return None if good else "expected https://host"
    leads_to = page.parent / address.path if address.path else page
    if not leads_to.exists():
        return "no such file"
    if not leads_to.resolve().is_relative_to(ROOT):
        return "outside the repository"
    if address.fragment and address.fragment not in anchors(prose(leads_to)):
        return f"{leads_to.name} has no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    targets = LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page)))
    found = {target: fault(page, target) for target in targets}
    assert {target: what for target, what in found.items() if what} == {}


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("LICENSE", None),
        ("#install", None),
        ("https://arxiv.org/abs/1807.03748", None),
        ("missing.md", "no such file"),
        ("#no-such-thing", "README.md has no such heading"),
        ("docs/methods.md#install", "methods.md has no such heading"),
        ("..", "outside the repository"),
        ("http://example.com", "expected https://host"),
    ],
)
def test_a_dead_link_is_told_from_a_live_one(target, what):
    assert fault(ROOT / "README.md", target) == what
