// SPDX-License-Identifier: MIT
// Weight gradient of a convolution with kernel 4, stride 2, padding 1 by Toom-Cook products (toom_cook.h).
//
// It is the transposed convolution of conv_transpose2d_toom_cook.cpp read backwards.  A tile is M x M pixels of small
// and, of each of the four phases of large, the (M + 1) x (M + 1) positions that these touch; the tiles' last and first
// positions are the same pixels.  One axis of large:
//
//      small          s0      s1      s2      s3
//      position   0       1       2       3       4
//      phase 0    0       2       4       6       8        column 2p       of taps 1 and 3
//      phase 1   -1       1       3       5       7        column 2p - 1   of taps 0 and 2
//
// Small is evaluated by input(), each phase of large by output_transposed(), at (M + 1)^2 points.  Each point is one
// GEMM, [Cout x tiles] x [tiles x 4 Cin], summed over all tiles; weight_transposed() makes 16 taps of the sums.  25
// multiplications do the work of 64 with M = 4, 9 of 16 with M = 2.
//
// The sums of all points of a block of channels stay in L2 until they are taps (conv_weight_grad_blocks.h).  A block is
// as large as that allows, since every block evaluates its channels for itself.  A NaN or Inf reaches all taps of its
// channel; an Inf arrives as NaN.
#ifndef GENIMG_FAST_ISA

#include "cpu/conv_weight_grad_blocks.h"

#define GENIMG_FAST_KERNEL_FILE "cpu/conv_weight_grad_toom_cook.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu::toom_cook {

bool supports_weight_grad(const Convolution& conv) {
  auto fits = [](const ConvolutionAxis& axis) {
    return axis.kernel == 4 && axis.stride == 2 && axis.padding == 1 && axis.dilation == 1 &&
           axis.input == 2 * axis.output;
  };
  return fits(conv.y) && fits(conv.x);
}

template <typename T>
void run(const WeightGradCall<T>& call, int64_t m) {
  constexpr int64_t kPhases = 4, kSumsBytes = 800 * 1024, kBandBytes = 720 * 1024;  // of an L2 of 2 MiB
  const Convolution& conv = call.conv;
  const int64_t element = sizeof(T), lanes = vector_bytes(active_isa()) / element;
  WeightGradPlan plan;
  plan.points = (m + 1) * (m + 1);
  plan.terms = conv.batch * ((conv.y.output + m - 1) / m) * ((conv.x.output + m - 1) / m);
  plan.small_block = even_block(conv.out_channels, 128);
  const int64_t most_columns = kSumsBytes / (plan.points * plan.small_block * element);
  const int64_t groups = (conv.in_channels + lanes - 1) / lanes;
  plan.large_block = lanes * even_block(groups, std::max<int64_t>(most_columns / (lanes * kPhases), 1));
  plan.columns = kPhases * plan.large_block;
  const int64_t term = leading_dimension<T>(plan.small_block) + leading_dimension<T>(plan.columns);
  plan.band = std::clamp<int64_t>(kBandBytes / (plan.points * term * element), 1, plan.terms);
  for_each_block(call, plan, [m](const WeightGradJob<T>& job) {
    if (m == 2)
      GENIMG_FAST_DISPATCH_ISA(run_toom_cook_block<2, T>(job));
    else
      GENIMG_FAST_DISPATCH_ISA(run_toom_cook_block<4, T>(job));
  });
}

template void run<float>(const WeightGradCall<float>&, int64_t);

}  // namespace genimg_fast::cpu::toom_cook

#else  // once per instruction set

#include "cpu/gemm_tile.h"
#include "cpu/toom_cook.h"
#include "cpu/vec_activation.h"
#include "cpu/vec_weight_grad.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// The N x N pixels of a tile on one image, or zeros where they lie beyond its edge.
template <int N, typename T>
GF_INLINE void find_pixels(const T* image, int64_t height, int64_t width, int64_t channels, int64_t y0, int64_t x0,
                           int64_t step, const T* zeros, const T** pixels) {
  for (int i = 0; i < N; ++i) {
    const int64_t y = y0 + i * step;
    const bool row = y >= 0 && y < height;
    for (int j = 0; j < N; ++j) {
      const int64_t x = x0 + j * step;
      pixels[i * N + j] = row && x >= 0 && x < width ? image + (y * width + x) * channels : zeros;
    }
  }
}

// N x N pixels -> their values at Points x Points points, `transform` being that of one axis.  Vectors of channels are
// stored `spread` vectors apart.
template <int N, int Points, bool HasPrologue, typename T, typename Transform>
GF_INLINE void evaluate_pixels(const T* const* pixels, const T* zeros, const Prologue<T>& prologue, int64_t channels,
                               T* to, int64_t spread, int64_t point_stride, const Transform& transform) {
  for_each_vector<T>(0, channels, [&](int64_t c, auto count) {
    Vec<T> mean, scale, shift;
    if constexpr (HasPrologue) {
      mean = load(prologue.mean + c, count);
      scale = load(prologue.scale + c, count);
      shift = load(prologue.shift + c, count);
    }
    Vec<T> half[Points][N], x[N], v[Points];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        const T* pixel = pixels[i * N + j];
        x[i] = load(pixel + c, count);
        if constexpr (HasPrologue)
          if (pixel != zeros) x[i] = activate<T>(prologue.activation, (x[i] - mean) * scale + shift, prologue.negative_slope);
      }
      transform(x, v);
#pragma GCC unroll 8
      for (int i = 0; i < Points; ++i) half[i][j] = v[i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < Points; ++i) {
      transform(half[i], v);
#pragma GCC unroll 8
      for (int j = 0; j < Points; ++j) store(to + c * spread + (i * Points + j) * point_stride, v[j]);
    }
  });
}

