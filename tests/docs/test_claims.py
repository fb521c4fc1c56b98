import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import environment
from tests.conftest import ROOT

CLAIMS = ROOT / "benchmarks" / "CLAIMS.md"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
_UNIT = r"(?:%|s\b|seconds?|minutes?|hours?|ms\b|µs|[KMG]i?B\b|times\b|queries/s|points)"
_NUMBER = re.compile(rf"(?<![\w.:/])((?:\d[\d,]*)?\.?\d+ ?{_UNIT})")
_ROW = re.compile(r"^\| (.+?) \| \[(.+?)\]\(.+?\) \| `(.+?)` \| `(.*?)` \| `(.+?)` \|$", re.M)
_SETTING = re.compile(r"^- (.+?): ", re.MULTILINE)


def rows() -> list[tuple[str, ...]]:
    return _ROW.findall(_section("Numbers"))


def _section(name: str) -> str:
    return CLAIMS.read_text(encoding="utf-8").split(f"## {name}\n")[1].split("\n## ")[0]


def prose(page: Path) -> str:
    """Return what a page says outside of code and of tables made from result files."""
    text = re.sub(r"<!-- results: .*?<!-- end -->", "", page.read_text("utf-8"), flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def measured(file: str, place: str) -> Any:
    value: Any = environment.load(Path(file).stem)
    for key in place.split("/"):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def number(text: str) -> tuple[float, int]:
    digits = re.search(r"[-+−]?[\d,]*\.?\d+", text)
    assert digits, text
    plain = digits[0].replace(",", "").replace("−", "-")
    return float(plain), len(plain.partition(".")[2])


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]} in {row[1]}")
def test_a_claim_is_what_was_measured(row):
    claim, page, file, place, command = row
    assert claim in (ROOT / page).read_text(encoding="utf-8")
    found = environment.load(Path(file).stem)
    assert found["command"].startswith(command)
    one, _, other = place.partition(" of ")
    value = measured(file, one) / (measured(file, other) if other else 1)
    said, digits = number(claim)
    scale = 100 if "%" in claim else 1
    assert round(value * scale, digits) == pytest.approx(said)


def test_no_measured_number_is_without_a_source():
    known = {(claim, page) for claim, page, *_ in rows()}
    settings = set(_SETTING.findall(_section("Settings, not measurements")))
    told = [(str(page.relative_to(ROOT)), _NUMBER.findall(prose(page))) for page in PAGES]
    loose = {(number, page) for page, numbers in told for number in numbers} - known
    loose = {(number, page) for number, page in loose if number not in settings}
    assert loose == set()


def test_the_output_that_the_readme_shows_was_recorded():
    shown = (ROOT / "README.md").read_text("utf-8").split("```text\n")[1].split("```")[0]
    recorded = environment.load("folder")
    told = [recorded["plan"], *recorded["output"]]
    for line in shown.splitlines():
        assert any(one.startswith(line.removesuffix("…").rstrip()) for one in told), line


def test_result_files_are_small_and_have_one_run_per_line():
    written_by_0_1 = environment.RESULTS / "frozen.json"
    for path in {*environment.RESULTS.glob("*.json")} - {written_by_0_1}:
        text = path.read_text(encoding="utf-8")
        assert len(text.encode()) <= 500_000, path.name
        assert text == environment.written(environment.load(path.stem)) + "\n", path.name
