"""Let a torchvision that was built for CUDA be imported beside a torch that was built for the CPU.

Such a torchvision finds no CUDA library, so its compiled operators are missing, and importing it ends with "operator
torchvision::nms does not exist". All this project needs of it is that it can be imported (segment-anything does), and
for that it is enough that the two operators have been declared; calling them still fails. quickstart.sh puts this file
and a .pth line that imports it into its own environment, on machines where importing torchvision fails, and nowhere
else.
"""

import sys


class _DeclareOperators:
    """An import hook that looks for nothing itself: it hears of torchvision's import before that begins."""

    library = None

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision" and cls.library is None:
            import torch

            # The declarations live as long as the library object does.
            cls.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                cls.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, _DeclareOperators)
