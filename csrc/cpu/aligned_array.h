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

constexpr int64_t kHugePage = 2 << 20;

// Asks for huge pages where the system has them, for memory not written yet: a packed weight would else fault thousands
// of pages in.
inline void advise_huge_pages([[maybe_unused]] void* p, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  const uintptr_t first = (reinterpret_cast<uintptr_t>(p) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(p) + bytes) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// A large array lies in huge pages.
template <typename T>
AlignedArray<T> aligned_array(int64_t count) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
  const std::align_val_t alignment{static_cast<size_t>(bytes < kHugePage ? 64 : kHugePage)};
  void* p = ::operator new[](bytes, alignment);
  advise_huge_pages(p, bytes);
  return AlignedArray<T>(static_cast<T*>(p), {alignment});
}

// The distance between rows of a matrix that tiles walk: 64 bytes beyond `columns`, so that rows whose length is a
// power of two do not evict each other, and so that a vector may run past the end of a row.
template <typename T>
constexpr int64_t leading_dimension(int64_t columns) {
  return columns + 64 / static_cast<int64_t>(sizeof(T));
}

}  // namespace genimg_fast::cpu
