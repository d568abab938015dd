// SPDX-License-Identifier: MIT
// What the weight gradient's variants share per instruction set; for files compiled through foreach_isa.h, hence no
// include guard.  Needs gemm_tile.h.

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
GF_INLINE Prologue<T> of_channels(Prologue<T> prologue, int64_t first) {
  if (prologue.mean) prologue.mean += first, prologue.scale += first, prologue.shift += first;
  return prologue;
}

// Memory that will be wanted after this band, line by line.
class WantedLines {
 public:
  // The block's channels of some rows of small and of the rows of large that these see.  A row of small is n * H' + y.
  template <typename T>
  void add_images(const WeightGradCall<T>& call, const WeightGradBlock& block, int64_t first_row, int64_t last_row) {
    const Convolution& conv = call.conv;
    auto add = [&](const T* image, int64_t channels, int64_t wanted, int64_t first_pixel, int64_t last_pixel) {
      add_rows(image + first_pixel * channels, last_pixel - first_pixel, channels, wanted);
    };
    auto large_row = [&](int64_t row) {
      return row / conv.y.output * conv.y.input + row % conv.y.output * conv.y.stride;
    };
    add(call.small + block.first_small, conv.out_channels, block.small_channels, first_row * conv.x.output,
        last_row * conv.x.output);
    add(call.large + block.first_large, conv.in_channels, block.large_channels, large_row(first_row) * conv.x.input,
        large_row(last_row) * conv.x.input);
  }
  // What finishing the block will write.
  template <typename T>
  void add_weights(const WeightGradJob<T>& job) {
    const int64_t taps = job.call.conv.taps(), channels = job.call.conv.in_channels;
    add_rows(job.grad_weight + (job.block.first_small * channels + job.block.first_large) * taps,
             job.block.small_channels, channels * taps, job.block.large_channels * taps);
  }
  // As many lines as a tile asks for.
  GF_INLINE Lines next(int64_t count) {
    if (current_ == size_) return {parts_[0].first, 0};
    const Part& part = parts_[current_];
    const Lines lines{part.first + row_ * part.stride + line_ * 64, part.stride};
    row_ += count;
    if (row_ >= part.rows) {
      row_ = 0;
      if (++line_ >= part.lines) line_ = 0, ++current_;
    }
    return lines;
  }

 private:
  struct Part {
    const char* first;
    int64_t rows, stride, lines;  // of a row
  };
  // The first `wanted` values of each row.
  template <typename T>
  void add_rows(const T* first, int64_t rows, int64_t row_size, int64_t wanted) {
    const int64_t size = sizeof(T);
    const char* p = reinterpret_cast<const char*>(first);
    if (wanted == row_size)
      parts_[size_++] = {p, (rows * row_size * size + 63) / 64, 64, 1};
    else
      parts_[size_++] = {p, rows, row_size * size, (wanted * size + 63) / 64};
  }
  Part parts_[3];
  int size_ = 0, current_ = 0;
  int64_t row_ = 0, line_ = 0;
};

// The terms of small at the first point, `stride` apart: in job.a, or where they lie in the image.
template <typename T>
struct SmallTerms {
  const T* first;
  int64_t stride;
};

// job.c (+)= small^T job.b at all points, over `terms` rows of both.
template <typename T>
void multiply_band(const WeightGradJob<T>& job, const SmallTerms<T>& small, int64_t terms, int64_t columns, bool add,
                   WantedLines wanted) {
  auto next_lines = [&](int64_t count) { return wanted.next(count); };
  const int64_t rows = job.block.small_channels;
  for (int64_t point = 0; point < job.plan.points; ++point) {
    const T *a = small.first + point * job.a_point(), *b = job.b + point * job.b_point();
    T* c = job.c + point * job.c_point();
    int64_t column = 0;
    for (; column + kLanes<T> < columns; column += kTileColumns<T>)
      multiply_transposed_panel<T>(rows, a, small.stride, b + column, job.ldb(), terms, c + column, job.ldc(), add,
                                   next_lines);
    if (column < columns)
      multiply_transposed_panel<T, kTileRows, 1>(rows, a, small.stride, b + column, job.ldb(), terms, c + column,
                                                 job.ldc(), add, next_lines);
  }
}

// Sums a block band by band.  gather_small and gather_large fill job.a and job.b with terms [first, last), and
// gather_small returns where they are; row_of(term) is the row of small that a term begins in.
template <typename T, typename GatherSmall, typename GatherLarge, typename RowOf>
GF_INLINE void sum_bands(const WeightGradJob<T>& job, int64_t columns, const GatherSmall& gather_small,
                         const GatherLarge& gather_large, const RowOf& row_of) {
  const WeightGradBlock& block = job.block;
  auto band_end = [&](const WeightGradBlock& of, int64_t first) {
    return first + job.plan.band < of.last_term ? first + job.plan.band : of.last_term;
  };
  int64_t last;
  for (int64_t first = block.first_term; first < block.last_term; first = last) {
    last = band_end(block, first);
    const SmallTerms<T> small = gather_small(first, last);
    if (!job.large_is_there) gather_large(first, last);
    WantedLines wanted;
    if (last < block.last_term) {
      wanted.add_images(job.call, block, row_of(last), row_of(band_end(block, last)));
    } else {
      wanted.add_weights(job);
      // Images small enough for one band come from a near cache anyway.
      if (first > block.first_term)
        wanted.add_images(job.call, job.next, row_of(job.next.first_term),
                          row_of(band_end(job.next, job.next.first_term)));
    }
    multiply_band(job, small, last - first, columns, first != block.first_term, wanted);
  }
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA
