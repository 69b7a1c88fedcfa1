"""A table of the archives in a store, and of the trained models that are not packed there."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from handler.card import ModelCard
from training import cache
from training.archive import OTHER_TRAINING_CODE, Archive, ArchiveError, examine, read_archive
from training.cache import Entry
from training.registry import MODELS

_HEAD = ("MODEL", "VERSION", "TEST ACCURACY", "SIZE", "TORCHSCRIPT", "STATE", "PATH")


def table(store: Path) -> str:
    """Archives by file name, then cache entries by model, the one to be packed first.

    The size is the archive's, or the TorchScript's, in kB (1,000 bytes).
    """
    return columns([_HEAD, *_rows(store)])


def columns(rows: list[tuple[str, ...]]) -> str:
    """Rows of equal length as lines of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _rows(store: Path) -> Iterator[tuple[str, ...]]:
    entries = {name: cache.entries(name) for name in MODELS}
    packed = set()
    for file in sorted(store.glob("*.mar")):
        size = _kilobytes(file.stat().st_size)
        try:
            archive = read_archive(file)
        except ArchiveError:
            yield ("-", "-", "-", size, "-", "corrupt", str(file))
            continue
        accuracy = digest = "-"
        if archive.is_ours:
            digest = archive.torchscript_sha256[:12]
            packed.add((archive.name, digest))
            with suppress(ArchiveError):  # in which case the state says what is wrong
                accuracy = metric_of_test(archive.card(), "accuracy")
        state = _state(archive, entries.get(archive.name))
        yield (archive.name, archive.version, accuracy, size, digest, state, str(file))
    for name in MODELS:
        for entry in entries[name]:
            digest = entry.card.torchscript_sha256[:12]
            if (name, digest) not in packed:
                state = "not packed" if entry.is_current else f"not packed; {OTHER_TRAINING_CODE}"
                size = _kilobytes(len(entry.torchscript))
                path = str(entry.directory)
                yield (name, "-", metric_of_test(entry.card, "accuracy"), size, digest, state, path)


def _state(archive: Archive, entries: list[Entry] | None) -> str:
    if entries is None:
        return "not a model of this repository"
    state = examine(archive, entries)
    freshness = f"stale: {state.stale}" if state.stale else "current"
    return "; ".join(filter(None, [freshness if archive.is_ours else "", state.remark]))


def metric_of_test(card: ModelCard, name: str) -> str:
    """A metric of the test split, `-` where the card does not have it."""
    value = card.metrics.get("test", {}).get(name)
    return "-" if value is None else f"{value:.4f}"


def _kilobytes(count: int) -> str:
    return f"{count / 1000:,.0f} kB"
