"""Which of torch's operators a piece of code calls, and how often."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operators for which the CPU waits until a GPU has computed all that it was given: a number or a list of places is read
# from it.
SYNCHRONIZING = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten._unique2", "torchvision.nms")
# They do so where a place is said by yes or no.
_INDEXING = ("aten.index", "aten.index_put", "aten.index_put_")


class CountedCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own is untyped
    """While it is entered, counts the calls of operators by their names, such as ``aten.add``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.calls: Counter[str] = Counter()
        self._masked = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func.overloadpacket)
        self.calls[name] += 1
        if name in _INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self._masked += 1
        return func(*args, **(kwargs or {}))

    @property
    def synchronizations(self) -> int:
        """How many of the calls make the CPU wait for a GPU."""
        return sum(self.calls[name] for name in SYNCHRONIZING) + self._masked
