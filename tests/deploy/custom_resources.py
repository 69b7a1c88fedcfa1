"""Validates custom resources, given as JSON lines, against the schemas that their projects publish.

Runs in the environment of the deployment tools, which has pydantic models of those schemas. The
models drop unknown fields, so a resource is valid if it survives unchanged.
"""

import json
import sys
from typing import Any

from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor

# KEDA has it since 2.17, and the package is of 2.16, the last for this Python.
NEWER = {"ScaledObject.spec.fallback.behavior"}
MODELS = {model.__name__: model for model in (PrometheusRule, ScaledObject, ServiceMonitor)}


def unknown(given: Any, known: Any, path: str) -> list[str]:
    """Paths of the values that differ in what was kept."""
    if isinstance(given, dict) and isinstance(known, dict):
        return [p for key in given for p in unknown(given[key], known.get(key), f"{path}.{key}")]
    if isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        pairs = enumerate(zip(given, known, strict=True))
        return [p for i, (a, b) in pairs for p in unknown(a, b, f"{path}[{i}]")]
    return [] if given == known else [path]


def main() -> int:
    """Print what is wrong with each resource on standard input; return 1 if anything is."""
    failed = False
    for line in sys.stdin:
        resource = json.loads(line)
        kind = resource["kind"]
        try:
            model = MODELS[kind].model_validate(resource)
        except ValueError as error:  # pydantic's
            print(f"{kind}: {error}")
            failed = True
            continue
        kept = model.model_dump(by_alias=True, exclude_unset=True, mode="json")
        for path in {*unknown(resource, kept, kind)} - NEWER:
            print(f"{path}: unknown field, or value changed")
            failed = True
    return failed


if __name__ == "__main__":
    sys.exit(main())
