# SPDX-License-Identifier: MIT
"""The simulated GPU itself, and what can be counted on it.  test_suites.py runs this file where it is."""

from __future__ import annotations

import copy
import gc
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genimg_fast import _first_use, explain, functional, fuse, models, use_backend
from genimg_fast._block import Geometry
from genimg_fast.benchmark.functions import ELBOLoss, ReparameterizeWithKL
from genimg_fast.benchmark.runtimes import Ours
from genimg_fast.nn import FusedSequential
from genimg_fast.sampler import CapturedGraph
from tests import simulated_gpu
from tests.gpu_check.workloads import InDtype

pytestmark = pytest.mark.skipif(not simulated_gpu.is_here(), reason="needs the simulated GPU")


def capture(function):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


def test_pytorch_computes_there_what_it_computes_on_the_cpu():
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    results = []
    for device in ("cpu", "cuda"):
        leaves = [t.detach().to(device).requires_grad_() for t in (x, weight)]
        y = F.batch_norm(F.conv2d(*leaves, padding=1), None, None, training=True)
        y = torch.cat([y[:, 1:].transpose(2, 3), y.relu()[:, :2]], 1).flatten(2).sort(dim=2).values
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
        assert {t.device.type for t in results[-1]} == {device}
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert torch.equal(on_cpu, on_gpu.cpu())


def test_views_share_memory_and_writes_in_place_stay_in_place():
    x = torch.zeros(3, 4, device="cuda")
    x.t()[1].fill_(5)
    x.view(12)[0] = 7
    assert x.cpu().tolist() == [[7, 5, 0, 0], [0, 5, 0, 0], [0, 5, 0, 0]]
    out = torch.empty(0, device="cuda")
    assert torch.add(x, 1, out=out) is out
    assert torch.equal(out, x + 1)


def test_memory_is_nan_before_it_is_written_and_after_it_was_freed():
    x = torch.empty(1000, device="cuda")
    assert x.isnan().all()
    x.fill_(2)
    graph, y = capture(partial(torch.mul, x, 3))
    assert y.isnan().all()
    graph.replay()
    assert (y == 6).all()
    del x  # the graph does not keep what it reads
    gc.collect()
    graph.replay()
    assert y.isnan().all()


def test_nothing_runs_while_a_graph_is_captured_and_the_host_may_not_wait():
    mu, logvar = torch.ones(3, 4, device="cuda"), torch.zeros(3, 4, device="cuda")
    with use_backend("native"):
        graph, loss = capture(lambda: functional.gaussian_kl_loss(mu, logvar) * 2)
    assert loss.isnan()
    for value in (1.0, 3.0):
        mu.fill_(value)
        graph.replay()
        assert loss.item() == pytest.approx(value**2)
    for wait in (lambda: mu.sum().item(), mu.cpu, lambda: torch.ones(3).to("cuda"), torch.cuda.synchronize):
        with pytest.raises(RuntimeError, match="not permitted when the stream is capturing"):
            capture(wait)


def test_a_kernel_must_go_to_the_current_stream(monkeypatch):
    """What our operators ask is the stream that is current; were it another, the launch would say so."""
    mu, logvar = torch.ones(3, 4, device="cuda"), torch.zeros(3, 4, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()), use_backend("native"):
        assert functional.gaussian_kl_loss(mu, logvar).item() == pytest.approx(0.5)
        torch.ops.simulated_gpu.tell_a_wrong_stream(True)
        try:
            with pytest.raises(RuntimeError, match="a kernel was launched on stream"):
                functional.gaussian_kl_loss(mu, logvar)
        finally:
            torch.ops.simulated_gpu.tell_a_wrong_stream(False)


def test_an_operator_of_ours_without_a_cuda_kernel_does_not_run():
    x = torch.ones(1, 1, 2, 2, device="cuda")
    with pytest.raises(RuntimeError, match="genimg_fast::conv_weight_grad has no CUDA kernel"):
        torch.ops.genimg_fast.conv_weight_grad(x, x, [1, 1], [1, 1], [0, 0], [1, 1])


def test_full_memory_is_told_in_the_words_of_torch():
    """Which tools that look for a smaller batch know it by."""
    huge = torch.empty(1, 1, 1, 1, device="cuda").expand(1 << 20, 1 << 10, 32, 32)
    says = (
        "CUDA out of memory. Tried to allocate"
        if torch.__version__ >= "2.13"
        else "failed, most often for want of memory"
    )
    with pytest.raises(RuntimeError, match=says):
        torch.ops.genimg_fast.batch_norm_act_training(huge, None, None, 1e-5, 0, 0.0)


def test_a_direct_call_with_a_tensor_elsewhere_raises():
    namespace = torch.ops.genimg_fast
    x, w, b = torch.zeros(2, 3, 4, 4, device="cuda"), torch.zeros(3, 5, 4, 4, device="cuda"), torch.zeros(5)
    codes = Geometry(True, (2, 2), (1, 1), (0, 0), (1, 1)).codes()
    rest = (1e-5, codes, 0, 0.0, 1, -1)
    for weight, bias in ((w.cpu(), None), (w, b)):
        with pytest.raises(RuntimeError, match="different devices"):
            namespace.convolution_block(x, weight, None, bias, None, None, None, None, *rest)
        with pytest.raises(RuntimeError, match="different devices"):
            namespace.convolution_block_training(x, weight, bias, None, None, *rest)
    running = (torch.zeros(5), torch.ones(5), 0.1)
    with pytest.raises(RuntimeError, match="different devices"):
        namespace.convolution_block_training_(x, w, None, None, None, *running, *rest)
    with pytest.raises(RuntimeError, match="different devices"):
        namespace.batch_norm_act_inference(x, torch.zeros(3), torch.ones(3), None, None, 1e-5, 0, 0.0)
    with pytest.raises(RuntimeError, match="different devices"):
        namespace.reparameterize(x, x.cpu(), torch.zeros(1, dtype=torch.int64))


def test_it_draws_from_a_generator_of_its_own():
    torch.manual_seed(3)
    host = torch.get_rng_state()
    first = torch.randn(5, device="cuda")
    assert torch.equal(torch.get_rng_state(), host)
    torch.cuda.manual_seed(3)
    assert torch.equal(torch.randn(5, device="cuda"), first)


def launches(workload):
    """Of one call, but for the seed that a graph draws on the GPU, and for what is no kernel."""
    call = workload.prepare(Ours("cuda")).call
    with use_backend("native"):
        call()
        graph, _ = capture(call)
    return [name for name in graph.launches() if name not in ("aten::random_", "memset")]


def test_a_generator_in_eval_is_a_kernel_a_block():
    generator = models.create("dcgan", width=8).generator.eval().to("cuda", torch.bfloat16)
    graph = CapturedGraph(generator, torch.randn(2, 100, 1, 1, device="cuda", dtype=torch.bfloat16))
    assert graph._graph.launches() == ["convolution_kernel"] * 4 + ["narrow_kernel"]


