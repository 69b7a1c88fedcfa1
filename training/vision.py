"""The one place that imports torchvision.

torchvision's wheel on the package index is built for CUDA. Beside a CPU-only torch its C++
operators do not load, and `import torchvision` fails, because it registers shape functions for two
of them. Declaring those two first lets the import through. Where the operators do load, nothing is
declared.
"""

import sys

import torch

__all__ = ["torchvision"]

try:
    import torchvision
except RuntimeError as error:
    if "does not exist" not in str(error):
        raise
    for _name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[_name]
    # Kept referenced: the declarations last as long as this object.
    _declarations = torch.library.Library("torchvision", "DEF")
    for _operator in ("nms", "qnms"):
        _declarations.define(
            f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    import torchvision
