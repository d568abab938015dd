# SPDX-License-Identifier: MIT
"""The life of a fused model, at random, beside that of its plain twin: passes of all kinds, and changes between them.

What `fuse` remembers of a model (packed weights, recorded passes, what PyTorch runs faster) must never outlive a change of it.
A seed makes a model and what happens to it.
"""

from __future__ import annotations

import copy
import pickle
import random
import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import genimg_fast
from tests import _cases

CHANNELS = (1, 3, 4, 8, 12, 16, 24)
UP = ((4, 2, 1, 0), (4, 2, 1, 0), (2, 2, 0, 0), (3, 2, 1, 1), (5, 2, 2, 1))
DOWN = ((4, 2, 1), (4, 2, 1), (3, 2, 1), (5, 2, 2), (2, 2, 0))
SAME = ((3, 1, 1), (3, 1, 1), (1, 1, 0), (5, 1, 2), (3, 1, "same"))
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


# ---- Models, as people write them.


class Residual(nn.Module):
    def __init__(self, rng: random.Random, channels: int):
        super().__init__()
        self.conv1, self.norm1 = convolution(rng, channels, channels, 0), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = convolution(rng, channels, channels, 0), normalization(rng, channels)
        self.act = activation(rng) or nn.ReLU()

    def forward(self, x):
        h = F.leaky_relu(self.norm1(self.conv1(x)), 0.1)
        h = self.norm2(self.conv2(h))
        return self.act(x + h)


class InTurn(nn.Module):
    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Looking(nn.Module):
    """Takes the layers of a Sequential one by one, as those do that collect features."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        seen = 0.0
        for layer in self.body:
            x = layer(x)
            seen = seen + x.mean()
        return x * (1 + 0.1 * seen)


class Resizing(nn.Module):
    """A convolution on an image that a function made twice as large."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(in_channels, out_channels, 3, 1, 1), nn.BatchNorm2d(out_channels)

    def forward(self, x):
        return F.relu(self.norm(self.conv(F.interpolate(x, scale_factor=2))))


def convolution(rng: random.Random, in_channels: int, out_channels: int, direction: int) -> nn.Module:
    """Of which the image becomes larger, smaller or neither."""
    bias = rng.random() < 0.5
    if direction > 0 and rng.random() < 0.3:
        if rng.random() < 0.3:
            return Resizing(in_channels, out_channels)
        if rng.random() < 0.3:
            padding = rng.choice([nn.ReflectionPad2d(1), nn.ReplicationPad2d(1)])
            return nn.Sequential(upsampling(rng), padding, nn.Conv2d(in_channels, out_channels, 3, bias=bias))
        return nn.Sequential(upsampling(rng), nn.Conv2d(in_channels, out_channels, *rng.choice(SAME), bias=bias))
    if direction > 0:
        kernel, stride, padding, output_padding = rng.choice(UP)
        return nn.ConvTranspose2d(in_channels, out_channels, kernel, stride, padding, output_padding, bias=bias)
    if direction < 0 and rng.random() < 0.2:
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, *rng.choice(SAME), bias=bias), nn.AvgPool2d(2))
    mode = rng.choice(["zeros"] * 6 + ["reflect", "replicate", "circular"])
    sizes = rng.choice(DOWN if direction else SAME)
    return nn.Conv2d(in_channels, out_channels, *sizes, bias=bias, padding_mode=mode)


def upsampling(rng: random.Random) -> nn.Module:
    return rng.choice([nn.Upsample(scale_factor=2), nn.UpsamplingNearest2d(scale_factor=2)])


def normalization(rng: random.Random, channels: int) -> nn.Module:
    kind = rng.random()
    if kind < 0.6:
        momentum, affine = rng.choice([0.1, 0.3, None]), rng.random() < 0.8
        return nn.BatchNorm2d(channels, momentum=momentum, affine=affine, track_running_stats=rng.random() < 0.9)
    return nn.InstanceNorm2d(channels, affine=rng.random() < 0.5) if kind < 0.75 else nn.Identity()


