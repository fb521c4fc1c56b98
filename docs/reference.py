"""``python -m docs.reference``: write ``docs/reference.md`` from signatures and docstrings.

Parsing is griffe's, which reads the source and imports nothing. Sites (mkdocstrings, sphinx, pdoc)
need a build to be read; one page of Markdown is read where the repository is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import griffe

PACKAGE = "llama_index_embeddings_adapted"
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference.md"
_INTRODUCTION = f"""# Reference

What `{PACKAGE}` exports, from its docstrings. Written by
`python -m docs.reference`; the [guides](README.md) say what to use when.
"""
_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):`~?([^`]+)`")
_TITLES = {
    "parameters": "Arguments",
    "other parameters": "Arguments",
    "returns": "Returns",
    "yields": "Yields",
    "raises": "Raises",
    "attributes": "Attributes",
}
_OF_LLAMA_INDEX = ("class_name", "custom_model_dump")  # what its base classes ask for
_WIDTH = 80


def page() -> str:
    """Return the reference as Markdown."""
    package = griffe.load(
        PACKAGE,
        search_paths=[ROOT],
        docstring_parser=griffe.Parser.google,
        docstring_options={
            "returns_multiple_items": False,
            "returns_named_value": False,
            "warnings": False,  # about the fields of pydantic models
        },
    )
    assert isinstance(package, griffe.Module)
    assert package.exports is not None
    names = sorted((str(name) for name in package.exports), key=str.lower)
    entries = [line for name in names for line in _entry(name, _resolved(package[name]))]
    return "\n\n".join([_INTRODUCTION.rstrip(), _links(names), *entries]) + "\n"


def refresh() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def _links(names: list[str]) -> str:
    """Return a line of links; headings that differ in case only are numbered, as GitHub does."""
    taken: Counter[str] = Counter()
    links = []
    for name in names:
        anchor = name.lower()
        again = f"-{taken[anchor]}" if taken[anchor] else ""
        links.append(f"[{name}](#{anchor}{again})")
        taken[anchor] += 1
    return " ·\n".join(links)


def _resolved(found: griffe.Object | griffe.Alias) -> griffe.Object:
    return found.final_target if isinstance(found, griffe.Alias) else found


def _entry(name: str, found: griffe.Object) -> Iterator[str]:
    """Yield the paragraphs of one name."""
    yield f"## {name}"
    if isinstance(found, griffe.Function):
        yield _signature(name, found, before=_async(found))
    elif isinstance(found, griffe.Class):
        yield _signature(name, found, before="class ")
        if bases := [str(base) for base in found.bases if str(base) not in ("ABC", "Generic")]:
            yield "Extends " + ", ".join(f"`{base}`" for base in bases) + "."
    yield from _docstring(found)
    if isinstance(found, griffe.Class):
        for member in _members(found).values():
            yield from _member(name, _resolved(member))


def _members(found: griffe.Class) -> dict[str, griffe.Object | griffe.Alias]:
    """Return the members of a class, and those of its bases that have no entry of their own."""
    exported = found.package.exports or []
    bases = [
        base
        for base in found.resolved_bases
        if isinstance(base, griffe.Class) and base.package is found.package
    ]
    inherited = [_members(base) for base in bases if base.name not in map(str, exported)]
    members = dict(found.members)
    for theirs in inherited:
        members |= {name: one for name, one in theirs.items() if name not in members}
    return members


def _member(owner: str, found: griffe.Object) -> Iterator[str]:
    """Yield the paragraphs of a public method or property that has a docstring."""
    if found.docstring is None or found.name.startswith("_") or found.name in _OF_LLAMA_INDEX:
        return
    if isinstance(found, griffe.Function):
        yield f"### {owner}.{found.name}"
        yield _signature(found.name, found, before=_async(found))
        yield from _docstring(found)
    elif isinstance(found, griffe.Attribute) and "property" in found.labels:
        yield f"### {owner}.{found.name}"
        yield f"```python\n{found.name}: {found.annotation}\n```"
        yield from _docstring(found)


def _async(found: griffe.Function) -> str:
    return "async " if "async" in found.labels else ""


def _signature(name: str, found: griffe.Function | griffe.Class, *, before: str = "") -> str:
    """Return the call as it is written, on one line if it fits."""
    parameters = [p for p in found.parameters if p.name not in ("self", "cls")]
    parts = list(_parameters(parameters)) or list(_fields(found))
    returned = found.returns if isinstance(found, griffe.Function) else None
    end = ")" if returned is None else f") -> {returned}"
    call = f"{before}{name}({', '.join(parts)}{end}"
    if len(call) > _WIDTH and parts:
        call = "\n".join([f"{before}{name}(", *(f"    {part}," for part in parts), end])
    return f"```python\n{call}\n```"


def _fields(found: griffe.Object) -> Iterator[str]:
    """Yield the fields of a pydantic model, which are the arguments of its constructor."""
    for name, member in found.members.items() if isinstance(found, griffe.Class) else ():
        annotated = isinstance(member, griffe.Attribute) and member.annotation is not None
        if annotated and not name.startswith("_") and "property" not in member.labels:
            yield f"{name}: {member.annotation}"


def _parameters(parameters: list[griffe.Parameter]) -> Iterator[str]:
    kinds = griffe.ParameterKind
    marked = False
    for parameter in parameters:
        if parameter.kind is kinds.keyword_only and not marked:
            yield "*"
        marked = marked or parameter.kind in (kinds.keyword_only, kinds.var_positional)
        stars = {kinds.var_positional: "*", kinds.var_keyword: "**"}.get(parameter.kind, "")
        text = stars + parameter.name
        text += "" if parameter.annotation is None else f": {parameter.annotation}"
        shown = parameter.default is not None and not stars
        yield text + (f" = {parameter.default}" if shown else "")


def _docstring(found: griffe.Object) -> Iterator[str]:
    for section in found.docstring.parsed if found.docstring else ():
        if isinstance(section, griffe.DocstringSectionText):
            yield _plain(section.value)
        elif isinstance(section, griffe.DocstringSectionAdmonition):
            yield f"**{section.title or section.value.kind}:** {_plain(section.value.contents)}"
        elif section.kind.value in _TITLES:
            items = "\n".join(_item(item) for item in section.value)
            yield f"**{_TITLES[section.kind.value]}:**\n\n{items}"


def _item(item: griffe.DocstringElement) -> str:
    """Return a line of a list: the name of an argument, or the type of what is returned."""
    name = getattr(item, "name", "") or str(item.annotation or "")
    text = " ".join(_plain(item.description).split())
    return f"- `{name}`: {text}" if name else f"- {text}"


def _plain(text: str) -> str:
    """Return text without the roles and doubled backquotes of reStructuredText."""
    short = _ROLE.sub(lambda m: f"`{m[1].removeprefix(PACKAGE + '.')}`", text)
    return short.replace("``", "`").strip()


if __name__ == "__main__":
    refresh()
