"""Serves TorchScript models through TorchServe.

Two halves that never run in the same process:

* the worker side, of which an archive holds what its model needs: `batching`, `card`, `errors`,
  `images`, `metrics`, `payload`, `scripted`, `v2` and one module a model (`mnist`, `xor`);
* the server side, which starts and stops TorchServe: `exposition`, `server`, `settings`, `store`,
  `telemetry`, `torchserve`, `vitals`, and `worker`, which TorchServe starts its workers with.
"""