def test_a_captured_graph_keeps_what_it_reads():
    graph = CapturedGraph(
        models.create("dcgan", width=8).generator.eval().cuda(), torch.randn(2, 100, 1, 1, device="cuda")
    )
    gc.collect()
    assert graph.replay().isfinite().all()


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.filterwarnings("error")
def test_training_in_float32_where_tf32_is_not_allowed(images, monkeypatch):
    """PyTorch convolves, and nothing is found against kernels that are not asked."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(_first_use, "_findings", {})
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
    fused = copy.deepcopy(plain).cuda()
    fuse(fused)
    x = torch.randn(images, 3, 9, 8)
    results = [
        [y, *torch.autograd.grad(y.square().sum(), [*model.parameters()])]
        for model, y in ((plain, plain(x)), (fused, fused(x.cuda())))
    ]
    for on_cpu, on_gpu in zip(*results, strict=True):
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-4, rtol=1e-4)


def test_the_memory_of_packed_weights_is_kept_for_the_stream_that_reads_them(monkeypatch):
    generator = models.create("dcgan", width=8).generator.to("cuda", torch.bfloat16).eval()
    graph = CapturedGraph(generator, torch.zeros(2, 100, 1, 1, device="cuda", dtype=torch.bfloat16))
    recorded = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda weight, stream: recorded.append((id(weight), stream)))
    streams = [torch.cuda.current_stream(), torch.cuda.Stream()]
    for stream in streams:
        with torch.cuda.stream(stream):
            for _ in range(2):
                graph.replay()
    assert recorded
    assert recorded == [(id(weight), stream) for stream in streams for weight in graph._packed_weights]


def test_noise_and_its_kl_are_two_launches():
    assert launches(InDtype(ReparameterizeWithKL((16, 8)), torch.float32)) == [
        "reparameterize_with_kl_kernel",
        "reparameterize_with_kl_backward_kernel",
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_running_statistics_move_in_one_launch(dtype):
    x = torch.randn(4, 3, 5, 5).to("cuda", dtype)
    results = []
    for backend in ("native", "reference"):
        running = torch.zeros(3, device="cuda", dtype=dtype), torch.ones(3, device="cuda", dtype=dtype)
        with use_backend(backend):
            graph, _ = capture(partial(functional.batch_norm_act, x, *running, training=True, momentum=0.3))
        graph.replay()
        results.append(running)
        if backend == "native":
            assert all(t._version == 0 for t in running)  # as F.batch_norm leaves it
            assert graph.launches()[-1] == "move_statistics_kernel"
            assert not [name for name in graph.launches() if name.startswith("aten")]
    torch.testing.assert_close(*results)


def test_a_loss_makes_its_gradient_forward_and_looks_at_it_backward():
    """In two launches and three passes over memory; `scale_gradient_kernel` finds the 1 of `loss.backward()`."""
    scaled = ["scale_gradient_kernel"] * 3
    ones = "aten::fill_"
    assert launches(InDtype(ELBOLoss((2, 3, 8, 8)), torch.float32)) == [
        "elbo_kernel",
        "elbo_total_kernel",
        ones,
        *scaled,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_several_upstream_gradients_at_once(dtype):
    x, target = torch.randn(5, 7).to("cuda", dtype).requires_grad_(), torch.rand(5, 7).to("cuda", dtype)
    results = []
    for backend in ("native", "reference"):
        with use_backend(backend):
            loss = functional.bce_with_logits_loss(x, target)
        upstream = torch.tensor([1.0, -2.0], device="cuda", dtype=dtype)
        results += torch.autograd.grad(loss, x, upstream, is_grads_batched=True)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def elbo_under_autocast(recon, target, mu, logvar):
    with torch.autocast("cuda", recon.dtype):
        return functional.elbo_loss(recon, target, mu, logvar)[0]


@pytest.mark.parametrize(
    ("dtype", "backward"), [(torch.bfloat16, "scale_gradient_kernel"), (torch.float16, "aten::mul")]
)
def test_under_autocast_nothing_is_converted(dtype, backward):
    """Images stay in float32 and what the network gives in a half type; the loss is float32."""
    target = torch.rand(2, 3, 8, 8).cuda()
    leaves = [torch.randn(shape).to("cuda", dtype).requires_grad_() for shape in ((2, 3, 8, 8), (2, 5), (2, 5))]

    def step():
        loss = elbo_under_autocast(leaves[0], target, *leaves[1:])
        assert loss.dtype == torch.float32
        return torch.autograd.grad(loss, leaves)

    with use_backend("native"):
        step()
        graph, gradients = capture(step)
    assert [g.dtype for g in gradients] == [dtype] * 3
    assert graph.launches() == ["elbo_kernel", "elbo_total_kernel", "aten::fill_", *[backward] * 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_second_derivatives_under_autocast(dtype):
    target = torch.rand(2, 3, 8, 8).cuda()
    values = [torch.randn(shape).to("cuda", dtype) for shape in ((2, 3, 8, 8), (2, 5), (2, 5))]
    results = []
    for backend in ("native", "reference"):
        leaves = [t.clone().requires_grad_() for t in values]
        with use_backend(backend):
            loss = elbo_under_autocast(leaves[0], target, *leaves[1:])
            first = torch.autograd.grad(loss, leaves, create_graph=True)
            results.append(torch.autograd.grad(sum(g.float().square().sum() for g in first), leaves))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [1, -2.5])
def test_the_gradient_of_a_loss_under_any_upstream(factor, dtype):
    mu, logvar = (torch.randn(5, 7).to("cuda", dtype) for _ in range(2))
    results = []
    for backend in ("native", "reference"):
        leaves = mu.clone().requires_grad_(), logvar.clone().requires_grad_()
        with use_backend(backend):
            loss = functional.gaussian_kl_loss(*leaves, "sum") * factor
        kept = torch.autograd.grad(loss, leaves, retain_graph=True)
        again = torch.autograd.grad(loss, leaves)
        assert all(map(torch.equal, kept, again))
        results.append(again)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def launches_of_training(model, x):
    parameters = list(model.parameters())

    def step():
        return torch.autograd.grad(model(x).sum(), parameters)

    with use_backend("native"):
        step()
        graph, gradients = capture(step)
    assert [g.dtype for g in gradients] == [p.dtype for p in parameters]
    return graph.launches()


@pytest.mark.parametrize(
    ("player", "shape", "convolutions", "conversions"),
    [("generator", (2, 100, 1, 1), 8, 1), ("discriminator", (2, 3, 64, 64), 9, 2)],
)
def test_training_converts_the_memory_order_of_images_alone(player, shape, convolutions, conversions):
    """Of a model in NCHW: the gradient of those that are made, and those that are judged, for each direction.  What lies
    between the layers stays as it is."""
    model = getattr(models.create("dcgan", width=8), player).cuda()
    names = launches_of_training(model, torch.randn(shape, device="cuda"))
    assert names.count("convolution_kernel") == convolutions
    assert names.count("aten::copy_") == conversions


def test_training_in_a_half_type_converts_nothing():
    """The gradients of a normalisation's parameters, too, are made in the dtype of those."""
    generator = models.create("dcgan", width=8).generator
    generator.to("cuda", torch.bfloat16, memory_format=torch.channels_last)
    names = launches_of_training(generator, torch.randn(2, 100, 1, 1, device="cuda", dtype=torch.bfloat16))
    assert names.count("finish_gradients_kernel") == 4
    assert "aten::copy_" not in names


def resize_convolutions(padding_mode: str = "zeros") -> nn.Sequential:
    def conv(in_channels: int, out_channels: int) -> nn.Conv2d:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode=padding_mode)

    return nn.Sequential(
        *(nn.Upsample(scale_factor=2), conv(16, 32), nn.BatchNorm2d(32), nn.Sigmoid()),
        *(nn.Upsample(scale_factor=2), conv(32, 3), nn.Tanh()),
    )


def test_an_upsampling_and_its_convolution_are_one_kernel():
    """In a graph with kept weights nothing else runs; in training the two weights are made, and their gradients made over."""
    model = resize_convolutions().to("cuda", torch.bfloat16)
    fuse(model)
    x = torch.randn(2, 16, 4, 4, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    graph = CapturedGraph(copy.deepcopy(model).eval(), x)
    assert graph._graph.launches() == ["convolution_kernel", "narrow_kernel"]
    assert graph.replay().isfinite().all()
    names = launches_of_training(model, x)
    assert names.count("resampling_weight_kernel") == names.count("resampling_weight_grad_kernel") == 2
    assert not [name for name in names if "upsample" in name]


@pytest.mark.parametrize("how", ["float32", "bfloat16", "float16", "autocast"])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("size", [(5, 6), (1, 2)], ids=str)
def test_an_upsampling_and_its_convolution_give_what_they_give_apart(size, padding_mode, order, how):
    exact = resize_convolutions(padding_mode).double()
    dtype = torch.bfloat16 if how == "autocast" else getattr(torch, how)
    x = torch.randn(3, 16, *size).to(dtype).float()
    fused = copy.deepcopy(exact).to("cuda", torch.float32 if how == "autocast" else dtype, memory_format=order)
    plain = copy.deepcopy(fused)
    fuse(fused)

    def results(model, x):
        x = x.clone().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=how == "autocast"):
            y = model(x)
        grads = torch.autograd.grad(y.double().square().sum(), [x, model[1].weight, model[5].weight])
        return [t.double().cpu() for t in (y, *grads, model.eval()(x))]

    with use_backend("native"):
        assert "conv2d_bn_act" not in [call.op for call in explain(fused, x.to("cuda", fused[1].weight.dtype)).calls]
        actual = results(fused, x.to("cuda", fused[1].weight.dtype))
    expected, torch_results = results(exact, x.double()), results(plain, x.to("cuda", fused[1].weight.dtype))
    for ours, theirs, right in zip(actual, torch_results, expected, strict=True):
        error, allowed = ((t - right).square().mean().sqrt() for t in (ours, theirs))
        # the simulated tensor cores round float32 to TF32, PyTorch on the CPU does not
        assert error <= max(2 * allowed, 2e-3 * right.abs().max())


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_gradient_of_an_image_lies_as_the_image_does(order, create_graph):
    """Of which users take views."""
    x = torch.randn(2, 16, 8, 8, device="cuda").contiguous(memory_format=order).requires_grad_()
    conv = nn.Conv2d(16, 16, 3, padding=1).cuda()
    model = FusedSequential(conv, nn.BatchNorm2d(16).cuda(), nn.ReLU(), nn.ConvTranspose2d(16, 16, 4, 2, 1).cuda())
    passes = [
        model,
        model.eval(),
        lambda x: functional.conv2d_bn_act(x, conv.weight, padding=1, activation="tanh"),
        lambda x: functional.conv_transpose2d_bn_act(x, conv.weight, padding=1, activation="tanh"),
        lambda x: functional.batch_norm_act(x, None, None, training=True),
    ]
    for run in passes:
        with use_backend("native"):
            output = run(x)
            upstream = torch.randn_like(output).contiguous(memory_format=torch.channels_last)
            (grad,) = torch.autograd.grad(output, x, upstream, create_graph=create_graph)
        assert grad.is_contiguous(memory_format=order)
