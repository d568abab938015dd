# SPDX-License-Identifier: MIT
from benchmarks import _harness


@_harness.workloads("reparameterize")
def test_reparameterize(benchmark, workload, passes, backend):
    _harness.run(benchmark, workload, passes, backend)
