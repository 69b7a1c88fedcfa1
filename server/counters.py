"""Counters summed over successive processes, so that none goes down when one is replaced."""

import re
import threading
from collections.abc import Iterator

# A sample in the text format; the label part, where there is one, is kept as it is.
_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(\{.*\})? (\S+)$")
_TYPE = re.compile(r"^# TYPE (\S+) (\S+)$")


class Succession:
    """The metrics of successive processes, as if they were one.

    Counters and histograms are summed over all processes; everything else is the newest one's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: dict[str, str] = {}
        self._ended: dict[tuple[str, str], float] = {}

    def update(self, process: str, text: bytes) -> None:
        """Set the current metrics of a process, in the text format; a new name is the newest."""
        with self._lock:
            if text:
                self._texts[process] = text.decode()

    def end(self, process: str) -> None:
        """End a process: its counts are kept, everything else is dropped."""
        with self._lock:
            text = self._texts.pop(process, "")
            for key, value in _counters(text):
                self._ended[key] = self._ended.get(key, 0.0) + value

    def total(self, name: str, proxy: str) -> float:
        """The sum of one of HAProxy's counters over all label sets of a proxy."""
        pattern = re.compile(rf'^{name}\{{proxy="{proxy}"[^}}]*\}} (\S+)$', re.MULTILINE)
        return sum(map(float, pattern.findall(self.text().decode())))

    def text(self) -> bytes:
        """All metrics, in the text format."""
        with self._lock:
            *older, newest = self._texts.values() or [""]
            added = dict(self._ended)
            for text in older:
                for key, value in _counters(text):
                    added[key] = added.get(key, 0.0) + value
        return (_sum(newest, added) if added else newest).encode()


def _families(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Name, type and lines of each family, its comments among them."""
    name, kind, lines = "", "", list[str]()
    for line in text.splitlines():
        if line.startswith("# HELP ") or (line.startswith("# TYPE ") and line.split()[2] != name):
            if lines:
                yield name, kind, lines
            name, kind, lines = line.split()[2], "", []
        if match := _TYPE.match(line):
            kind = match[2]
        lines.append(line)
    if lines:
        yield name, kind, lines


def _counters(text: str) -> Iterator[tuple[tuple[str, str], float]]:
    """Family and sample of each counter, and its value."""
    for name, kind, lines in _families(text):
        if kind in ("counter", "histogram"):
            for line in lines:
                if match := _SAMPLE.match(line):
                    yield (name, match[1] + (match[2] or "")), float(match[3])


def _sum(text: str, added: dict[tuple[str, str], float]) -> str:
    """A text with other counters added to its own; those that it lacks are put in."""
    rest = dict(added)
    out: list[str] = []
    for name, kind, lines in _families(text):
        for line in lines:
            match = _SAMPLE.match(line) if kind in ("counter", "histogram") else None
            if match:
                sample = match[1] + (match[2] or "")
                value = float(match[3]) + rest.pop((name, sample), 0.0)
                out.append(f"{sample} {value:.17g}")
            else:
                out.append(line)
        out += [f"{key[1]} {rest.pop(key):.17g}" for key in list(rest) if key[0] == name]
    for family in dict.fromkeys(name for name, _ in rest):
        out.append(f"# TYPE {family} counter")
        out += [
            f"{sample} {value:.17g}" for (name, sample), value in rest.items() if name == family
        ]
    return "\n".join(out) + "\n"
