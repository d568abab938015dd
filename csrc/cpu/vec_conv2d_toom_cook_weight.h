// SPDX-License-Identifier: MIT
// How conv2d_toom_cook.cpp packs weights, per instruction set; for files compiled through foreach_isa.h, hence no
// include guard.  Needs gemm_tile.h and toom_cook.h.

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// Weights of items [begin, end), an item being one input channel of one panel.
template <int M, int Kernel, int Stride, bool Stream, typename T>
void pack_items(const Convolution& conv, const WeightView& view, const T* weight, T* packed, int64_t begin,
                int64_t end) {
  constexpr int kPhaseTaps = ToomCookTaps<Kernel, Stride>, kTaps = Kernel * Kernel, kEdge = M + kPhaseTaps - 1;
  constexpr int kPhases = Stride * Stride, kItemsAhead = 4;
  constexpr int kLoads = (kTaps + kLanes<T> - 1) / kLanes<T>;  // that see the taps of one channel
  const int64_t panels = (conv.out_channels + kTileColumns<T> - 1) / kTileColumns<T>;
  const int64_t phase_size = conv.in_channels * kTileColumns<T>, point_stride = panels * kPhases * phase_size;
  const T* weight_end = weight + conv.out_channels * conv.in_channels * kTaps;
  auto evaluate = [](const Vec<T>* h, Vec<T>* u) __attribute__((always_inline)) {
    if constexpr (kPhaseTaps == 2)
      ToomCook<T, M>::weight(h[0], h[1], u);
    else if constexpr (kPhaseTaps == 4)
      ToomCook<T, M, 4>::weight(h[0], h[1], h[2], h[3], u);
    else
      ToomCook<T, M, 3>::weight(h[0], h[1], h[2], u);
  };
  for (int64_t item = begin; item < end; ++item) {
    const int64_t panel = item / conv.in_channels, k = item % conv.in_channels;
    const int64_t channel = panel * kTileColumns<T>, left = conv.out_channels - channel;
    const T* rows = weight + channel * view.out_stride + k * view.in_stride;
    Vec<T> taps[kPanelVectors][kLoads * kLanes<T>];
    for (int vector = 0; vector < kPanelVectors; ++vector) {
      for (int lane = 0; lane < kLanes<T>; ++lane)
        __builtin_prefetch(rows + (vector * kLanes<T> + lane) * view.out_stride + kItemsAhead * view.in_stride, 0, 2);
#pragma GCC unroll 4
      for (int part = 0; part < kLoads; ++part) {
        Vec<T> v[kLanes<T>];
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes<T>; ++lane) {
          const int64_t column = vector * kLanes<T> + lane;
          const T* from = rows + column * view.out_stride + part * kLanes<T>;
          v[lane] = column >= left                   ? Vec<T>{}
                    : from + kLanes<T> <= weight_end ? load(from)
                                                     : load(from, Tail{static_cast<int>(weight_end - from)});
        }
        transpose<T>(v);
#pragma GCC unroll 16
        for (int tap = 0; tap < kLanes<T>; ++tap) taps[vector][part * kLanes<T> + tap] = v[tap];
      }
    }
    T* to = packed + panel * kPhases * phase_size + k * kTileColumns<T>;
    for (int phase = 0; phase < kPhases; ++phase, to += phase_size) {
      Vec<T> half[kPanelVectors][kPhaseTaps][kEdge], h[kPhaseTaps], u[kPanelVectors][kEdge];
#pragma GCC unroll 2
      for (int vector = 0; vector < kPanelVectors; ++vector)
#pragma GCC unroll 4
        for (int tx = 0; tx < kPhaseTaps; ++tx) {
#pragma GCC unroll 4
          for (int ty = 0; ty < kPhaseTaps; ++ty) {
            const int ky = phase / Stride + ty * Stride, kx = phase % Stride + tx * Stride;
            const bool inside = ky < Kernel && kx < Kernel;
            h[ty] = inside ? taps[vector][view.first_tap + (ky * Kernel + kx) * view.tap_stride] : Vec<T>{};
          }
          evaluate(h, half[vector][tx]);
        }
#pragma GCC unroll 8
      for (int i = 0; i < kEdge; ++i) {
#pragma GCC unroll 2
        for (int vector = 0; vector < kPanelVectors; ++vector) {
#pragma GCC unroll 4
          for (int tx = 0; tx < kPhaseTaps; ++tx) h[tx] = half[vector][tx][i];
          evaluate(h, u[vector]);
        }
#pragma GCC unroll 8
        for (int j = 0; j < kEdge; ++j) {
          T* place = to + (i * kEdge + j) * point_stride;
#pragma GCC unroll 2
          for (int vector = 0; vector < kPanelVectors; ++vector)  // of one line, or of neighbouring lines
            Stream ? stream<T>(place + vector * kLanes<T>, u[vector][j])
                   : store(place + vector * kLanes<T>, u[vector][j]);
        }
      }
    }
  }
  if (Stream) stream_fence();
}

template <typename T>
void pack_channels(const Convolution& conv, int64_t m, const WeightView& view, const T* weight, T* packed,
                   bool past_caches, int64_t begin, int64_t end) {
  with_tile(m, conv.y.kernel, conv.y.stride, [&](auto m_tag, auto kernel_tag, auto stride_tag) {
    constexpr int M = decltype(m_tag)::value, kKernel = decltype(kernel_tag)::value;
    constexpr int kStride = decltype(stride_tag)::value;
    past_caches ? pack_items<M, kKernel, kStride, true>(conv, view, weight, packed, begin, end)
                : pack_items<M, kKernel, kStride, false>(conv, view, weight, packed, begin, end);
  });
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA
