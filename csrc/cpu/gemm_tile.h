// SPDX-License-Identifier: MIT
// The matrix product that every convolution variant rests on; for files compiled through foreach_isa.h, hence no include
// guard.  One tile of the result stays in registers over the whole depth:
//
//     c [Rows x Vectors] = a [Rows x depth] * b [depth x Vectors]         Vectors counts registers of kLanes values
//
// a is read along its rows one value at a time, b as packed panels, [depth][Vectors * kLanes] without gaps.

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// 26 accumulators of AVX-512's 32 registers, 12 of the other sets' 16; the rest hold a row of b and a value of a.
constexpr int kTileRows = GENIMG_FAST_VECTOR_BYTES == 64 ? 13 : 6;
constexpr int kPanelVectors = 2;
template <typename T>
constexpr int kTileColumns = kPanelVectors * kLanes<T>;

// `next` is memory that will be wanted soon: each step asks for one cache line of it.
template <typename T, int Rows, int Vectors>
void multiply_tile(const T* a, int64_t lda, const T* b, int64_t depth, T* c, int64_t ldc, const T* next) {
  Vec<T> sum[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[r][v] = Vec<T>{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) row[v] = load(b + v * kLanes<T>);
    b += Vectors * kLanes<T>;
    __builtin_prefetch(next + k * (64 / sizeof(T)), 0, 2);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] += a[r * lda + k] * row[v];
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store(c + r * ldc + v * kLanes<T>, sum[r][v]);
}

// The tile of `rows` <= Rows rows.
template <typename T, int Rows = kTileRows, int Vectors = kPanelVectors>
GF_INLINE void multiply(int64_t rows, const T* a, int64_t lda, const T* b, int64_t depth, T* c, int64_t ldc,
                        const T* next) {
  if (rows == Rows) return multiply_tile<T, Rows, Vectors>(a, lda, b, depth, c, ldc, next);
  if constexpr (Rows > 1) multiply<T, Rows - 1, Vectors>(rows, a, lda, b, depth, c, ldc, next);
}

// All rows against one panel.  They are split evenly, so that no tile is left with a row or two.  While the first tiles
// run, `next_panel` is fetched.
template <typename T, int Rows = kTileRows, int Vectors = kPanelVectors>
GF_INLINE void multiply_panel(int64_t rows, const T* a, int64_t lda, const T* b, int64_t depth, T* c, int64_t ldc,
                              const T* next_panel) {
  const int64_t tiles = (rows + Rows - 1) / Rows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = rows * t / tiles, last = rows * (t + 1) / tiles;
    const T* next = t < Vectors ? next_panel + t * depth * kLanes<T> : b;
    multiply<T, Rows, Vectors>(last - first, a + first * lda, lda, b, depth, c + first * ldc, ldc, next);
  }
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA
