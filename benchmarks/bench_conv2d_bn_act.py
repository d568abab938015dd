# SPDX-License-Identifier: MIT
from benchmarks import _harness


@_harness.workloads("conv2d_bn_act")
def test_conv2d_bn_act(benchmark, workload, passes, backend):
    _harness.run(benchmark, workload, passes, backend)
