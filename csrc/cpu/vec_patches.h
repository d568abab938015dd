// SPDX-License-Identifier: MIT
// Gathers patches, what the taps of a convolution see of an image; for files compiled through foreach_isa.h, hence no
// include guard.  Needs vec_prologue.h and vec_transpose_taps.h.
#include "common/convolution.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
struct PatchSource {
  const Convolution& conv;
  const T* input;
  const Prologue<T>& prologue;
};

// Copies count values.  Whole vectors are stored: up to a vector beyond the end of `to` is overwritten.  Nothing is
// read at or beyond `end`.
template <typename T>
GF_INLINE void copy_run(const T* from, const T* end, int64_t count, T* to) {
  const int64_t whole = (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  if (from + whole <= end)
    for (int64_t i = 0; i < count; i += kLanes<T>) store(to + i, load(from + i));
  else
    for_each_vector<T>(0, count, [&](int64_t i, auto tail) { store(to + i, load(from + i, tail)); });
}

template <typename T>
GF_INLINE void zero_run(int64_t count, T* to) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store(to + i, Vec<T>{});
}

// The `taps` neighbouring pixels that begin at column x of an image row -> to.  Outside of the row is padding; a null
// row is all padding.
template <bool HasPrologue, typename T>
GF_INLINE void gather_taps(const PatchSource<T>& source, const T* row, const T* end, int64_t x, int64_t taps, T* to) {
  const int64_t channels = source.conv.in_channels, width = source.conv.x.input;
  int64_t first = x < 0 ? -x : 0, last = width - x < taps ? width - x : taps;  // taps inside
  if (!row || first >= last) return zero_run(taps * channels, to);
  zero_run(first * channels, to);
  const T* from = row + (x + first) * channels;
  if constexpr (HasPrologue)
    apply_prologue(source.prologue, from, last - first, channels, to + first * channels, channels);
  else
    copy_run(from, end, (last - first) * channels, to + first * channels);
  zero_run((taps - last) * channels, to + last * channels);
}

// The pixels that the taps of output pixels first, first + 1, ... see -> patch [count, lda], each [tap][channel].
template <bool HasPrologue, typename T>
void gather_patches(const PatchSource<T>& source, int64_t first, int64_t count, T* patch, int64_t lda) {
  const Convolution& conv = source.conv;
  const ConvolutionAxis &y = conv.y, &x = conv.x;
  const int64_t channels = conv.in_channels, row_size = x.input * channels;
  const T* const end = source.input + conv.batch * y.input * row_size;
  int64_t n = first / (y.output * x.output), oy = first / x.output % y.output, ox = first % x.output;
  for (int64_t r = 0; r < count; ++r, patch += lda) {
    const int64_t first_y = oy * y.stride - y.padding, first_x = ox * x.stride - x.padding;
    const T* image = source.input + n * y.input * row_size;
    T* to = patch;
    for (int64_t ky = 0; ky < y.kernel; ++ky) {
      const int64_t iy = first_y + ky * y.dilation;
      const T* row = iy >= 0 && iy < y.input ? image + iy * row_size : nullptr;
      if (x.dilation == 1) {
        gather_taps<HasPrologue>(source, row, end, first_x, x.kernel, to);
        to += x.kernel * channels;
      } else {
        for (int64_t kx = 0; kx < x.kernel; ++kx, to += channels)
          gather_taps<HasPrologue>(source, row, end, first_x + kx * x.dilation, 1, to);
      }
    }
    store(patch + conv.taps() * channels, Vec<T>{});  // dot products run on to the end of a vector
    if (++ox == x.output) {
      ox = 0;
      if (++oy == y.output) oy = 0, ++n;
    }
  }
}

// The same of all output pixels, each patch [channel][tap] as the weight lies.  `patches` and `by_tap` are [pixels,
// lda].
template <typename T>
void gather_in_weight_order(const PatchSource<T>& source, T* by_tap, T* patches, int64_t lda) {
  const Convolution& conv = source.conv;
  if (source.prologue.mean)
    gather_patches<true>(source, 0, conv.pixels(), by_tap, lda);
  else
    gather_patches<false>(source, 0, conv.pixels(), by_tap, lda);
  for (int64_t r = 0; r < conv.pixels(); ++r)
    transpose_taps(by_tap + r * lda, conv.taps(), conv.in_channels, patches + r * lda);
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA
