# SPDX-License-Identifier: MIT
from benchmarks import _harness


@_harness.workloads("conv_transpose2d_bn_act")
def test_conv_transpose2d_bn_act(benchmark, workload, passes, backend):
    _harness.run(benchmark, workload, passes, backend)
