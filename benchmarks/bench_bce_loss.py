# SPDX-License-Identifier: MIT
from benchmarks import _harness


@_harness.workloads("bce_loss")
def test_bce_loss(benchmark, workload, passes, backend):
    _harness.run(benchmark, workload, passes, backend)
