"""Captured steps: on a GPU, a step is captured as a CUDA graph and then replayed with a single launch."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ickd_lib.methods import Method

WARM_UP = 3  # eager steps before the capture, in which buffers are allocated and libraries choose their kernels
Capture = Callable[[Callable[[], None]], Callable[[], None]]


class CudaGraphs:
    """Captures steps as CUDA graphs, all on one stream.

    Eager steps run on this stream too (`aside`): autograd remembers on which stream it first met a parameter, and a
    capture fails if that is another one.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Run what is inside the context on the stream, after what was launched before, and before what follows."""
        main = torch.cuda.current_stream()
        self.stream.wait_stream(main)
        with torch.cuda.stream(self.stream):
            yield
        main.wait_stream(self.stream)

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture the kernels that `work` launches, without running them.

        Every tensor that `work` reads must keep its address in memory.

        Returns:
            A function that runs the captured kernels.
        Raises:
            RuntimeError: `work` does something that a graph cannot contain.
        """
        gc.collect()  # what is left of earlier steps could be freed during the capture
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        capture = torch.cuda.graph(graph, pool=pool, stream=self.stream)
        try:
            with torch.cuda.stream(torch.cuda.current_stream()), capture:  # a capture that fails leaves its own stream
                work()
        except RuntimeError:
            _recover(pool)
            raise
        return graph.replay


def _recover(pool: Any) -> None:
    """End what torch leaves unfinished after a capture that failed, so that eager steps and captures work again.

    Raises:
        RuntimeError: the GPU cannot be used any more.
    """
    torch.cuda.synchronize()
    device = torch.cuda.current_device()
    # The allocator takes the capture as not ended. There is no public function that ends it.
    with contextlib.suppress(AttributeError, RuntimeError):
        torch._C._cuda_endAllocateToPool(device, pool)
    # A generator counts its draws apart during a capture. After one that failed it can go on doing so, and raise an
    # error at each draw, so it is given a state that no capture has used.
    torch.cuda.default_generators[device].graphsafe_set_state(torch.Generator(f"cuda:{device}"))


def cause(error: BaseException) -> str:
    """Return the first line of the error that came first among those that were raised while others were handled.

    When an operation ends a capture, the end of the capture raises an error of its own, which does not name it.
    """
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class CapturedSteps:
    """Runs steps eagerly until one kind of step has been taken a few times, then captures and replays it.

    A step that reads a value on the host, or copies one to the device, cannot be captured. The eager steps show this,
    and all later steps of this kind run eagerly too.

    Args:
        capture: `CudaGraphs()`, or None to run every step eagerly.
    Attributes:
        captures, replays: number of steps that were captured, and of those that were replayed.
    """

    def __init__(self, capture: Capture | None) -> None:
        self.capture = capture
        self._aside = getattr(capture, "aside", contextlib.nullcontext)
        self._kind: object = None  # kind of the last step
        self._taken = 0  # number of steps of this kind in a row
        self._replay: Callable[[], None] | None = None
        self._unfit: set[object] = set()
        self.captures = self.replays = 0

    def run(self, kind: object, work: Callable[[], None], names: list[str], whole: bool) -> None:
        """Run a step.

        Args:
            kind: a value that is equal for steps that do the same work on other values.
            work: computes the step.
            names: names of the methods, for the warning.
            whole: whether the batch has the usual size; a step with another size runs eagerly.
        """
        if kind != self._kind:
            self._kind, self._taken, self._replay = kind, 0, None
        if self.capture is None or not whole or kind in self._unfit:
            with self._aside():
                work()
        elif self._taken < WARM_UP:
            self._taken += 1
            with self._aside(), HostReads() if self._taken == WARM_UP else contextlib.nullcontext() as watch:
                work()
            if watch and watch.found:
                self._refuse(kind, names, f"its step reads values on the host ({', '.join(sorted(watch.found))})")
        else:
            if self._replay is None:
                try:
                    self._replay = self.capture(work)
                except RuntimeError as error:
                    self._refuse(kind, names, f"its capture failed ({cause(error)}; --no-capture does not try it)")
                    with self._aside():
                        work()
                    return
                self.captures += 1
            self._replay()
            self.replays += 1

    def _refuse(self, kind: object, names: list[str], why: str) -> None:
        """Run steps of this kind eagerly from now on, and warn."""
        self._unfit.add(kind)
        text = f"{', '.join(sorted(set(names)))}: {why}, so it is not captured but runs eagerly, which is slower"
        warnings.warn(text, stacklevel=6)


def reason_against(callbacks: Sequence[Any], networks: Sequence[torch.nn.Module]) -> str:
    """Return why steps must run eagerly, or "": a callback needs it, or a network has hooks, which a replay skips."""
    for callback in callbacks:
        if getattr(callback, "needs_eager", False):
            return f"the callback {type(callback).__name__} observes the inside of a step"
    for network in networks:
        if any(part._forward_hooks or part._forward_pre_hooks for part in network.modules()):
            return f"{getattr(network, 'name', type(network).__name__)} has forward hooks"
    return ""


def works_on_host(methods: Sequence[Method], augment: str) -> str:
    """Return why a part of a step is computed on the host, so that the step cannot be captured; or ""."""
    for method in methods:
        name = method.config["name"]
        for need, what in (("strong", "a strong view"), ("partner", "random images of the same class")):
            if need in method.needs:
                return f"{name} needs {what}, drawn on the host"
        if "earlier" in method.needs or any(spec.source != "teacher" for spec in method.retrievals):
            return f"{name} reads on the host which rows of a bank are filled"
        if "pixels" in method.needs:
            return f"{name} is for segmentation, where the number of samples differs from batch to batch"
    return "" if augment == "crop" else f"the augmentation {augment!r} is drawn on the host"


class HostReads(TorchDispatchMode):
    """Collects the operations that read a tensor's values on the host, or copy values from the host to a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if name in ("index", "index_put", "index_put_"):
            reads = any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        else:
            reads = bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))
        if isinstance(out, Tensor):
            given = [a for x in args for a in (x if isinstance(x, (list, tuple)) else [x]) if isinstance(a, Tensor)]
            made = name == "lift_fresh" and out.device.type != "cpu"  # torch.tensor of Python numbers
            reads = reads or made or any(t.device != out.device for t in given)
        if reads:
            self.found.add(name)
        return out