def activation(rng: random.Random) -> nn.Module | None:
    in_place = rng.random() < 0.5
    kinds = (nn.ReLU(in_place), nn.LeakyReLU(0.2, in_place), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.PReLU(), None)
    return rng.choice(kinds)


def make_model(rng: random.Random) -> tuple[nn.Module, int]:
    """A model for images of 8 by 8, and their channels."""
    channels = first = rng.choice(CHANNELS)
    size, layers = 8, list[nn.Module]()
    shared: dict[int, nn.Module] = {}
    for _ in range(rng.randint(1, 4)):
        out, direction = rng.choice(CHANNELS), rng.choice([-1, 0, 0, 1, 1])
        if (size, direction) in ((16, 1), (4, -1)):
            direction = 0
        size = size * 2 if direction > 0 else size // 2 if direction else size
        group = [convolution(rng, channels, out, direction), normalization(rng, out)]
        if (act := activation(rng)) is not None:
            group.append(act)
        kind = rng.random()
        if not direction and kind < 0.2:
            group, out = [Residual(rng, channels)], channels
        elif not direction and kind < 0.6 and channels in shared:
            group, out = [shared[channels]], channels
        if out == channels and type(group[0]) is nn.Conv2d and not direction:
            shared[channels] = group[0]
        wrappers = (lambda g: [nn.Sequential(*g)], lambda g: [InTurn(g)], lambda g: [Looking(g)], list, list)
        layers += rng.choice(wrappers)(group)
        channels = out
    model = nn.Sequential(*layers) if rng.random() < 0.8 else InTurn(layers)
    return model.double(), first


# ---- Lives.


class Life:
    """What happens to the two; each event raises AssertionError where they do not agree."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        torch.manual_seed(seed)
        self.plain, self.channels = make_model(self.rng)
        for name, buffer in self.plain.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        self.fused = copy.deepcopy(self.plain)
        genimg_fast.fuse(self.fused)
        self.backend = self.rng.choice(["auto", "native"])
        # PyTorch's F.batch_norm and F.instance_norm differentiate one image in another order wrongly at times
        one_by_one = any(isinstance(m, nn.InstanceNorm2d) for m in self.plain.modules())
        self.keeps_order = one_by_one or self.rng.random() < 0.5
        sizes = [1, 2] if self.keeps_order else [2, 3]
        self.shapes = [
            (n, self.channels, 8, width) for n, width in zip(sizes, (8, self.rng.choice([8, 10])), strict=True)
        ]
        self.inputs: dict[tuple, torch.Tensor] = {}
        self.hooks: list = []
        self.happened: list[str] = []
        self.ended = False

    def live(self, events: int) -> None:
        for _ in range(events):
            event = self.rng.choice(CHANGES if self.rng.random() < 0.3 else PASSES)
            # what was remembered counts right after a change
            for each in (evaluates, event, evaluates) if event in CHANGES else (event,):
                self.happened.append(each.__name__)
                each(self)
                if self.ended:
                    return
        self.assert_same_state()

    # -- What events are made of.

    def input(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For the plain model and for the fused one, whose image may lie otherwise."""
        shape = self.rng.choice(self.shapes)
        if shape not in self.inputs or self.rng.random() < 0.4:
            self.inputs[shape] = torch.randn(shape, dtype=torch.float64)
        x = self.inputs[shape]
        layout = self.rng.choice(["contiguous"] * 3 + ["channels_last", "sliced"])
        return x, x if self.keeps_order else dict(_cases.layouts(shape))[layout](x.clone())

    def both(self, change: Callable[[nn.Module], object]) -> None:
        for model in (self.plain, self.fused):
            change(model)

    def compare(self, run: Callable[[nn.Module, torch.Tensor], list[torch.Tensor]], backend: str = "") -> None:
        found: list[list[torch.Tensor] | Exception] = []
        for model, x, name in zip(
            (self.plain, self.fused), self.input(), ("auto", backend or self.backend), strict=True
        ):
            try:
                with genimg_fast.use_backend(name):
                    found.append(run(model, x.clone(memory_format=torch.preserve_format)))
            except RuntimeError as error:
                found.append(error)
        theirs, ours = found
        if isinstance(theirs, Exception):  # an activation in place, where ours may know better, or a hook on backward
            assert re.search("in-?place|BackwardHookFunction|setup_context", str(theirs)), theirs
            self.ended = True
            return
        if isinstance(ours, Exception):  # docs/contract.md: changed in place behind a LeakyReLU
            assert "modified by an inplace operation" in str(ours), ours
            assert any(isinstance(m, nn.LeakyReLU) for m in self.plain.modules())
            self.ended = True
            return
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b)

    def assert_same_state(self) -> None:
        ours, theirs = self.fused.state_dict(), self.plain.state_dict()
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            assert_close(ours[name], value, name)

    def one_of(self, *kinds: type[nn.Module]) -> str | None:
        """The name of such a module, if there is one."""
        modules = self.plain.named_modules()
        names = [name for name, m in modules if isinstance(m, kinds) and "parametrizations" not in name]
        return self.rng.choice(names) if names else None


def assert_close(actual: torch.Tensor, expected: torch.Tensor, name: str = "") -> None:
    size = expected.detach().abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7 * max(size, 1e-3), msg=lambda m: f"{name} {m}")


def score(output: torch.Tensor) -> torch.Tensor:
    return (output * torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).view(output.shape)).tanh().mean()


def gradients(model: nn.Module) -> list[torch.Tensor]:
    found = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


# -- Passes.


def evaluates(life: Life) -> None:
    mode, times = life.rng.choice([torch.no_grad, torch.no_grad, torch.inference_mode]), life.rng.choice([1, 3])

    def run(model, x):
        with mode():
            return [model.eval()(x).clone() for _ in range(times)]

    life.compare(run)


def runs_in_its_mode(life: Life) -> None:
    with torch.no_grad():
        life.compare(lambda model, x: [model(x)])


def trains(life: Life) -> None:
    training, lr, wants_x = life.rng.random() < 0.8, life.rng.choice([0.0, 0.01]), life.rng.random() < 0.4

    def run(model, x):
        output = model.train(training)(x.requires_grad_(wants_x))
        if not output.requires_grad:
            return [output]
        score(output).backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=lr)
        return [output, *([x.grad] if wants_x else []), *gradients(model)]

    life.compare(run)
    if not life.ended:
        life.assert_same_state()


def is_left_without_backward(life: Life) -> None:
    life.compare(lambda model, x: [model.train()(x)])


def penalizes_its_slope(life: Life) -> None:
    training, of_parameters = life.rng.random() < 0.5, life.rng.random() < 0.5

    def run(model, x):
        wanted = [x.requires_grad_(), *(p for p in model.parameters() if p.requires_grad and of_parameters)]
        slopes = torch.autograd.grad(score(model.train(training)(x)), wanted, create_graph=True, allow_unused=True)
        slopes = [slope for slope in slopes if slope is not None]
        if any(slope.requires_grad for slope in slopes):
            torch.stack([slope.square().sum() for slope in slopes]).sum().backward()
        return [*slopes, *gradients(model)]

    life.compare(run)


def keeps_tensors_given(model: nn.Module) -> bool:
    """Whether torch.func.functional_call leaves the tensors behind that it was given: in a module with two names, or a pruned one."""
    modules, names = list(model.modules()), list(model.named_modules(remove_duplicate=False))
    return len(names) > len(modules) or any(hasattr(m, "weight_mask") for m in modules)


def runs_with_other_parameters(life: Life) -> None:
    if keeps_tensors_given(life.plain):
        return

    def run(model, x):
        others = {name: 1.1 * p.detach() for name, p in model.eval().named_parameters()}
        with torch.no_grad():
            return [torch.func.functional_call(model, others, (x,)), model(x)]

    life.compare(run, backend="auto")


