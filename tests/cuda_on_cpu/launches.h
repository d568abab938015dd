// SPDX-License-Identifier: MIT
// Who takes a launch: by default it runs at once.  tests/simulated_gpu looks at the stream, and keeps it for a graph.
#pragma once
#include <cstddef>
#include <functional>
#include <vector>

namespace cuda_on_cpu {

// `kernel` is its address; nullptr: what is no kernel.
inline std::function<void(void* stream, const void* kernel, std::function<void()> run)> take_launch =
    [](void*, const void*, std::function<void()> run) { run(); };

struct Parameter {
  const void* value;
  size_t bytes;
};

// Who runs a kernel instead of its C++: tests/ptx_on_cpu, when it is told to.  Grid and block are x, y, z.
inline std::function<void(const void* kernel, const unsigned (&grid)[3], const unsigned (&block)[3],
                          size_t shared_bytes, const std::vector<Parameter>& parameters)>
    run_instead;

}  // namespace cuda_on_cpu
