# SPDX-License-Identifier: MIT
from benchmarks import _harness


@_harness.workloads("elbo_loss")
def test_elbo_loss(benchmark, workload, passes, backend):
    _harness.run(benchmark, workload, passes, backend)
