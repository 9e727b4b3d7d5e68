"""What was tried and what held, kept in a JSON file over several starts of the campaign."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from deit_jax.runtime import atomic


@dataclasses.dataclass
class Outcome:
    """Of one row.

    Attributes:
        tried, held: how often.
        seen: details for the table.
        failures: a line about each that did not hold.
    """

    tried: int = 0
    held: int = 0
    seen: str = ""
    failures: list[str] = dataclasses.field(default_factory=list)

    def add(self, held: bool, complaint: str, kept: Path | None = None, times: int = 1) -> None:
        """Count one trial, or `times` of them that hold together; a folder whose trial failed is kept."""
        self.tried += times
        if self.tried // 10 > (self.tried - times) // 10:
            print(f"  {self.tried} tried", flush=True)
        if held:
            self.held += times
            return
        where = ""
        if kept is not None and kept.exists():
            number = sum(1 for _ in kept.parent.glob(f"{kept.name}-failed-*"))
            where = f"; kept: {kept.rename(kept.with_name(f'{kept.name}-failed-{number}'))}"
        self.failures.append(complaint + where)
        print(f"  does not hold: {complaint}{where}", flush=True)


def read(path: Path) -> dict[str, Any]:
    """{row: figures} of earlier starts."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, rows: dict[str, Any], name: str, outcome: Outcome, **more: Any) -> None:
    """Add a row's figures to the file, or replace them."""
    rows[name] = dataclasses.asdict(outcome) | more
    atomic.write_json(path, rows)


def text(rows: dict[str, Any]) -> str:
    """The figures as a table in Markdown."""
    lines = ["| fault | tried | held | seen | seconds |", "| --- | --- | --- | --- | --- |"]
    for row in rows.values():
        lines.append(f"| {row['what']} | {row['tried']:,} | {row['held']:,} | {row['seen']} | {row['seconds']:.0f} |")
    return "\n".join(lines)
