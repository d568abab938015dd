# SPDX-License-Identifier: MIT
from benchmarks import _harness


@_harness.workloads("gaussian_kl_loss")
def test_gaussian_kl_loss(benchmark, workload, passes, backend):
    _harness.run(benchmark, workload, passes, backend)
