# SPDX-License-Identifier: MIT
from benchmarks import _harness


@_harness.workloads("models")
def test_models(benchmark, workload, passes, backend):
    _harness.run(benchmark, workload, passes, backend)
