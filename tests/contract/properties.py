# SPDX-License-Identifier: MIT
"""What PyTorch's users rely on, as checks of one function each: what it gives equals what plain PyTorch gives without it."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from genimg_fast import unfuse, use_backend
from tests import _cases
from tests.contract.subjects import Argument, Function, Subject


@dataclass(frozen=True)
class Case:
    """A variant of a subject on a device."""

    subject: Subject
    variant: str
    device: str

    def function(self, dtype: torch.dtype = torch.float32) -> Function:
        return self.subject.function(self.variant, dtype, self.device)

    def arguments(self, n: int = 3, dtype: torch.dtype = torch.float32) -> list[Argument]:
        return [a._replace(tensor=a.tensor.to(self.device, dtype)) for a in self.subject.arguments(n)]

    def tensors(self, n: int = 3, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        return [a.tensor for a in self.arguments(n, dtype)]

    def leaves(self, n: int = 3, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        return [a.tensor.requires_grad_(a.grad) for a in self.arguments(n, dtype)]


def _differentiable(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    return [t for t in leaves if t.requires_grad]


def _weighted(output: torch.Tensor) -> torch.Tensor:
    """A scalar whose gradient is another for each element of the output, and never 1."""
    return (output * torch.linspace(0.3, 0.7, output.numel(), device=output.device).view(output.shape)).sum()


def _value_and_grads(function: Function, leaves: list[torch.Tensor], create_graph: bool = False) -> list[torch.Tensor]:
    output = function(*leaves)
    return [
        output.detach(),
        *torch.autograd.grad(
            _weighted(output),
            _differentiable(leaves),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        ),
    ]


def _plain(case: Case, n: int = 3, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Value and gradients by PyTorch alone."""
    with use_backend("reference"):
        return _value_and_grads(case.function(dtype), case.leaves(n, dtype))


def _assert_close(case: Case, actual: Any, expected: Any) -> None:
    """float32 convolutions on a GPU, PyTorch's and ours, multiply in TF32, which keeps 10 bits."""
    tf32 = case.device == "cuda" and case.subject.autocasts
    torch.testing.assert_close(actual, expected, **({"rtol": 1e-2, "atol": 1e-2} if tf32 else {}))


def _plain_output(case: Case, *tensors: torch.Tensor) -> torch.Tensor:
    with use_backend("reference"), torch.no_grad():
        return case.function(tensors[0].dtype)(*tensors)


# aot_eager does all of torch.compile's tracing and none of its minutes of C++ compilation; the slow tests run "inductor".
def compiles(case: Case, backend: str = "aot_eager") -> None:
    torch._dynamo.reset()
    compiled = torch.compile(case.function(), fullgraph=True, dynamic=False, backend=backend)
    _assert_close(case, _value_and_grads(compiled, case.leaves()), _plain(case))
    for mode in (torch.no_grad, torch.inference_mode):
        compiled = torch.compile(case.function(), fullgraph=True, dynamic=False, backend=backend)
        with mode():
            output = compiled(*case.tensors())
        _assert_close(case, output.clone(), _plain(case)[0])


def compiles_with_dynamic_shapes(case: Case, backend: str = "aot_eager") -> None:
    """One graph serves every size of the batch."""
    torch._dynamo.reset()
    graphs = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    compiled = torch.compile(case.function(), fullgraph=True, backend=counting)
    for n in (3, 5, 4):
        leaves = case.leaves(n)
        for leaf, argument in zip(leaves, case.arguments(n), strict=True):
            if argument.batch:
                torch._dynamo.mark_dynamic(leaf, 0)  # an error, if the size would be compiled in
        _assert_close(case, _value_and_grads(compiled, leaves), _plain(case, n))
    assert len(graphs) == 1


def autocasts(case: Case, dtype: torch.dtype) -> None:
    def run() -> list[torch.Tensor]:
        leaves = case.leaves()
        with torch.autocast(case.device, dtype):
            output = case.function()(*leaves)
        assert output.dtype == (dtype if case.subject.autocasts else torch.float32)
        return [
            output.detach(),
            *torch.autograd.grad(_weighted(output), _differentiable(leaves), allow_unused=True, materialize_grads=True),
        ]

    actual = run()
    with use_backend("reference"):
        torch_result = run()
    for a, exact, theirs in zip(actual, _plain(case, dtype=torch.float64), torch_result, strict=True):
        if exact.abs().max() < 1e-9:  # the gradient of a bias before a batch normalisation: all noise
            assert a.abs().max() < 0.01
        else:
            # A few numbers, each a sum of many: PyTorch's own error is small by luck at times.
            _cases.assert_accurate(a, exact, theirs, factor=_cases.ERROR_FACTOR * (2 if a.dim() == 1 else 1))


def vmaps(case: Case) -> None:
    """Gradients too: inside torch.vmap no tensor says that it requires one."""

    def stacks() -> list[torch.Tensor]:
        return [
            torch.stack([t, 2 * t, -t] if grad else [t] * 3).requires_grad_(grad) for t, grad, *_ in case.arguments()
        ]

    def one_by_one(*tensors: torch.Tensor) -> torch.Tensor:
        return torch.stack([case.function()(*(t[i] for t in tensors)) for i in range(3)])

    with use_backend("reference"):
        expected = _value_and_grads(one_by_one, stacks())
    _assert_close(case, _value_and_grads(torch.vmap(case.function()), stacks()), expected)


def has_func_grad(case: Case) -> None:
    numbers = tuple(i for i, a in enumerate(case.arguments()) if a.grad)
    function = case.function()
    gradient = torch.func.grad(lambda *tensors: _weighted(function(*tensors)), argnums=numbers)
    _assert_close(case, list(gradient(*case.tensors())), _plain(case)[1:])


def has_jvp(case: Case) -> None:
    """Against the derivative that two backward passes give."""
    arguments, function = case.arguments(dtype=torch.float64), case.function(torch.float64)
    numbers = [i for i, a in enumerate(arguments) if a.grad]
    primals = [arguments[i].tensor for i in numbers]
    tangents = [_cases.randn(tuple(p.shape), p.dtype, 50 + i).to(p) for i, p in enumerate(primals)]

    def of_differentiable(*tensors: torch.Tensor) -> torch.Tensor:
        given = dict(zip(numbers, tensors, strict=True))
        return function(*(given.get(i, a.tensor) for i, a in enumerate(arguments)))

    with use_backend("reference"):
        _, expected = torch.autograd.functional.jvp(of_differentiable, tuple(primals), tuple(tangents))
    _, actual = torch.func.jvp(of_differentiable, tuple(primals), tuple(tangents))
    torch.testing.assert_close(actual, expected)
    with torch.autograd.forward_ad.dual_level():
        duals = map(torch.autograd.forward_ad.make_dual, primals, tangents)
        actual = torch.autograd.forward_ad.unpack_dual(of_differentiable(*duals)).tangent
    torch.testing.assert_close(actual, expected)


# fast_mode compares random projections of the Jacobians, as torch's own tests do: seconds instead of minutes
def gradcheck(case: Case) -> None:
    assert torch.autograd.gradcheck(case.function(torch.float64), case.leaves(dtype=torch.float64), fast_mode=True)


def gradgradcheck(case: Case) -> None:
    """The gradients are the right ones when they are recorded, and so are their own."""
    recorded = _value_and_grads(case.function(torch.float64), case.leaves(dtype=torch.float64), create_graph=True)
    _assert_close(case, [t.detach() for t in recorded], _plain(case, dtype=torch.float64))
    assert torch.autograd.gradgradcheck(case.function(torch.float64), case.leaves(dtype=torch.float64), fast_mode=True)


def tells_uses_apart(case: Case) -> None:
    """Tensors may come of one another, as those of a layer that is called twice do, and a hook runs once, with the whole gradient;
    in a backward that is recorded as in one that is not."""
    dtype = torch.float64 if case.device == "cpu" else torch.float32  # which CUDA's convolutions do not take
    function = case.function(dtype)

    def of_one_another(*leaves: torch.Tensor) -> torch.Tensor:
        given, last = [], torch.zeros((), dtype=dtype, device=case.device)
        for t in leaves:
            if t.requires_grad:
                t = last = t + 0.1 * (last.sum() - last.sum().detach())
                t.register_hook(lambda gradient: 2 * gradient)
            given.append(t)
        return function(*given)

    with use_backend("reference"):
        expected = _value_and_grads(of_one_another, case.leaves(dtype=dtype))
    for create_graph in (False, True):
        actual = _value_and_grads(of_one_another, case.leaves(dtype=dtype), create_graph)
        _assert_close(case, [t.detach() for t in actual], [t.detach() for t in expected])


def checkpoints(case: Case) -> None:
    for use_reentrant in (False, True):
        function = case.function()

        def run(*leaves: torch.Tensor, function=function, use_reentrant=use_reentrant) -> torch.Tensor:
            return checkpoint(function, *leaves, use_reentrant=use_reentrant)

        leaves = case.leaves()
        output = run(*leaves)
        _weighted(output).backward()  # torch.autograd.grad is refused by the reentrant way
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in _differentiable(leaves)]
        _assert_close(case, [output.detach(), *grads], _plain(case))


class _Module(nn.Module):
    def __init__(self, function: Function):
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.function(*tensors)


def _exported(case: Case) -> tuple[torch.export.ExportedProgram, Callable[[int], list[torch.Tensor]]]:
    """The program, for every size of the batch, and its inputs."""
    model = case.subject.variants[case.variant]
    is_model = isinstance(model, nn.Module)

    def inputs(n: int) -> list[torch.Tensor]:
        return case.tensors(n)[: 1 if is_model else None]

    batch = torch.export.Dim(
        "N", min=2, max=65535
    )  # which PyTorch asks for where its batch normalisation may be cuDNN's
    shapes = [{0: batch} if a.batch else None for a in case.arguments()][: len(inputs(3))]
    module = model.to(case.device) if is_model else _Module(case.function())
    dynamic_shapes = tuple(shapes) if is_model else (tuple(shapes),)
    return torch.export.export(module, tuple(inputs(3)), dynamic_shapes=dynamic_shapes), inputs


def exports(case: Case) -> None:
    """As standard operators: who loads the program need not have this package."""
    program, inputs = _exported(case)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    program = torch.export.load(file)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert not [t for t in targets if getattr(t, "namespace", "aten") not in ("aten", "prims")], targets
    for n in (3, 4):
        _assert_close(case, program.module()(*inputs(n)), _plain_output(case, *case.tensors(n)))


def exports_to_onnx(case: Case) -> None:
    """A model as inference: that is what PyTorch's exporter writes, whatever the mode of a batch normalisation is."""
    import onnxruntime

    program, inputs = _exported(case)
    of = case.subject.variants[case.variant]
    plain = unfuse(copy.deepcopy(of)).eval() if isinstance(of, nn.Module) else case.function()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        exported = torch.onnx.export(program, (), verbose=False)
    graph = exported.model_proto
    assert {node.domain for node in graph.graph.node} == {""}
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    for n in (3, 4):
        feed = {name: t.cpu().numpy() for name, t in zip(names, inputs(n), strict=True)}
        (output,) = session.run(None, feed)
        with use_backend("reference"), torch.no_grad():
            _assert_close(case, torch.from_numpy(output), plain(*inputs(n)).cpu())


def is_deterministic(case: Case) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (_value_and_grads(case.function(), case.leaves()) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first, second))
    _assert_close(case, first, _plain(case))


def runs_in_inference_mode(case: Case) -> None:
    with torch.inference_mode():
        output = case.function()(*case.tensors())
    assert output.is_inference()
    _assert_close(case, output.clone(), _plain(case)[0])


def runs_on_meta(case: Case) -> None:
    expected = _plain(case)
    leaves = [a.tensor.to("meta").requires_grad_(a.grad) for a in case.arguments()]
    results = _value_and_grads(case.subject.function(case.variant, device="meta"), leaves)
    assert [(t.device.type, t.shape, t.dtype) for t in results] == [("meta", t.shape, t.dtype) for t in expected]


class _Parameter(nn.Parameter):
    pass


def takes_a_subclass_of_parameter(case: Case) -> None:
    leaves = [_Parameter(t.detach(), t.requires_grad) for t in case.leaves()]
    results = _value_and_grads(case.function(), leaves)
    assert {type(t) for t in results} == {torch.Tensor}
    _assert_close(case, results, _plain(case))


def captures_in_a_cuda_graph(case: Case) -> None:
    leaves, function = case.leaves(), case.function()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            _value_and_grads(function, leaves)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = _value_and_grads(function, leaves)
    with torch.no_grad():
        for leaf in leaves:
            leaf.copy_(leaf.flip(0))
    graph.replay()
    with use_backend("reference"):
        _assert_close(case, results, _value_and_grads(case.function(), leaves))


def runs_on_another_stream(case: Case) -> None:
    leaves, function = case.leaves(), case.function()
    late = [torch.zeros_like(t).requires_grad_(t.requires_grad) for t in leaves]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # who does not wait for this stream reads zeros
        with torch.no_grad():
            for t, leaf in zip(late, leaves, strict=True):
                t.copy_(leaf)
        results = _value_and_grads(function, late)
    torch.cuda.current_stream().wait_stream(stream)
    _assert_close(case, results, _plain(case))
