// SPDX-License-Identifier: MIT
// Weight gradient of a convolution with kernel 3, 4 or 5 and stride 2, or kernel 3 or 4 and stride 1, any padding, by
// Toom-Cook products (toom_cook.h): conv2d_toom_cook.cpp read backwards.
//
// A tile is M x M pixels of small and, of each phase of large, the P x P positions that these see, P = M + taps - 1.
// Position q of a phase is row or column q * stride - padding + phase, and tap t of the phase is phase + t * stride of
// the kernel.  One axis with kernel 4, stride 2, padding 1:
//
//      small              s0      s1      s2      s3
//      phase 0       -1       1       3       5       7        taps 0 and 2
//      phase 1            0       2       4       6       8    taps 1 and 3
//
// Small is evaluated by input(), each phase of large by output_transposed(), at P^2 points.  Each point is one GEMM,
// [Cout x tiles] x [tiles x phases Cin], summed over all tiles; weight_transposed() makes taps of the sums.
// Multiplications a pixel, input and output channel:
//
//      kernel, stride     4 or 3, 2                 5, 2               3, 1              4, 1
//      direct              16 or 9                   25                 9                 16
//      M = 2           4 * 9 / 4 = 9         4 * 16 / 4 = 16       16 / 4 = 4        25 / 4 = 6.25
//      M = 4           4 * 25 / 16 = 6.25    4 * 36 / 16 = 9       36 / 16 = 2.25
//
// The sums of all points of a block of channels stay in L2 until they are taps (conv_weight_grad_blocks.h).  A block is
// as large as that allows, since every block evaluates its channels for itself.  Columns: [vector of Cin][phase][lane].
// A NaN or Inf reaches all taps of its channel; an Inf arrives as NaN.
#ifndef GENIMG_FAST_ISA

#include "cpu/conv_weight_grad_blocks.h"

#define GENIMG_FAST_KERNEL_FILE "cpu/conv_weight_grad_toom_cook.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu::toom_cook {
namespace {

constexpr int64_t kSumsBytes = 800 * 1024, kBandBytes = 608 * 1024;  // of an L2 of 2 MiB
constexpr int64_t kKeptBytes = 512 * 1024;                           // large's terms, if they are kept
constexpr int64_t kRows = 128, kColumns = 64;

template <typename T>
WeightGradPlan make_plan(const Convolution& conv, int64_t m) {
  const int64_t lanes = vector_bytes(active_isa()) / sizeof(T), phases = conv.y.stride * conv.y.stride;
  const int64_t edge = m + conv.y.phase_taps() - 1;
  WeightGradPlan plan;
  plan.points = edge * edge;
  plan.terms = conv.batch * ((conv.y.output + m - 1) / m) * ((conv.x.output + m - 1) / m);
  const int64_t value = plan.points * sizeof(T);
  auto blocks_of = [&](int64_t channels, int64_t most) {  // of whole vectors
    return lanes * even_block((channels + lanes - 1) / lanes, std::max<int64_t>(most / lanes, 1));
  };
  if (plan.terms * kColumns * value <= kKeptBytes) {
    // All of large's terms at once, kept for one block of small after another.
    plan.large_block = blocks_of(conv.in_channels, kColumns / phases);
    plan.columns = phases * plan.large_block;
    const int64_t rest = kSumsBytes + kBandBytes - plan.terms * plan.columns * value;
    plan.small_block = blocks_of(conv.out_channels, rest / ((plan.terms + plan.columns) * value));
    plan.band = plan.terms;
  } else {
    plan.small_block = blocks_of(conv.out_channels, kRows);
    plan.large_block = blocks_of(conv.in_channels, kSumsBytes / (plan.small_block * value) / phases);
    plan.columns = phases * plan.large_block;
    plan.band = even_block(plan.terms, std::max<int64_t>(kBandBytes / ((plan.small_block + plan.columns) * value), 1));
  }
  return plan;
}

}  // namespace

// Of few channels PyTorch sums each weight's products in many parts, and errs less than so many points do.
bool supports_weight_grad(const Convolution& conv, int64_t m) {
  const bool many_channels = conv.in_channels * conv.out_channels >= 64;
  const bool large = std::min(conv.y.output, conv.x.output) >= m;
  return conv.has(4, 2) || (many_channels && (conv.has(3, 1) || (large && conv.has(3, 2)) || conv.has(5, 2) ||
                                              (m == 2 && conv.has(4, 1))));
}

