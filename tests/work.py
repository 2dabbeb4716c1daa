"""The work of torch's operators as a number that does not depend on how busy the machine is."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PARTIAL = ("aten::index", "aten::index_select", "aten::embedding", "aten::gather")  # they read what they return


class Work(TorchDispatchMode):
    """Counts the elements that operators read and write inside the context, in `elements`; views cost nothing."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            used = out if func.name().partition(".")[0] in PARTIAL else (args, kwargs, out)
            self.elements += sum(one.numel() for one in tree_leaves(used) if isinstance(one, Tensor))
        return out
