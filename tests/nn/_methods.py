# SPDX-License-Identifier: MIT
"""Modules whose methods call layers in many ways, and what `fuse` joins in each."""

from __future__ import annotations

import contextlib
import copy

import torch
import torch.nn.functional as F
from torch import nn


class Model(nn.Module):
    """The layers that the cases below call."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.bn2 = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.stage = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)])
        self.norm1d = nn.BatchNorm1d(3)  # which refuses images
        self.unset = None
        self.slope = 0.3
        self.activation = F.relu


class Nested(Model):
    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Assigned(Model):
    def forward(self, x):
        x = self.conv(x)
        x = self.bn(x)
        return self.relu(x)


class OneName(Model):
    """Each result in a variable of its own."""

    def forward(self, x):
        h = self.conv(x)
        n = self.bn(h)
        y = torch.tanh(n)
        return y


class Methods(Model):
    def forward(self, x):
        return self.bn(self.conv(x)).relu() + self.bn2(self.conv2(x)).sigmoid_()


class FunctionInAttribute(Model):
    def forward(self, x):
        return self.activation(self.bn(self.conv(x)))


class SlopeInAttribute(Model):
    def forward(self, x):
        return F.leaky_relu(self.conv(x), negative_slope=self.slope, inplace=True)


class Indexed(Model):
    def forward(self, x):
        return F.relu(self.layers[1](self.layers[0](x)), True)


class GuardedNorm(Model):
    def forward(self, x):
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        if self.unset is not None:
            x = self.unset(x)
        return self.relu(x)


class Stages(Model):
    def forward(self, x):
        out = self.stage(x)
        out = self.stage2(out)
        return out


class SharedRelu(Model):
    def forward(self, x):
        x = self.relu(self.bn(self.conv(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return x


class SharedConvolution(Model):
    """With a different normalisation in each place."""

    def forward(self, x):
        return F.relu(self.bn(self.conv(x))) + F.relu(self.bn2(self.conv(x)))


class SameLayersTwice(Model):
    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        x = F.relu(self.bn(self.conv(x)))
        return x


class InLoopAndBranch(Model):
    def forward(self, x):
        for i in range(3):
            x = self.relu(self.bn(self.conv(x))) if i % 2 and x.sum() < 1e9 else self.conv2(x)
            if x.mean() > 0:
                x = self.bn2(x)
                x = F.relu(x)
        return x


class OtherMethod(Model):
    def encode(self, x, power=1, *, factor=1.0):
        return F.relu(self.bn(self.conv(x))) ** power * factor

    def forward(self, x, scale=2.0, *, shift=1.0):
        noise = torch.randn(x.size(), dtype=x.dtype)
        return self.encode(x) * scale + shift + 0 * noise


class ConvolutionAlsoReturned(Model):
    def forward(self, x):
        h = self.conv(x)
        y = self.bn(h)
        return F.relu(y), h


class NormalisedUsedTwice(Model):
    def forward(self, x):
        x = self.bn(self.conv(x))
        y = F.relu(x)
        return x + y


class Skip(Model):
    def forward(self, x):
        out = self.bn(self.conv(x))
        out += x
        return self.relu(out)


class InPlaceOnOutput(Model):
    def forward(self, x):
        out = F.leaky_relu(self.bn(self.conv(x)), 0.2)
        out += x
        return out


class InPlaceOnInput(Model):
    """The activation changes x, and the skip connection sees that."""

    def forward(self, x):
        x = x * 1
        y = self.conv(self.relu(x))
        return torch.cat([x, y], 1)


class Feature(Model):
    def forward(self, x):
        self.feature = self.conv(x)
        x = self.bn(self.feature)
        return F.relu(x)


class Alias(Model):
    def forward(self, x):
        x = self.conv(x)
        kept = x
        x = self.bn(x)
        return self.relu(x) + kept


class Closure(Model):
    """`bn` looks at a variable of the function that calls it."""

    def forward(self, x):
        def norm(h):
            return self.bn(h) + x.mean()

        x = self.conv(x)
        x = norm(x)
        return x


class Comprehension(Model):
    def forward(self, x):
        return torch.stack([F.relu(self.bn(self.conv(part))) for part in x.split(1)])


class AfterAnError(Model):
    def forward(self, x):
        try:
            x = self.conv(x)
            x = self.norm1d(x)
        except ValueError:
            return x


class Suppressed(Model):
    def forward(self, x):
        with contextlib.suppress(ValueError):
            x = self.conv(x)
            x = self.norm1d(x)
        return x


class LooksAtItsVariables(Model):
    def forward(self, x):
        h = self.conv(x)
        y = self.bn(h)
        return y + locals()["h"]


class LooksAtItsVars(Model):
    def forward(self, x):
        h = self.conv(x)
        y = self.bn(h)
        return y + vars()["h"]


class OtherSelf(Model):
    def forward(self, x):
        y = self.relu(self.conv(x))
        self, other = copy.copy(self), self
        return y + other.bn(self.conv2(x))


class ConditionOnTheVariable(Model):
    def forward(self, x):
        x = self.conv(x)
        if x.mean() > 0:
            x = self.bn(x)
        return x


class ConditionOnWhatTheLayerCounts(Model):
    def forward(self, x):
        x = self.bn(x)
        if self.bn.num_batches_tracked > 0:
            x = self.relu(x)
        return x


class ConditionOnItsAttribute(Model):
    def forward(self, x):
        x = self.conv(x)
        if x.is_leaf:  # as the input is
            x = self.bn(x)
        return x


class TwoLayersUnderACondition(Model):
    def forward(self, x):
        x = self.conv(x)
        if self.training or self.bn is None:
            x = self.bn(x)
            x = self.relu(x)
        return x


class Stateful(Model):
    """What it calls depends on what it computed so far."""

    def __init__(self):
        super().__init__()
        self.reads = 0
        self.other = False
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
        nn.init.constant_(self.norms[1].bias, 3.0)

    @property
    def odd(self):
        self.reads += 1
        return self.reads % 2 == 1

    @property
    def next_slope(self):
        self.reads += 1
        return 1 / self.reads

    def turn(self, x):
        self.other, self.slope, self.conv, self.bn = True, 0.9, self.conv2, self.norms[1]
        return x


class ConditionThatCounts(Stateful):
    def forward(self, x):
        x = self.conv(x)
        if self.odd:
            x = F.relu(self.bn(x))
        if self.odd:
            x = self.bn2(x)
        return x


class InputChangesLayer(Stateful):
    def forward(self, x):
        x = self.conv(self.turn(x))
        x = self.bn(x)
        return self.relu(x)


class InputChangesNestedLayer(Stateful):
    def forward(self, x):
        return self.relu(self.bn(self.conv(self.turn(x))))


class InputChangesCondition(Stateful):
    def forward(self, x):
        x = self.conv(self.turn(x))
        if self.other:
            x = self.norms[1](x)
        return x


class InputChangesArgument(Stateful):
    def forward(self, x):
        return F.leaky_relu(self.conv(self.turn(x)), self.slope)


class ArgumentsThatCount(Stateful):
    def forward(self, x):
        return F.leaky_relu(self.bn(F.leaky_relu(self.conv(x), self.next_slope)), negative_slope=self.next_slope)


class InputAssigns(Model):
    def forward(self, x):
        h = self.conv(y := x * 2)
        h = self.bn(h)
        return h + y


class CalledInput(Model):
    def forward(self, x):
        x = self.relu(self.bn(self.conv(F.avg_pool2d(x, 1))))
        x = self.conv2(torch.stack([x, x]).sum(0))
        x = self.bn2(x)
        return x


class MoreArguments(Model):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 2, 2)

    def forward(self, x):
        return F.relu(self.up(x, output_size=[11, 12]))


class LoopOverLayers(Model):
    def forward(self, x):
        x = self.conv(x)
        for layer in self.layers:
            x = layer(x)
        return F.relu(x)


class LoopWithActivation(Model):
    def forward(self, x):
        for layer in self.layers:
            x = F.leaky_relu(self.relu(layer(x)), self.slope)
        return x


class LoopOverPart(Model):
    def forward(self, x):
        for layer in self.layers[1:]:
            x = layer(x)
        for layer in self.stage:
            x = layer(x)
        return x


each = torch.tanh


class LoopOfLoops(Model):
    def forward(self, x):
        for _ in range(2):
            for layer in self.layers:
                x = each(layer(x))
            x = self.stage(x)
        return x


class LoopAroundALayer(Model):
    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(self.conv2(self.conv(x))))
        return x


class LoopOnOther(Model):
    def forward(self, x):
        y = x
        for layer in self.layers:
            y = layer(x)
        for layer in self.layers:
            y = layer(input=y)
        return y


class LoopWhoseVariableIsDeleted(Model):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        del layer
        return x


class LoopInItsOwn(Model):
    def forward(self, x):
        for layer in [torch.tanh]:
            for layer in self.layers:
                x = layer(x)
        return layer(x)


class LoopOverNothing(Model):
    def forward(self, x):
        for layer in self.layers[2:]:
            x = layer(x)
        return self.conv(x)


class LoopAfterWhichOneIsUsed(Model):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return layer(x)


class LoopThatKeeps(Model):
    def forward(self, x):
        kept = []
        for layer in self.layers:
            x = layer(x)
            kept.append(x)
        return sum(kept)


class LoopWithElse(Model):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        else:
            x = -x
        return x


class LoopOverOthers(Model):
    def __init__(self):
        super().__init__()
        self.others = nn.ModuleList([nn.GELU(), nn.Linear(6, 6)])
        self.pairs = [torch.exp, torch.tanh]

    def forward(self, x):
        for layer in self.others:
            x = layer(x)
        for layer in self.pairs:
            x = layer(x)
        for layer in reversed(self.layers):
            x = layer(x)
        return x


class LoopThatFails(Model):
    def forward(self, x):
        try:
            for layer in [*self.layers, self.norm1d]:
                x = layer(x)
        except ValueError:
            pass
        try:
            for layer in self.layers:
                x = layer(x)
        finally:
            x = x + 1
        return x


class LoopOverWhatIsLookedAt(Model):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x if "layer" in locals() else -x


class Super(Nested):
    def forward(self, x):
        return super().forward(x) + self.bn2(self.conv2(x))


class Private(Model):
    def __init__(self):
        super().__init__()
        self.__conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return F.relu(self.__conv(x)) + F.relu(self.conv(x))


class Wrapped(Model):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return F.relu(self.conv(x))


JOINED = {
    Nested: [["conv", "bn", "relu"]],
    Assigned: [["conv", "bn", "relu"]],
    OneName: [["conv", "bn", "tanh"]],
    Methods: [["conv", "bn", "relu"], ["conv2", "bn2", "sigmoid_"]],
    FunctionInAttribute: [["conv", "bn", "relu"]],
    SlopeInAttribute: [["conv", "leaky_relu"]],
    Indexed: [["layers.0", "layers.1", "relu"]],
    GuardedNorm: [["conv", "bn", "relu"]],
    Stages: [["stage", "stage2"]],
    SharedRelu: [["conv", "bn", "relu", "conv2", "bn2", "relu"]],
    SharedConvolution: [["conv", "bn", "relu"], ["conv", "bn2", "relu"]],
    SameLayersTwice: [["conv", "bn", "relu", "conv", "bn", "relu"]],
    InLoopAndBranch: [["conv", "bn", "relu"], ["conv2"], ["bn2", "relu"]],
    OtherMethod: [["conv", "bn", "relu"]],
    ConvolutionAlsoReturned: [["conv"], ["bn"]],
    NormalisedUsedTwice: [["conv", "bn"]],
    Skip: [["conv", "bn"]],
    InPlaceOnOutput: [["conv", "bn", "leaky_relu"]],
    InPlaceOnInput: [["relu", "conv"]],
    Feature: [["conv"], ["bn", "relu"]],
    Alias: [["conv"], ["bn"]],
    Closure: [["conv"]],
    Comprehension: [["conv", "bn", "relu"]],
    AfterAnError: [["conv"], ["norm1d"]],
    Suppressed: [["conv"], ["norm1d"]],
    LooksAtItsVariables: [["conv"], ["bn"]],
    LooksAtItsVars: [["conv"], ["bn"]],
    OtherSelf: [],
    ConditionOnTheVariable: [["conv"], ["bn"]],
    ConditionOnWhatTheLayerCounts: [["bn"]],
    ConditionOnItsAttribute: [["conv"], ["bn"]],
    TwoLayersUnderACondition: [["conv", "bn", "relu"]],
    ConditionThatCounts: [["conv", "bn", "relu"]],
    InputChangesLayer: [["conv", "bn", "relu"]],
    InputChangesNestedLayer: [["conv", "bn", "relu"]],
    InputChangesCondition: [["conv"]],
    InputChangesArgument: [["conv", "leaky_relu"]],
    ArgumentsThatCount: [["conv", "leaky_relu", "bn", "leaky_relu"]],
    InputAssigns: [["conv", "bn"]],
    CalledInput: [["conv", "bn", "relu"], ["conv2", "bn2"]],
    MoreArguments: [],
    LoopOverLayers: [["conv", "layers.0", "layers.1", "relu"]],
    LoopWithActivation: [["layers.0", "relu", "leaky_relu", "layers.1", "relu", "leaky_relu"]],
    LoopOverPart: [["layers.1", "stage.0", "stage.1"]],
    LoopOfLoops: [["layers.0", "tanh", "layers.1", "tanh", "stage"]],
    LoopWhoseVariableIsDeleted: [],
    LoopInItsOwn: [],
    LoopAroundALayer: [["conv", "conv2"]],
    LoopOnOther: [],
    LoopOverNothing: [["conv"]],
    LoopAfterWhichOneIsUsed: [],
    LoopThatKeeps: [],
    LoopWithElse: [],
    LoopOverOthers: [],
    LoopThatFails: [],
    LoopOverWhatIsLookedAt: [],
    Super: [["conv2", "bn2"]],
    Private: [["conv", "relu"]],
    Wrapped: [],
}
