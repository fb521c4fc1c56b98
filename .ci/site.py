"""What the site needs beyond the pages of docs/: its menu, and the files that pages link to.

The menu is the index, ``docs/README.md``: a section for each heading, a page for each link in it.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
_BESIDE = ("benchmarks/README.md", "benchmarks/results/*.svg", "examples/*.ipynb", "examples/*.py")
_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):<code>~?")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the menu from the index."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    sections = re.split(r"^## (.+)$", index, flags=re.MULTILINE)[1:]
    config.nav = [{"Overview": "README.md"}]
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        pages = re.findall(r"\]\((?:\.\./(?=benchmarks/))?([\w/-]+\.md)\)", text)
        config.nav.append({title: list(dict.fromkeys(pages))})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what stands beside docs/."""
    for pattern in _BESIDE:
        for path in sorted(ROOT.glob(pattern)):
            source = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, source, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Let links out of docs/ lead to what was added."""
    if page.file.src_uri.startswith("benchmarks/"):
        return markdown.replace("](../docs/", "](../")
    return markdown.replace("](../", "](")


def on_page_content(html: str, **_: object) -> str:
    """Show roles of reStructuredText, which docstrings have, as code."""
    return _ROLE.sub("<code>", html)
