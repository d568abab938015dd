// SPDX-License-Identifier: MIT
// What the weight gradient's variants share per instruction set; for files compiled through foreach_isa.h, hence no
// include guard.  Needs gemm_tile.h.

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
GF_INLINE Prologue<T> of_channels(Prologue<T> prologue, int64_t first) {
  if (prologue.mean) prologue.mean += first, prologue.scale += first, prologue.shift += first;
  return prologue;
}

// job.c (+)= job.a^T job.b at all points, over `terms` rows of both.
template <typename T>
void multiply_band(const WeightGradJob<T>& job, int64_t terms, int64_t columns, bool add) {
  for (int64_t point = 0; point < job.plan.points; ++point) {
    const T *a = job.a + point * job.a_point(), *b = job.b + point * job.b_point();
    T* c = job.c + point * job.c_point();
    int64_t column = 0;
    for (; column + kLanes<T> < columns; column += kTileColumns<T>)
      multiply_transposed_panel<T>(job.small_channels, a, job.lda(), b + column, job.ldb(), terms, c + column,
                                   job.ldc(), add);
    if (column < columns)
      multiply_transposed_panel<T, kTileRows, 1>(job.small_channels, a, job.lda(), b + column, job.ldb(), terms,
                                                 c + column, job.ldc(), add);
  }
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA
