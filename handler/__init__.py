"""Serves TorchScript models through TorchServe.

Two halves that never run in the same process:

* the worker side, copied into every archive: `batching`, `card`, `errors`, `images`, `payload`,
  `scripted` and one module a model (`mnist`, `xor`);
* the server side, which starts and stops TorchServe: `server`, `settings`, `store`, `telemetry`,
  `torchserve`, `worker`.
"""
