"""How many questions were written, how many kept, and why the others were not."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from llama_index_embeddings_adapted.candidates import Candidate
from llama_index_embeddings_adapted.errors import shorten


@dataclass(frozen=True)
class Dropped:
    """A question that was not kept, and the name of the filter that objected."""

    candidate: Candidate
    reason: str


@dataclass(frozen=True)
class BaseCost:
    """What was sent to a base model; texts whose vectors were kept cost nothing.

    Args:
        calls: Calls, the probes that identify the model included.
        texts: Texts sent.
        tokens: Of those texts, about: a token for every four characters.
    """

    calls: int = 0
    texts: int = 0
    tokens: int = 0


@dataclass(frozen=True, eq=False)
class QuestionReport:
    """What became of every question; printing it shows a table.

    Args:
        kept: In the order of the dataset.
        dropped: In the order they were dropped.
        passages: How many passages were asked about.
        failed: Passage id → why there is no answer about it.
        cut: How many passages were too long and sent only up to a limit.
        calls: Calls made to the LLM in this run; answers found in the journal cost none.
        calls_saved: Answers found in the journal.
        prompt_tokens: Billed for this run's calls, as far as the provider said.
        completion_tokens: Likewise.
        seconds: Wall time.
        base: What the filters asked of the base model in this run.
    """

    kept: tuple[Candidate, ...]
    dropped: tuple[Dropped, ...]
    passages: int
    failed: Mapping[str, str] = field(default_factory=dict)
    cut: int = 0
    calls: int = 0
    calls_saved: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    base: BaseCost = BaseCost()

    @property
    def written(self) -> int:
        """How many questions there were before filtering."""
        return len(self.kept) + len(self.dropped)

    @property
    def kept_fraction(self) -> float:
        """Kept of written, in [0, 1]; 0 where nothing was written."""
        return len(self.kept) / self.written if self.written else 0.0

    @property
    def reasons(self) -> dict[str, int]:
        """Reason → how many questions were dropped for it, most frequent first."""
        return dict(Counter(drop.reason for drop in self.dropped).most_common())

    def examples(self, reason: str, limit: int = 3) -> list[str]:
        """Return the first few questions that were dropped for a reason."""
        return [d.candidate.text for d in self.dropped if d.reason == reason][:limit]

    def to_dict(self) -> dict[str, Any]:
        """Return counts and examples as JSON knows them."""
        return {
            "written": self.written,
            "kept": len(self.kept),
            "dropped": self.reasons,
            "examples": {reason: self.examples(reason) for reason in self.reasons},
            "passages": self.passages,
            "failed": dict(self.failed),
            "cut": self.cut,
            "calls": self.calls,
            "calls_saved": self.calls_saved,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": self.seconds,
            **{f"base_{name}": number for name, number in asdict(self.base).items()},
        }

    def to_markdown(self) -> str:
        """Return the table: what was written, kept and dropped, with an example of each."""
        rows = [
            ("**written**", self.written, ""),
            ("**kept**", len(self.kept), self.kept[0].text if self.kept else ""),
            *((_spaced(r), n, self.examples(r, 1)[0]) for r, n in self.reasons.items()),
        ]
        lines = ["| questions | number | share | for example |", "|---|---:|---:|---|"]
        for name, number, example in rows:
            share = number / self.written if self.written else 0.0
            shown = shorten(example, 70).replace("|", "\\|")
            lines.append(f"| {name} | {number:,} | {share:.0%} | {shown} |")
        return "\n".join(lines)

    def __str__(self) -> str:
        facts = [f"{self.passages:,} passages, {self.seconds:.1f} s"]
        if self.calls or self.calls_saved:
            facts.append(f"{self.calls:,} calls made, {self.calls_saved:,} answers found on disk")
        if self.prompt_tokens or self.completion_tokens:
            facts.append(f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens")
        if self.base.texts:
            facts.append(f"{self.base.texts:,} texts embedded in {self.base.calls:,} calls")
        if self.cut:
            facts.append(f"{self.cut:,} passages sent only in part")
        text = f"{self.to_markdown()}\n{'; '.join(facts)}"
        if self.failed:
            text += f"\nNo answer about {len(self.failed):,} passages: {_grouped(self.failed)}"
        return text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.kept)} of {self.written} questions kept)"


def _spaced(reason: str) -> str:
    return reason.replace("_", " ")


def _grouped(failed: Mapping[str, str]) -> str:
    """Name the commonest failures with the first passages concerned."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for passage, reason in failed.items():
        by_reason[reason].append(passage)
    common = sorted(by_reason.items(), key=lambda item: -len(item[1]))[:3]
    return "; ".join(f"{len(p)} × {reason} (first: {p[0]})" for reason, p in common)