template <typename T>
void run(const WeightGradCall<T>& call, int64_t m) {
  for_each_block(call, make_plan<T>(call.conv, m),
                 [&](const WeightGradJob<T>& job) { GENIMG_FAST_DISPATCH_ISA(run_toom_cook_block<T>(job, m)); });
}

template void run<float>(const WeightGradCall<float>&, int64_t);
template void run<double>(const WeightGradCall<double>&, int64_t);

}  // namespace genimg_fast::cpu::toom_cook

#else  // once per instruction set

#include "cpu/gemm_tile.h"
#include "cpu/toom_cook.h"
#include "cpu/vec_activation.h"
#include "cpu/vec_weight_grad.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <int M, int Kernel, int Stride>
struct WeightGradTiles {
  static constexpr int kM = M, kKernel = Kernel, kStride = Stride, kPhases = Stride * Stride;
  static constexpr int kTaps = ToomCookTaps<Kernel, Stride>, kEdge = M + kTaps - 1;

  template <typename T>
  using Products = ToomCook<T, M, kTaps>;

  const Convolution& conv;
  const int64_t tiles_y = (conv.y.output + M - 1) / M, tiles_x = (conv.x.output + M - 1) / M;

  // The first pixel of small that a tile of the batch covers.
  int64_t image(int64_t tile) const { return tile / (tiles_y * tiles_x); }
  int64_t y(int64_t tile) const { return tile / tiles_x % tiles_y * M; }
  int64_t x(int64_t tile) const { return tile % tiles_x * M; }
};

// The N x N pixels that a tile sees of an image, or zeros where they lie beyond its edge.
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

// How many channels to evaluate: whole vectors, whose last lanes are the next pixel's and lead to nothing that is used,
// unless these would lie beyond the last of all images, or beyond the prologue.
template <typename T>
int64_t channels_to_evaluate(int64_t channels, const Prologue<T>& prologue, int64_t images_after, int64_t image_size) {
  if (prologue.mean || images_after * image_size < kLanes<T>) return channels;
  return (channels + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
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

// Tiles [first, last) of small -> job.a.
template <typename T, typename Tiles>
SmallTerms<T> evaluate_small(const WeightGradJob<T>& job, const Tiles& tiles, int64_t first, int64_t last) {
  constexpr int M = Tiles::kM;
  const Convolution& conv = job.call.conv;
  const Prologue<T> prologue = of_channels(job.call.small_prologue, job.block.first_small);
  const T* pixels[M * M];
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t n = tiles.image(tile), image_size = conv.y.output * conv.x.output * conv.out_channels;
    const T* image = job.call.small + n * image_size + job.block.first_small;
    const int64_t channels = channels_to_evaluate(job.block.small_channels, prologue, conv.batch - 1 - n, image_size);
    find_pixels<M>(image, conv.y.output, conv.x.output, conv.out_channels, tiles.y(tile), tiles.x(tile), 1, job.zeros,
                   pixels);
    evaluate_tile<M, Tiles::kEdge>(pixels, job.zeros, prologue, channels, job.a + (tile - first) * job.lda(), 1,
                                   job.a_point(),
                                   [](const Vec<T>* x, Vec<T>* v) { Tiles::template Products<T>::input(x, v); });
  }
  return {job.a, job.lda()};
}

// The phases of tiles [first, last) of large -> job.b.
template <typename T, typename Tiles>
void evaluate_large(const WeightGradJob<T>& job, const Tiles& tiles, int64_t first, int64_t last) {
  constexpr int kStride = Tiles::kStride, kEdge = Tiles::kEdge, kPhases = Tiles::kPhases;
  const Convolution& conv = job.call.conv;
  const Prologue<T> prologue = of_channels(job.call.large_prologue, job.block.first_large);
  const T* pixels[kEdge * kEdge];
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t n = tiles.image(tile), image_size = conv.y.input * conv.x.input * conv.in_channels;
    const T* image = job.call.large + n * image_size + job.block.first_large;
    const int64_t channels = channels_to_evaluate(job.block.large_channels, prologue, conv.batch - 1 - n, image_size);
    const int64_t y0 = tiles.y(tile) * kStride - conv.y.padding, x0 = tiles.x(tile) * kStride - conv.x.padding;
    for (int phase = 0; phase < kPhases; ++phase) {
      find_pixels<kEdge>(image, conv.y.input, conv.x.input, conv.in_channels, y0 + phase / kStride,
                         x0 + phase % kStride, kStride, job.zeros, pixels);
      evaluate_tile<kEdge, kEdge>(
          pixels, job.zeros, prologue, channels, job.b + (tile - first) * job.ldb() + phase * kLanes<T>, kPhases,
          job.b_point(), [](const Vec<T>* y, Vec<T>* p) { Tiles::template Products<T>::output_transposed(y, p); });
    }
  }
}

// job.c -> the taps of each weight.
template <typename Tiles, typename T>
void finish_weights(const WeightGradJob<T>& job) {
  using Products = typename Tiles::template Products<T>;
  constexpr int kStride = Tiles::kStride, kEdge = Tiles::kEdge, kKernel = Tiles::kKernel, kTaps = kKernel * kKernel;
  constexpr int kPhaseTaps = Tiles::kTaps;
  constexpr int kTapVectors = (kTaps + kLanes<T> - 1) / kLanes<T>;
  for (int64_t s = 0; s < job.block.small_channels; ++s) {
    T* to = job.grad_weight + ((job.block.first_small + s) * job.call.conv.in_channels + job.block.first_large) * kTaps;
    for (int64_t l = 0; l < job.block.large_channels; l += kLanes<T>) {
      Vec<T> taps[kTapVectors * kLanes<T>] = {};
#pragma GCC unroll 4
      for (int phase = 0; phase < Tiles::kPhases; ++phase) {
        const T* sums = job.c + s * job.ldc() + Tiles::kPhases * l + phase * kLanes<T>;
        Vec<T> half[kPhaseTaps][kEdge], u[kEdge], h[kPhaseTaps];
#pragma GCC unroll 8
        for (int j = 0; j < kEdge; ++j) {
#pragma GCC unroll 8
          for (int i = 0; i < kEdge; ++i) u[i] = load(sums + (i * kEdge + j) * job.c_point());
          Products::weight_transposed(u, h);
#pragma GCC unroll 4
          for (int t = 0; t < kPhaseTaps; ++t) half[t][j] = h[t];
        }
#pragma GCC unroll 4
        for (int ty = 0; ty < kPhaseTaps; ++ty) {
          Products::weight_transposed(half[ty], h);
          const int ky = ty * kStride + phase / kStride;
#pragma GCC unroll 4
          for (int tx = 0; tx < kPhaseTaps; ++tx) {
            const int kx = tx * kStride + phase % kStride;
            if (ky < kKernel && kx < kKernel) taps[ky * kKernel + kx] = h[tx];
          }
        }
      }
      const int64_t lanes = job.block.large_channels - l < kLanes<T> ? job.block.large_channels - l : kLanes<T>;
#pragma GCC unroll 4
      for (int v = 0; v < kTapVectors; ++v) {
        Vec<T>* rows = taps + v * kLanes<T>;
        const int count = v + 1 < kTapVectors ? kLanes<T> : kTaps - v * kLanes<T>;
        transpose<T>(rows);
        for (int64_t lane = 0; lane < lanes; ++lane)
          __builtin_memcpy(to + lane * kTaps + v * kLanes<T>, &rows[lane], count * sizeof(T));
      }
      to += lanes * kTaps;
    }
  }
}

template <typename T>
void run_toom_cook_block(const WeightGradJob<T>& job, int64_t m) {
  const Convolution& conv = job.call.conv;
  with_tile(m, conv.y.kernel, conv.y.stride, [&](auto m_tag, auto kernel_tag, auto stride_tag) {
    using Tiles = WeightGradTiles<decltype(m_tag)::value, decltype(kernel_tag)::value, decltype(stride_tag)::value>;
    const Tiles tiles{conv};
    const int64_t vectors = (job.block.large_channels + kLanes<T> - 1) / kLanes<T>;
    sum_bands(
        job, vectors * Tiles::kPhases * kLanes<T>,
        [&](int64_t first, int64_t last) { return evaluate_small(job, tiles, first, last); },
        [&](int64_t first, int64_t last) { evaluate_large(job, tiles, first, last); },
        [&](int64_t tile) { return tiles.image(tile) * conv.y.output + tiles.y(tile); });
    finish_weights<Tiles>(job);
  });
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif
