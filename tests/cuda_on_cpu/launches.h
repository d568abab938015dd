// SPDX-License-Identifier: MIT
// Who takes a launch: by default it runs at once.  tests/simulated_gpu looks at the stream, and keeps it for a graph.
#pragma once
#include <functional>

namespace cuda_on_cpu {

// `kernel` is its address; nullptr: what is no kernel.
inline std::function<void(void* stream, const void* kernel, std::function<void()> run)> take_launch =
    [](void*, const void*, std::function<void()> run) { run(); };

}  // namespace cuda_on_cpu
