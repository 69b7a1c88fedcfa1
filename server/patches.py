"""Two changes to TorchServe's frontend that no setting can make.

Each changes a few bytes of one class of TorchServe 0.12.0, guarded by the SHA-256 of that class.
The changed copy comes before TorchServe's own jar on the class path; the jar is not touched.

`batch`: no batch waits for more. With a batch size over 1, the frontend takes the first request
of a batch from its queue and then waits up to `maxBatchDelay` for more, even where nothing else is
under way; and 1 ms is the least that it accepts. That more than doubles the latency of a request
that is alone, and under load it is idle time before every batch that is not full. What a worker
should get instead is whatever has arrived while it was busy. A delay of 0 is read as 100 ms, or,
passed through a model snapshot, ends every batch at two requests; `continuousBatching` waits as
well; `useJobTicket` refuses what it cannot start; `asyncCommunication` shares an unsynchronised map
between threads and never forgets a request that was answered; a batch size of 1 with as many
workers as requests costs the frontend five times the processor time (4,700 requests a second at
most, measured with workers that did nothing). So in `Model.pollBatch` the call
`jobsQueue.poll(maxDelay, TimeUnit.MILLISECONDS)` becomes `jobsQueue.poll()`.

`retry`: the batch of a worker that died is answered 502. The frontend answers it 507 or 500, which
a handler may answer as well, and for good: a request that does not fit into memory should not be
sent again. HAProxy can send a request again when it was answered 502, which nothing else says here.
So in `WorkerThread.run` the statuses 500 and 413 (which becomes 507 later) that are put aside for
the batch in hand become 502.
"""

import hashlib
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Patch:
    """A change to one class.

    Attributes:
        name: of the class file in the jar.
        sha256: digest of the class file that is changed; no other is.
        replacements: byte strings and what replaces each wherever it occurs.
    """

    name: str
    sha256: str
    replacements: Mapping[bytes, bytes]


PATCHES = {
    "batch": Patch(
        "org/pytorch/serve/wlm/Model.class",
        "7c5523f1fe77fe79aa32665469e17725e70518692abcf4987989ef72f10d4cff",
        {
            # aload jobsQueue; lload maxDelay, getstatic MILLISECONDS, invokevirtual poll(,)
            bytes.fromhex("1905  1606 b201f2 b601f8"):
            # aload jobsQueue; five times nop, invokevirtual poll()
            bytes.fromhex("1905  0000 000000 b6021a"),
        },
    ),
    "retry": Patch(
        "org/pytorch/serve/wlm/WorkerThread.class",
        "5292f5b79ac1ec509876cd997e2605848fd79f0b15b24ebd1a96c9c6b035ffd6",
        {
            # sipush 500 and sipush 413, istore status: each becomes sipush 502
            bytes.fromhex("1101f4 3d"): bytes.fromhex("1101f6 3d"),
            bytes.fromhex("11019d 3d"): bytes.fromhex("1101f6 3d"),
        },
    ),
}


def apply(jar: Path, directory: Path, names: Collection[str]) -> set[str]:
    """Write the changed classes under a directory that is to come first on the class path.

    Args:
        jar: TorchServe's `model-server.jar`.
        directory: where to put them.
        names: which of `PATCHES` to apply.

    Returns:
        The names of those that do not fit this TorchServe; nothing was written for them.
    """
    missing = set()
    with zipfile.ZipFile(jar) as archive:
        for name in names:
            patch = PATCHES[name]
            content = archive.read(patch.name) if patch.name in archive.namelist() else b""
            if hashlib.sha256(content).hexdigest() != patch.sha256:
                missing.add(name)
                continue
            for before, after in patch.replacements.items():
                content = content.replace(before, after)
            target = directory / patch.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return missing
