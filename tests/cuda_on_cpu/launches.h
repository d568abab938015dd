// SPDX-License-Identifier: MIT
// Who takes a launch: by default it runs at once.  tests/simulated_gpu looks at the stream, and keeps it for a graph.
#pragma once
#include <functional>

namespace cuda_on_cpu {

inline std::function<void(void* stream, std::function<void()> kernel)> take_launch =
    [](void*, std::function<void()> kernel) { kernel(); };

}  // namespace cuda_on_cpu