def is_checkpointed(life: Life) -> None:
    def run(model, x):
        output = checkpoint(model.train(), x.requires_grad_(), use_reentrant=False, early_stop=False)
        score(output).backward()
        return [output, x.grad, *gradients(model)]

    life.compare(run)


def is_differentiated_by_torch_func(life: Life) -> None:
    if keeps_tensors_given(life.plain) or not list(life.plain.parameters()):
        return

    def run(model, x):
        names, values = zip(*model.eval().named_parameters(), strict=True)
        of = torch.func.grad(
            lambda values: score(torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,)))
        )
        return list(of(tuple(v.detach() for v in values)))

    life.compare(run, backend="auto")


# -- Changes.


def parameter_changes(life: Life) -> None:
    names = [name for name, _ in life.plain.named_parameters()]
    if not names:
        return
    name, factor = life.rng.choice(names), life.rng.uniform(0.8, 1.2)
    owner, _, attribute = name.rpartition(".")

    @torch.no_grad()
    def in_place(p, module):
        p.mul_(factor)

    def through_numpy(p, module):
        array = p.detach().numpy()
        array *= factor

    ways = (
        in_place,
        through_numpy,
        lambda p, module: p.data.mul_(factor),
        lambda p, module: setattr(p, "data", p.data * factor),
        lambda p, module: setattr(module, attribute, nn.Parameter(p.detach() * factor)),
        lambda p, module: p.requires_grad_(not p.requires_grad),
    )
    way = life.rng.choice(ways)
    life.both(lambda model: way(model.get_parameter(name), model.get_submodule(owner)))


def normalization_changes(life: Life) -> None:
    name = life.one_of(nn.BatchNorm2d)
    if name is None:
        return

    def moved(bn):
        if bn.running_mean is not None:
            bn.running_mean.add_(0.1)
            bn.running_var.mul_(1.1)

    ways = (
        moved,
        nn.BatchNorm2d.eval,
        nn.BatchNorm2d.reset_running_stats,
        lambda bn: setattr(bn, "momentum", 0.25),
        lambda bn: setattr(bn, "eps", 0.01),
        lambda bn: setattr(bn, "running_mean", None if bn.running_mean is None else bn.running_mean + 0.2),
    )
    way = life.rng.choice(ways)
    life.both(lambda model: way(model.get_submodule(name)))


def activation_changes(life: Life) -> None:
    name = life.one_of(nn.LeakyReLU, nn.ReLU)
    if name is not None:
        life.both(lambda model: setattr(model.get_submodule(name), "negative_slope", 0.05))
        life.both(lambda model: setattr(model.get_submodule(name), "inplace", life.plain.training))


def is_hooked(life: Life) -> None:
    name, kind = life.one_of(nn.Module), life.rng.randrange(3)

    def hook(module: nn.Module):
        if kind == 0:
            return module.register_forward_hook(lambda module, args, output: output * 1.25)
        if kind == 1:
            return module.register_forward_pre_hook(lambda module, args: (args[0] * 0.75,))
        return module.register_full_backward_hook(lambda module, grad_input, grad_output: None)

    life.both(lambda model: life.hooks.append(hook(model.get_submodule(name))))


def is_freed_of_hooks(life: Life) -> None:
    for hook in life.hooks:
        hook.remove()
    life.hooks.clear()


def layer_is_replaced(life: Life) -> None:
    name = life.one_of(nn.Sequential)
    if name is None or not len(life.plain.get_submodule(name)):
        return
    i = life.rng.randrange(len(life.plain.get_submodule(name)))
    is_activation = isinstance(life.plain.get_submodule(name)[i], (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid))
    ways = [lambda s: s.append(nn.ReLU()), lambda s: s.insert(i, nn.LeakyReLU(0.3))]
    if is_activation:
        ways += [lambda s: s.__setitem__(i, nn.Sigmoid()), lambda s: s.__delitem__(i)]
    way = life.rng.choice(ways)
    life.both(lambda model: way(model.get_submodule(name)))


def forward_is_wrapped(life: Life) -> None:
    name = life.one_of(nn.BatchNorm2d, nn.Sequential, Residual, *CONVOLUTIONS)

    def wrap(module):
        if "forward" in vars(module):
            del module.forward
        else:
            forward = module.forward
            module.forward = lambda x: 1.5 * forward(x)

    if name is not None:
        life.both(lambda model: wrap(model.get_submodule(name)))


def weight_is_computed(life: Life) -> None:
    name, pruned = life.one_of(*CONVOLUTIONS), life.rng.random() < 0.5

    def change(module):
        if hasattr(module, "weight_mask"):
            prune.remove(module, "weight")
        elif parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
        elif not isinstance(module.weight, nn.Parameter):
            pass  # as PyTorch leaves one that was pruned under a parametrization
        elif pruned:
            prune.custom_from_mask(module, "weight", module.weight.abs() > module.weight.abs().mean() / 2)
        else:
            parametrizations.weight_norm(module)

    if name is not None:
        life.both(lambda model: change(model.get_submodule(name)))


def is_copied(life: Life) -> None:
    modules = list(life.plain.modules())
    if life.hooks or any("forward" in vars(m) or hasattr(m, "weight_mask") for m in modules):
        return  # whose copies would refer to the original, or cannot be made
    way = copy.deepcopy
    if life.rng.random() < 0.5 and not any(m._load_state_dict_pre_hooks for m in modules):  # of weight_norm
        way = lambda model: pickle.loads(pickle.dumps(model))  # noqa: E731
    life.plain, life.fused = way(life.plain), way(life.fused)


def is_unfused(life: Life) -> None:
    genimg_fast.unfuse(life.fused)
    for ours, theirs in zip(life.fused.modules(), life.plain.modules(), strict=True):
        assert parametrize.is_parametrized(theirs) or type(ours) is type(theirs), type(ours)
    if life.rng.random() < 0.8:
        genimg_fast.fuse(life.fused)


def is_fused_again(life: Life) -> None:
    genimg_fast.fuse(life.fused)


def memory_format_changes(life: Life) -> None:
    if not life.keeps_order:
        life.fused.to(memory_format=life.rng.choice([torch.channels_last, torch.contiguous_format]))


def state_is_loaded(life: Life) -> None:
    assign = life.rng.random() < 0.5
    state = {n: 1.01 * t if t.is_floating_point() else t.clone() for n, t in life.plain.state_dict().items()}
    life.both(lambda model: model.load_state_dict({n: t.clone() for n, t in state.items()}, assign=assign))


def mode_changes(life: Life) -> None:
    name, mode = life.rng.choice(["", life.one_of(nn.Module)]), life.rng.random() < 0.5
    life.both(lambda model: model.get_submodule(name).train(mode))


def is_frozen_in_part(life: Life) -> None:
    count = life.rng.randint(0, len(list(life.plain.parameters())))
    for model in (life.plain, life.fused):
        for i, p in enumerate(model.parameters()):
            p.requires_grad_(i >= count)


PASSES = (
    *(evaluates, trains, trains, trains, runs_in_its_mode, is_left_without_backward),
    *(
        penalizes_its_slope,
        penalizes_its_slope,
        runs_with_other_parameters,
        is_checkpointed,
        is_differentiated_by_torch_func,
    ),
)
CHANGES = (
    *(parameter_changes, parameter_changes, normalization_changes, activation_changes, is_hooked, is_freed_of_hooks),
    *(layer_is_replaced, forward_is_wrapped, weight_is_computed, is_copied, is_unfused, is_fused_again),
    *(memory_format_changes, state_is_loaded, mode_changes, is_frozen_in_part),
)
