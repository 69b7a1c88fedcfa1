"""How large a case is, and the figures that it leaves for the report.

Every case exists once. `RELIABILITY=long` (`make test-reliability`) runs it with the repetitions
and durations that the report is made from; otherwise (`make test`) it is short.
"""

import datetime as dt
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.serving import ROOT

LONG = os.environ.get("RELIABILITY") == "long"
DIRECTORY = ROOT / "artifacts" / "reliability" / ("long" if LONG else "short")
T = TypeVar("T")
Cell = str | int | float | None


def scaled(short: T, long: T) -> T:
    """One of two sizes of a case: that of `make test`, or that of `make test-reliability`."""
    return long if LONG else short


@dataclass(frozen=True)
class Section:
    """A table of the report; a module makes one, and records its rows.

    Attributes:
        order: sections come by this number in the report.
        title: its heading.
        text: Markdown that stands before the table and says what was done and how it was counted.
        picture: file name in `tests/reliability` of a figure to show after the table, if any.
    """

    order: int
    title: str
    text: str
    picture: str = ""

    @property
    def file(self) -> Path:
        """Where its rows are kept."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")
        return DIRECTORY / f"{self.order:02}-{slug}.json"

    def record(self, row: Mapping[str, Cell], notes: str = "") -> None:
        """Keep a row of the table, in place of one with the same first cell, and print it.

        Args:
            row: cells by the heading of their columns, in order; the first names the case. Sections
                may have rows with different columns: the table has all of them.
            notes: what the figures do not say; the last column.
        """
        cells = dict(row) | ({"notes": notes} if notes else {})
        print(f"\n{self.title}: {cells}")
        load = os.getloadavg()[0]
        document: dict[str, Any] = {"rows": [], "load": (load, load)}
        if self.file.exists():
            document = json.loads(self.file.read_text())
        first = next(iter(cells.items()))
        rows = [each for each in document["rows"] if next(iter(each.items())) != first]
        low, high = document["load"]
        document = asdict(self) | {
            "rows": [*rows, cells],
            "machine": machine(),
            # Whether it had other work, on which times depend.
            "load": (min(low, load), max(high, load)),
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(document, indent=1))


def machine() -> dict[str, str]:
    """What the figures of now were measured on, and when."""
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}",
    }
