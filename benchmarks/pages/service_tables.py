"""Tables of what happens after training: new base models, live queries."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import environment


def upgrade_table() -> str:
    """New queries over the old index, beside the old model and a real re-embedding."""
    rows = [
        "| index | queries | map | old model | through the map | re-embedded | kept "
        "| lost, 95 % interval |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for run in environment.load("upgrade")["runs"]:
        found = run["test"]
        old, mapped, new = (values["ndcg@10"] for name, values in found.items() if "model" in name
                            and isinstance(values, dict))  # fmt: skip
        _, low, high = found["against re-embedding"]
        rows.append(
            f"| {run['old']} | {run['new']} | {run['method']} | {old:.4f} | {mapped:.4f} "
            f"| {new:.4f} | {found['kept']['ndcg@10']:.1%} | [{low:+.4f}, {high:+.4f}] |"
        )
    return "\n".join(rows)


def watching_table() -> str:
    """Alarms on queries like those of training, on test queries, and on those of other sets."""
    rows = [
        "| trained on | the same: far | alarm | test: far | alarm | other sets: far | alarms |",
        "|---|---:|---|---:|---|---:|---:|",
    ]
    found = environment.load("watching")["rows"]
    for name in dict.fromkeys(row["trained on"] for row in found):
        mine = {row["live"]: row for row in found if row["trained on"] == name}
        cells = [_far(mine.pop(kind)) for kind in ("the same", "test")]
        shares = [row["far_share"] for row in mine.values()]
        alarms = sum(row["retrain"] for row in mine.values())
        rows.append(
            f"| {name} | {cells[0]} | {cells[1]} | {min(shares):.0%} to {max(shares):.0%} "
            f"| {alarms} of {len(mine)} |"
        )
    return "\n".join(rows)


def _far(row: dict[str, object]) -> str:
    return f"{row['far_share']:.1%} | {'yes' if row['retrain'] else 'no'}"


TABLES: dict[str, Callable[[], str]] = {"upgrade": upgrade_table, "watching": watching_table}
