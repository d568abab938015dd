// SPDX-License-Identifier: MIT
#pragma once
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>
#include <memory>
#include <new>

namespace genimg_fast::cpu {

struct AlignedDelete {
  std::align_val_t alignment;
  void operator()(void* p) const { ::operator delete[](p, alignment); }
};

// Uninitialised memory that begins on a cache line.
template <typename T>
using AlignedArray = std::unique_ptr<T[], AlignedDelete>;

// A large array lies in huge pages where the system has them: a packed weight would else fault thousands of pages in.
template <typename T>
AlignedArray<T> aligned_array(int64_t count) {
  constexpr int64_t kHugePage = 2 << 20;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
  const std::align_val_t alignment{static_cast<size_t>(bytes < kHugePage ? 64 : kHugePage)};
  void* p = ::operator new[](bytes, alignment);
#ifdef MADV_HUGEPAGE
  if (bytes >= kHugePage) madvise(p, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return AlignedArray<T>(static_cast<T*>(p), {alignment});
}

// The distance between rows of a matrix that tiles walk: 64 bytes beyond `columns`, so that rows whose length is a
// power of two do not evict each other, and so that a vector may run past the end of a row.
template <typename T>
constexpr int64_t leading_dimension(int64_t columns) {
  return columns + 64 / static_cast<int64_t>(sizeof(T));
}

}  // namespace genimg_fast::cpu
