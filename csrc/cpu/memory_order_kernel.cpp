// SPDX-License-Identifier: MIT
// Changes the memory order of images: one read, one write, in squares of a vector's width that are turned in registers.
// What is stored fills one cache line after the other, past the caches where the image is too large for them: images
// of a power of two have their rows in the same few sets of a cache, from which a line half written would soon be
// gone.
#ifndef GENIMG_FAST_ISA

#include "cpu/memory_order_kernel.h"

#include <algorithm>

namespace genimg_fast::cpu {

constexpr int64_t kColumns = 512;  // of a unit of work, which has the rows of one cache line
constexpr int64_t kLineBytes = 64;
constexpr int64_t kStreamBytes = 16 << 20;  // beyond which what is written would be gone before it is read

// The squares of some rows and columns in one image.
template <typename T>
struct TransposeJob {
  const T* from;
  T* to;
  int64_t rows, columns;  // of the image
  int64_t first_row, last_row, first_column, last_column;
  bool past_caches;
};

}  // namespace genimg_fast::cpu

#define GENIMG_FAST_KERNEL_FILE "cpu/memory_order_kernel.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu {

template <typename T>
void transpose_each(const T* from, int64_t batch, int64_t rows, int64_t columns, T* to) {
  constexpr int64_t kRows = kLineBytes / static_cast<int64_t>(sizeof(T));
  const int64_t bytes = vector_bytes(active_isa()), lanes = bytes / static_cast<int64_t>(sizeof(T)),
                size = rows * columns;
  const bool aligned = rows % lanes == 0 && reinterpret_cast<uintptr_t>(to) % bytes == 0;
  const bool past_caches = aligned && batch * size * static_cast<int64_t>(sizeof(T)) > kStreamBytes;
  const int64_t row_blocks = (rows + kRows - 1) / kRows, chunks = (columns + kColumns - 1) / kColumns;
  const int64_t grain = std::max<int64_t>(kGrain / (kRows * std::min(columns, kColumns)), 1);
  parallel_for(0, batch * row_blocks * chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t chunk = item % chunks, row_block = item / chunks % row_blocks, image = item / (chunks * row_blocks);
      const TransposeJob<T> job{from + image * size,
                                to + image * size,
                                rows,
                                columns,
                                row_block * kRows,
                                std::min((row_block + 1) * kRows, rows),
                                chunk * kColumns,
                                std::min((chunk + 1) * kColumns, columns),
                                past_caches};
      GENIMG_FAST_DISPATCH_ISA(transpose_squares<T>(job));
    }
  });
}

#define INSTANTIATE(T) template void transpose_each<T>(const T*, int64_t, int64_t, int64_t, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu

#else  // once per instruction set

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// RowCount, ColumnCount: Full or Tail.
template <bool PastCaches, typename T, typename RowCount, typename ColumnCount>
GF_INLINE void transpose_square(const TransposeJob<T>& job, int64_t row, int64_t column, RowCount row_count,
                                ColumnCount column_count) {
  Vec<T> v[kLanes<T>];
  const T* from = job.from + row * job.columns + column;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    v[i] = i < lanes_in(row_count, kLanes<T>) ? load(from + i * job.columns, column_count) : Vec<T>{};
  transpose<T>(v);
  T* to = job.to + column * job.rows + row;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i >= lanes_in(column_count, kLanes<T>)) break;
    if constexpr (PastCaches)
      stream<T>(to + i * job.rows, v[i]);
    else
      store(to + i * job.rows, v[i], row_count);
  }
}

template <typename T>
void transpose_squares(const TransposeJob<T>& job) {
  for_each_vector<T>(job.first_column, job.last_column, [&](int64_t column, auto column_count) {
    for_each_vector<T>(job.first_row, job.last_row, [&](int64_t row, auto row_count) {
      if (job.past_caches)
        transpose_square<true>(job, row, column, Full{}, column_count);
      else
        transpose_square<false>(job, row, column, row_count, column_count);
    });
  });
  if (job.past_caches) stream_fence();
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif
