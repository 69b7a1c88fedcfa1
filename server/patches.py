"""Four changes to TorchServe's frontend that no setting can make.

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

`turns`: a worker takes no batch while others compute as many as the processors can, unless that
takes long. The frontend gives the next request to whichever worker has waited longest. On two
processors, which the workers share with the frontend and the door, two workers then compute batches
of half the size, each in turn with cold caches. `java/Turns.java` is who may take a batch instead;
`Model.pollBatch` calls it where it took a lock, where it has the first request, and where it fails.
With two workers on two processors, 32 connections get 1.2 times the requests a second for 0.7 of
the processor time, and a second worker is still there for what arrives beside a long batch.

`retry`: the batch of a worker that died is answered 502. The frontend answers it 507 or 500, which
a handler may answer as well, and for good: a request that does not fit into memory should not be
sent again. HAProxy can send a request again when it was answered 502, which nothing else says here.
So in `WorkerThread.run` the statuses 500 and 413 (which becomes 507 later) that are put aside for
the batch in hand become 502.

`direct`: a batch is written to its worker by the thread that made it. The frontend has
`CompletableFuture.runAsync` write it, which on two processors starts a thread for each batch, and
waits in that thread until it is written, which nobody asks for. That is half of the processor time
that the frontend takes for a request that is alone. So `WorkerThread.run` calls what would have run
in that thread, and there `sync()` is gone.
"""

import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = "org/pytorch/serve/wlm"
_MODEL = (
    f"{_PACKAGE}/Model.class",
    "7c5523f1fe77fe79aa32665469e17725e70518692abcf4987989ef72f10d4cff",
)
_WORKER_THREAD = (
    f"{_PACKAGE}/WorkerThread.class",
    "5292f5b79ac1ec509876cd997e2605848fd79f0b15b24ebd1a96c9c6b035ffd6",
)
# Of `java/Turns.java`, whose first line says by what command.
TURNS = Path(__file__).parent / "java" / "Turns.class"


@dataclass(frozen=True)
class Patch:
    """A change to one class.

    Attributes:
        name: of the class file in the jar.
        sha256: digest of the class file that is changed; no other is.
        replacements: byte strings and what replaces each wherever it occurs.
        constants: that the replacements refer to, in the format of a class file (JVM specification,
            4.4). They come after those that the class has.
        pool_end: offset of the end of the class's own.
        beside: a class of ours that it calls.
    """

    name: str
    sha256: str
    replacements: Mapping[bytes, bytes]
    constants: tuple[bytes, ...] = ()
    pool_end: int = 0
    beside: Path | None = None

    def changed(self, content: bytes) -> bytes:
        """A class file with this change, from one without it."""
        for before, after in self.replacements.items():
            content = content.replace(before, after)
        if self.constants:
            count = int.from_bytes(content[8:10], "big") + len(self.constants)
            pool = content[10 : self.pool_end] + b"".join(self.constants)
            content = content[:8] + count.to_bytes(2, "big") + pool + content[self.pool_end :]
        return content


def _utf8(text: str) -> bytes:
    return bytes.fromhex("01") + len(text).to_bytes(2, "big") + text.encode()


PATCHES = {
    "batch": Patch(
        *_MODEL,
        {
            # aload jobsQueue; lload maxDelay, getstatic MILLISECONDS, invokevirtual poll(,)
            bytes.fromhex("1905  1606 b201f2 b601f8"):
            # aload jobsQueue; five times nop, invokevirtual poll()
            bytes.fromhex("1905  0000 000000 b6021a"),
        },
    ),
    "turns": Patch(
        *_MODEL,
        {
            # aload this, getfield lock; invokevirtual lockInterruptibly, aload this, getfield
            # maxBatchDelay: instead of the former, invokestatic take
            bytes.fromhex("2a b40100  b601b8  2a b400e8"): bytes.fromhex(
                "2a b40100  b802e3  2a b400e8"
            ),
            # getstatic logger, ldc "get first job: {}", aload job, requireNonNull, checkcast Job,
            # getJobId, trace
            bytes.fromhex("b20090 130201 1908 b80203 c001b0 b601c7 b902080300"):
            # aload this, getfield lock, invokestatic begin; fifteen times nop
            bytes.fromhex("2a b40100 b802e6" + 15 * "00"),
            # astore exception, aload this, getfield lock; invokevirtual isHeldByCurrentThread:
            # instead of it, invokestatic leave
            bytes.fromhex("3a0e 2a b40100  b601cd"): bytes.fromhex("3a0e 2a b40100  b802e9"),
        },
        constants=(
            _utf8(f"{_PACKAGE}/Turns"),
            bytes.fromhex("07 02dd"),  # 2de: class; the first constant is 2dd
            _utf8("(Ljava/util/concurrent/locks/ReentrantLock;)V"),
            _utf8("(Ljava/util/concurrent/locks/ReentrantLock;)Z"),
            _utf8("take"),
            bytes.fromhex("0c 02e1 02df"),  # 2e2: name and type
            bytes.fromhex("0a 02de 02e2"),  # 2e3: method
            _utf8("begin"),
            bytes.fromhex("0c 02e4 02df"),
            bytes.fromhex("0a 02de 02e5"),  # 2e6: method
            _utf8("leave"),
            bytes.fromhex("0c 02e7 02e0"),
            bytes.fromhex("0a 02de 02e8"),  # 2e9: method
        ),
        pool_end=10784,
        beside=TURNS,
    ),
    "retry": Patch(
        *_WORKER_THREAD,
        {
            # sipush 500 and sipush 413, istore status: each becomes sipush 502
            bytes.fromhex("1101f4 3d"): bytes.fromhex("1101f6 3d"),
            bytes.fromhex("11019d 3d"): bytes.fromhex("1101f6 3d"),
        },
    ),
    "direct": Patch(
        *_WORKER_THREAD,
        {
            # aload futures, aload this, iload channel, invokedynamic run, invokestatic runAsync,
            # invokeinterface add, pop
            bytes.fromhex("1908 2a 150a ba01670000 b8016b b901710200 57"):
            # aload this, iload channel, invokespecial lambda$run$0; thirteen times nop
            bytes.fromhex("2a 150a b703ed" + 13 * "00"),
            # invokeinterface writeAndFlush; invokeinterface sync, pop: nop instead of the former
            bytes.fromhex("b903550200  b9027b0100 57"): bytes.fromhex("b903550200  0000000000 57"),
        },
    ),
}


def apply(jar: Path, directory: Path, names: Iterable[str]) -> set[str]:
    """Write the changed classes under a directory that is to come first on the class path.

    Args:
        jar: TorchServe's `model-server.jar`.
        directory: where to put them.
        names: which of `PATCHES` to apply.

    Returns:
        The names of those that do not fit this TorchServe; nothing was written for them.
    """
    missing = set()
    classes: dict[str, bytes] = {}
    with zipfile.ZipFile(jar) as archive:
        for name in names:
            patch = PATCHES[name]
            content = archive.read(patch.name) if patch.name in archive.namelist() else b""
            if hashlib.sha256(content).hexdigest() != patch.sha256:
                missing.add(name)
                continue
            classes[patch.name] = patch.changed(classes.get(patch.name, content))
            if patch.beside:
                classes[f"{_PACKAGE}/{patch.beside.name}"] = patch.beside.read_bytes()
    for file, content in classes.items():
        target = directory / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return missing
