// SPDX-License-Identifier: MIT
// Working memory of a thread that outlives the call: fresh memory costs a page fault every few kilobytes, which was a
// tenth of the time of a convolution.
#pragma once
#include <array>

#include "cpu/aligned_array.h"

namespace genimg_fast::cpu {

// At least `bytes` of memory, the same at each call of a thread unless it has to grow; one for each kind of use.
struct ForWork;
struct ForPacking;
struct ForReordering;
template <typename Use>
char* thread_memory(int64_t bytes) {
  constexpr int64_t kGrowth = 2 << 20;
  thread_local AlignedArray<char> memory;
  thread_local int64_t size = 0;
  if (bytes > size) {
    const int64_t wanted = (bytes + kGrowth - 1) / kGrowth * kGrowth;
    size = 0;
    memory.reset();
    memory = aligned_array<char>(wanted);
    size = wanted;
  }
  return memory.get();
}

// Uninitialised arrays of `counts` elements, each aligned to a cache line.  They hold until the thread's next call.
template <typename T, typename... Counts>
std::array<T*, sizeof...(Counts)> thread_workspace(Counts... counts) {
  auto whole_lines = [](int64_t count) { return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64; };
  char* next = thread_memory<ForWork>((whole_lines(counts) + ...));
  auto take = [&](int64_t count) {
    char* taken = next;
    next += whole_lines(count);
    return reinterpret_cast<T*>(taken);
  };
  return {take(counts)...};
}

// Uninitialised memory for a weight that is packed for one call.  It holds until the thread packs the next.
template <typename T>
T* packing_memory(int64_t count) {
  return reinterpret_cast<T*>(thread_memory<ForPacking>(count * static_cast<int64_t>(sizeof(T))));
}

// Uninitialised memory for a weight, or its gradient, in the order of the kernels.  It holds until the thread takes it
// for the next.
template <typename T>
T* reordering_memory(int64_t count) {
  return reinterpret_cast<T*>(thread_memory<ForReordering>(count * static_cast<int64_t>(sizeof(T))));
}

}  // namespace genimg_fast::cpu
