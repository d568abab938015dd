# SPDX-License-Identifier: MIT
from benchmarks import _harness


@_harness.workloads("batch_norm_act")
def test_batch_norm_act(benchmark, workload, passes, backend):
    _harness.run(benchmark, workload, passes, backend)
