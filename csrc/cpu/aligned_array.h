// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>
#include <memory>
#include <new>

namespace genimg_fast::cpu {

template <typename T>
struct AlignedDelete {
  void operator()(T* p) const { ::operator delete[](p, std::align_val_t(64)); }
};

// Uninitialised memory that begins on a cache line.
template <typename T>
using AlignedArray = std::unique_ptr<T[], AlignedDelete<T>>;

template <typename T>
AlignedArray<T> aligned_array(int64_t count) {
  return AlignedArray<T>(static_cast<T*>(::operator new[](count * sizeof(T), std::align_val_t(64))));
}

// The distance between rows of a matrix that tiles walk: 64 bytes beyond `columns`, so that rows whose length is a
// power of two do not evict each other, and so that a vector may run past the end of a row.
template <typename T>
constexpr int64_t leading_dimension(int64_t columns) {
  return columns + 64 / static_cast<int64_t>(sizeof(T));
}

}  // namespace genimg_fast::cpu
