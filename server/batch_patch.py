"""TorchServe's frontend with one call changed, so that no batch waits for company.

With a batch size over 1, the frontend takes the first request of a batch from its queue and then
waits up to `maxBatchDelay` for more, even where nothing else is under way; and 1 ms is the least
that it accepts. That more than doubles the latency of a request that is alone, and at load it is
idle time before every batch that is not full. What a worker should get instead is whatever has
arrived while it was busy.

None of TorchServe's settings does that (0.12.0): a delay of 0 is read as 100 ms, or, passed through
a model snapshot, ends every batch at two requests; `continuousBatching` waits as well;
`useJobTicket` refuses what it cannot start; `asyncCommunication` shares an unsynchronised map
between threads and never forgets a request that was answered; a batch size of 1 with as many
workers as requests costs the frontend five times the processor time (4,700 requests a second at
most, measured with workers that did nothing).

So in `Model.pollBatch` the call `jobsQueue.poll(maxDelay, TimeUnit.MILLISECONDS)` becomes
`jobsQueue.poll()`: eight bytes of one class, put on the class path before TorchServe's own jar. The
jar itself is not touched.
"""

import hashlib
import zipfile
from pathlib import Path

_CLASS = "org/pytorch/serve/wlm/Model.class"
_SHA256 = "7c5523f1fe77fe79aa32665469e17725e70518692abcf4987989ef72f10d4cff"  # in torchserve 0.12.0
# aload jobsQueue, and then: lload maxDelay, getstatic MILLISECONDS, invokevirtual poll(long, unit)
_WAIT = bytes.fromhex("1905  1606 b201f2 b601f8")
# five times nop, invokevirtual poll()
_TAKE = bytes.fromhex("1905  0000 000000 b6021a")


def without_wait(jar: Path, directory: Path) -> bool:
    """Write the changed class under a directory that is to come first on the class path.

    Args:
        jar: TorchServe's `model-server.jar`.
        directory: where to put it.

    Returns:
        False where the class is not that of TorchServe 0.12.0, and nothing was written.
    """
    with zipfile.ZipFile(jar) as archive:
        original = archive.read(_CLASS)
    if hashlib.sha256(original).hexdigest() != _SHA256:
        return False
    target = directory / _CLASS
    target.parent.mkdir(parents=True)
    target.write_bytes(original.replace(_WAIT, _TAKE))
    return True