template <int N, int Points, typename T, typename Transform>
void evaluate_tile(const T* const* pixels, const T* zeros, const Prologue<T>& prologue, int64_t channels, T* to,
                   int64_t spread, int64_t point_stride, const Transform& transform) {
  if (prologue.mean)
    evaluate_pixels<N, Points, true>(pixels, zeros, prologue, channels, to, spread, point_stride, transform);
  else
    evaluate_pixels<N, Points, false>(pixels, zeros, prologue, channels, to, spread, point_stride, transform);
}

// Tiles [first, last) of the batch -> job.a, job.b.
template <int M, typename T>
void evaluate_tiles(const WeightGradJob<T>& job, int64_t first, int64_t last) {
  const Convolution& conv = job.call.conv;
  const ConvolutionAxis &y = conv.y, &x = conv.x;
  const Prologue<T> small_prologue = of_channels(job.call.small_prologue, job.first_small);
  const Prologue<T> large_prologue = of_channels(job.call.large_prologue, job.first_large);
  const int64_t tiles_y = (y.output + M - 1) / M, tiles_x = (x.output + M - 1) / M;
  const T* pixels[(M + 1) * (M + 1)];
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t n = tile / (tiles_y * tiles_x), ty = tile / tiles_x % tiles_y * M, tx = tile % tiles_x * M;
    const T* small = job.call.small + n * y.output * x.output * conv.out_channels + job.first_small;
    find_pixels<M>(small, y.output, x.output, conv.out_channels, ty, tx, 1, job.zeros, pixels);
    evaluate_tile<M, M + 1>(pixels, job.zeros, small_prologue, job.small_channels, job.a + (tile - first) * job.lda(), 1,
                            job.a_point(), [](const Vec<T>* v, Vec<T>* u) { ToomCook<T, M>::input(v, u); });
    const T* large = job.call.large + n * y.input * x.input * conv.in_channels + job.first_large;
    for (int phase = 0; phase < 4; ++phase) {
      find_pixels<M + 1>(large, y.input, x.input, conv.in_channels, 2 * ty - phase / 2, 2 * tx - phase % 2, 2, job.zeros,
                         pixels);
      evaluate_tile<M + 1, M + 1>(pixels, job.zeros, large_prologue, job.large_channels,
                                  job.b + (tile - first) * job.ldb() + phase * kLanes<T>, 4, job.b_point(),
                                  [](const Vec<T>* v, Vec<T>* u) { ToomCook<T, M>::output_transposed(v, u); });
    }
  }
}

// job.c -> the 16 taps of each weight.
template <int M, typename T>
void finish_weights(const WeightGradJob<T>& job) {
  constexpr int kTaps = 16;
  constexpr int kTap[2][2] = {{1, 3}, {0, 2}};  // of a phase
  for (int64_t s = 0; s < job.small_channels; ++s) {
    T* to = job.grad_weight + ((job.first_small + s) * job.call.conv.in_channels + job.first_large) * kTaps;
    for (int64_t l = 0; l < job.large_channels; l += kLanes<T>) {
      T taps[kTaps][kLanes<T>];
      for (int phase = 0; phase < 4; ++phase) {
        const T* sums = job.c + s * job.ldc() + 4 * l + phase * kLanes<T>;
        Vec<T> half[2][M + 1], u[M + 1], h[2];
#pragma GCC unroll 8
        for (int j = 0; j <= M; ++j) {
#pragma GCC unroll 8
          for (int i = 0; i <= M; ++i) u[i] = load(sums + (i * (M + 1) + j) * job.c_point());
          ToomCook<T, M>::weight_transposed(u, h);
          half[0][j] = h[0], half[1][j] = h[1];
        }
        for (int ty = 0; ty < 2; ++ty) {
          ToomCook<T, M>::weight_transposed(half[ty], h);
          for (int tx = 0; tx < 2; ++tx) store(taps[4 * kTap[phase / 2][ty] + kTap[phase % 2][tx]], h[tx]);
        }
      }
      const int64_t lanes = job.large_channels - l < kLanes<T> ? job.large_channels - l : kLanes<T>;
      for (int64_t lane = 0; lane < lanes; ++lane)
        for (int tap = 0; tap < kTaps; ++tap) *to++ = taps[tap][lane];
    }
  }
}

template <int M, typename T>
void run_toom_cook_block(const WeightGradJob<T>& job) {
  const int64_t columns = (job.large_channels + kLanes<T> - 1) / kLanes<T> * 4 * kLanes<T>;
  for (int64_t first = job.first_term; first < job.last_term; first += job.plan.band) {
    const int64_t last = first + job.plan.band < job.last_term ? first + job.plan.band : job.last_term;
    evaluate_tiles<M>(job, first, last);
    multiply_band(job, last - first, columns, first != job.first_term);
  }
  finish_weights<M>(job);
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif
