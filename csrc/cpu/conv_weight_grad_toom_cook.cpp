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

namespace genimg_fast::cpu {
constexpr int kPhases = 4;
}

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

constexpr int64_t kSumsBytes = 800 * 1024, kBandBytes = 608 * 1024, kLargeBytes = 512 * 1024;  // of an L2 of 2 MiB
constexpr int64_t kMaxRows = 128, kMinColumns = 64;

template <typename T>
void run(const WeightGradCall<T>& call, int64_t m) {
  const Convolution& conv = call.conv;
  const int64_t lanes = vector_bytes(active_isa()) / sizeof(T), points = (m + 1) * (m + 1);
  const int64_t line = points * sizeof(T);  // bytes of one value at all points
  WeightGradPlan plan;
  plan.points = points;
  plan.terms = conv.batch * ((conv.y.output + m - 1) / m) * ((conv.x.output + m - 1) / m);
  auto blocks_of = [&](int64_t channels, int64_t most) {  // of whole vectors
    return lanes * even_block((channels + lanes - 1) / lanes, std::max<int64_t>(most / lanes, 1));
  };
  if (plan.terms * kMinColumns * line <= kLargeBytes) {
    // All of large's terms at once, kept for one block of small after another.
    plan.large_block = blocks_of(conv.in_channels, kMinColumns / kPhases);
    plan.columns = kPhases * plan.large_block;
    const int64_t rest = kSumsBytes + kBandBytes - plan.terms * plan.columns * line;
    plan.small_block = blocks_of(conv.out_channels, rest / ((plan.terms + plan.columns) * line));
    plan.band = plan.terms;
  } else {
    plan.small_block = blocks_of(conv.out_channels, kMaxRows);
    plan.large_block = blocks_of(conv.in_channels, kSumsBytes / (plan.small_block * line) / kPhases);
    plan.columns = kPhases * plan.large_block;
    plan.band = even_block(plan.terms, std::max<int64_t>(kBandBytes / ((plan.small_block + plan.columns) * line), 1));
  }
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
          if (pixel != zeros)
            x[i] = activate<T>(prologue.activation, (x[i] - mean) * scale + shift, prologue.negative_slope);
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

// Where the tiles of a batch lie.
template <int M>
struct TileGrid {
  const Convolution& conv;
  int64_t tiles_y, tiles_x;
  explicit TileGrid(const Convolution& c)
      : conv(c), tiles_y((c.y.output + M - 1) / M), tiles_x((c.x.output + M - 1) / M) {}
  int64_t image(int64_t tile) const { return tile / (tiles_y * tiles_x); }
  int64_t y(int64_t tile) const { return tile / tiles_x % tiles_y * M; }
  int64_t x(int64_t tile) const { return tile % tiles_x * M; }
};

// Tiles [first, last) of small -> job.a.
template <int M, typename T>
void evaluate_small(const WeightGradJob<T>& job, const TileGrid<M>& grid, int64_t first, int64_t last) {
  const Convolution& conv = job.call.conv;
  const Prologue<T> prologue = of_channels(job.call.small_prologue, job.block.first_small);
  const T* pixels[M * M];
  for (int64_t tile = first; tile < last; ++tile) {
    const T* image =
        job.call.small + job.block.first_small + grid.image(tile) * conv.y.output * conv.x.output * conv.out_channels;
    find_pixels<M>(image, conv.y.output, conv.x.output, conv.out_channels, grid.y(tile), grid.x(tile), 1, job.zeros,
                   pixels);
    evaluate_tile<M, M + 1>(pixels, job.zeros, prologue, job.block.small_channels, job.a + (tile - first) * job.lda(),
                            1, job.a_point(), [](const Vec<T>* v, Vec<T>* u) { ToomCook<T, M>::input(v, u); });
  }
}

// The phases of tiles [first, last) of large -> job.b.
template <int M, typename T>
void evaluate_large(const WeightGradJob<T>& job, const TileGrid<M>& grid, int64_t first, int64_t last) {
  const Convolution& conv = job.call.conv;
  const Prologue<T> prologue = of_channels(job.call.large_prologue, job.block.first_large);
  const T* pixels[(M + 1) * (M + 1)];
  for (int64_t tile = first; tile < last; ++tile) {
    const T* image =
        job.call.large + job.block.first_large + grid.image(tile) * conv.y.input * conv.x.input * conv.in_channels;
    for (int phase = 0; phase < kPhases; ++phase) {
      find_pixels<M + 1>(image, conv.y.input, conv.x.input, conv.in_channels, 2 * grid.y(tile) - phase / 2,
                         2 * grid.x(tile) - phase % 2, 2, job.zeros, pixels);
      evaluate_tile<M + 1, M + 1>(pixels, job.zeros, prologue, job.block.large_channels,
                                  job.b + (tile - first) * job.ldb() + phase * kLanes<T>, kPhases, job.b_point(),
                                  [](const Vec<T>* v, Vec<T>* u) { ToomCook<T, M>::output_transposed(v, u); });
    }
  }
}

// job.c -> the 16 taps of each weight.
template <int M, typename T>
void finish_weights(const WeightGradJob<T>& job) {
  constexpr int kTaps = 16;
  constexpr int kTap[2][2] = {{1, 3}, {0, 2}};  // of a phase
  for (int64_t s = 0; s < job.block.small_channels; ++s) {
    T* to = job.grad_weight + ((job.block.first_small + s) * job.call.conv.in_channels + job.block.first_large) * kTaps;
    for (int64_t l = 0; l < job.block.large_channels; l += kLanes<T>) {
      Vec<T> taps[kTaps];
#pragma GCC unroll 4
      for (int phase = 0; phase < kPhases; ++phase) {
        const T* sums = job.c + s * job.ldc() + kPhases * l + phase * kLanes<T>;
        Vec<T> half[2][M + 1], u[M + 1], h[2];
#pragma GCC unroll 8
        for (int j = 0; j <= M; ++j) {
#pragma GCC unroll 8
          for (int i = 0; i <= M; ++i) u[i] = load(sums + (i * (M + 1) + j) * job.c_point());
          ToomCook<T, M>::weight_transposed(u, h);
          half[0][j] = h[0], half[1][j] = h[1];
        }
#pragma GCC unroll 2
        for (int ty = 0; ty < 2; ++ty) {
          ToomCook<T, M>::weight_transposed(half[ty], h);
#pragma GCC unroll 2
          for (int tx = 0; tx < 2; ++tx) taps[4 * kTap[phase / 2][ty] + kTap[phase % 2][tx]] = h[tx];
        }
      }
      const int64_t lanes = job.block.large_channels - l < kLanes<T> ? job.block.large_channels - l : kLanes<T>;
#pragma GCC unroll 4
      for (int first = 0; first < kTaps; first += kLanes<T>) {
        transpose<T>(taps + first);
        for (int64_t lane = 0; lane < lanes; ++lane) store(to + lane * kTaps + first, taps[first + lane]);
      }
      to += lanes * kTaps;
    }
  }
}

template <int M, typename T>
void run_toom_cook_block(const WeightGradJob<T>& job) {
  const TileGrid<M> grid(job.call.conv);
  const int64_t columns = (job.block.large_channels + kLanes<T> - 1) / kLanes<T> * kPhases * kLanes<T>;
  sum_bands(
      job, columns, [&](int64_t first, int64_t last) { evaluate_small<M>(job, grid, first, last); },
      [&](int64_t first, int64_t last) { evaluate_large<M>(job, grid, first, last); },
      [&](int64_t tile) { return grid.image(tile) * job.call.conv.y.output + grid.y(tile); });
  finish_weights<M>(job);
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif
