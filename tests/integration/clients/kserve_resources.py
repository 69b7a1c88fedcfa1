"""KServe's models: `python -m tests.integration.clients.kserve_resources FILE...`.

Prints what they write of the resources that they have read, as a list in JSON: a field that they
do not know is not in it.
"""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kserve
import kubernetes.client
import yaml

# Containers and volumes are Kubernetes' own, whose client has the models of these.
for name in dir(kubernetes.client.models):
    if name.startswith("V1") and not hasattr(kserve.models, name):
        setattr(kserve.models, name, getattr(kubernetes.client, name))


class Client(kserve.ApiClient):  # type: ignore[misc]
    """KServe's, which knows the names of types as Kubernetes' client has them now."""

    def _ApiClient__deserialize(self, data: Any, kind: Any) -> Any:  # noqa: N802
        if isinstance(kind, str):
            kind = re.sub(r"^Dict\[(.*)\]$", r"dict(\1)", kind).replace("List[", "list[")
        return super()._ApiClient__deserialize(data, kind)


client = Client()
KINDS = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
written = []
for file in sys.argv[1:]:
    document = yaml.safe_load(Path(file).read_text())
    response = SimpleNamespace(data=json.dumps(document))
    read = client.deserialize(response, KINDS[document["kind"]])
    written.append(client.sanitize_for_serialization(read))
print(json.dumps(written))
