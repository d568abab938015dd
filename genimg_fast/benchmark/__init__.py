# SPDX-License-Identifier: MIT
"""Measures the package against every runtime that a user could choose instead: what `genimg-fast bench` runs.

- `workloads`: what is computed, written once in plain PyTorch: `models`, `functions`, `convolution`; `plain`: the losses as
  users write them.
- `runtimes`: by what it is computed: ours, eager PyTorch, torch.compile, ONNX Runtime, ...
- `worker`: a runtime in a process of its own, which checks its outputs against float64 before it times them.
- `turns`: lets workers take turns, and compares them round by round.
- `suite`: the rows with their gates and goals, and the report; `kernels`, `sweeps`, `accuracy`, `memory`: its further parts.
- `charts`: pictures of a report.
"""
