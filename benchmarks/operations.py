"""Count the operations that a piece of work starts: on a GPU each launches a kernel, or copies memory."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OperationCounter(TorchDispatchMode):
    """Counts the operations of forward and backward, below autograd; views and allocations compute nothing.

    Attributes:
        count: operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation, and count it unless it is a view or an allocation."""
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        is_view = not name.endswith("_") and bool(_storages(result) & _storages((args, kwargs)))
        self.count += not is_view and not name.startswith(("empty", "new_empty"))
        return result


def _storages(values: Any) -> set[int]:
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)} - {0}
