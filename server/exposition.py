"""The metrics of all workers, dead ones included, in Prometheus's format."""

import contextlib
import struct
import threading
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_RETRIES = 4


class Exposition:
    """Reads the files that workers write.

    A worker that died leaves its files. Their counts are added to one file for all dead workers, so
    that no counter goes down and the directory does not grow with every restart.

    Args:
        directory: what `PROMETHEUS_MULTIPROC_DIR` is for the workers.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()

    def text(self) -> bytes:
        """All metrics, in the text format."""
        with self._lock:
            self._fold()
            registry = CollectorRegistry()
            MultiProcessCollector(registry, path=str(self._directory))
            for _ in range(_RETRIES):
                # A worker that creates its file in this moment has not yet written its head.
                with contextlib.suppress(struct.error):
                    return generate_latest(registry)
            return generate_latest(registry)

    def fold(self) -> None:
        """Add up the files of dead workers, for a server that nobody scrapes."""
        with self._lock:
            self._fold()

    def _fold(self) -> None:
        for kind in ("counter", "histogram"):
            dead = [file for file in self._directory.glob(f"{kind}_*.db") if _is_dead(file)]
            if not dead:
                continue
            folded = self._directory / f"{kind}_dead.db"
            totals: dict[str, float] = {}
            files = [*dead, folded] if folded.exists() else dead
            for file in (file for file in files if file.stat().st_size):  # killed as it created it
                for key, value, *_ in MmapedDict.read_all_values_from_file(str(file)):
                    totals[key] = totals.get(key, 0.0) + value
            partial = self._directory / f"{kind}.partial"
            partial.unlink(missing_ok=True)
            target = MmapedDict(str(partial))
            for key, total in totals.items():
                target.write_value(key, total, 0.0)
            target.close()
            partial.replace(folded)
            for file in dead:
                file.unlink()
        for file in self._directory.glob("gauge_live*.db"):
            if _is_dead(file):
                mark_process_dead(_process(file), path=str(self._directory))


def _process(file: Path) -> str:
    return file.stem.rpartition("_")[2]


def _is_dead(file: Path) -> bool:
    process = _process(file)
    return process.isdecimal() and not psutil.pid_exists(int(process))
