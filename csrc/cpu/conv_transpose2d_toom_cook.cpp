// SPDX-License-Identifier: MIT
// Transposed convolution with kernel 4, stride 2, padding 1 or 3, or kernel 3, stride 2, padding 1 by Toom-Cook
// products (toom_cook.h), overlap-add.
//
// One row of the image.  Position p lies between input p - 1 and input p, and gives two output columns, one a phase:
//
//      input              x0      x1      x2      x3
//      position       0       1       2       3       4           position p = x[p] h0 + x[p-1] h1
//      output, phase 0    0       2       4       6               column 2p      (h0, h1) = taps 1 and 3
//      output, phase 1        1       3       5       7           column 2p - 1  (h0, h1) = taps 0 and 2
//
// So each phase is a product of two polynomials, inputs and taps.  A tile of M inputs gives M + 1 positions; tiles do
// not overlap, their last and first positions do, and are added:
//
//      tile 0         0   1   2
//      tile 1                 2   3   4                           M = 2
//
// Of kernel 3 tap 3 is 0, and its output may lack the last column.  With padding 3 the output lacks the first two
// columns and the last two.
//
// In two dimensions a tile is M x M inputs, evaluated at (M + 1)^2 points that all four phases share.  Each point is
// one GEMM, [tiles x Cin] x [Cin x 4 Cout]: (M + 1)^2 multiplications a tile, input and output channel instead of 16
// M^2 / 4, which is 9 for 16 with M = 2 and 25 for 64 with M = 4 (for 9 and 36 with kernel 3).
//
// Work.  Tile rows of all images are numbered through and cut into strips, a strip into bands of some tiles:
//
//      band:  inputs -> evaluated [point][tile][Cin]        once a band
//      chunk: GEMMs  -> products  [panel][tile][point][column]   a panel: two phases of a vector of channels
//             products -> interpolate -> + left tile -> + upper tile (carry) -> epilogue -> output
//
// evaluated and products stay in L2.  Weights: [vector of channels][point][row phase][Cin][column phase][lane], read
// once a band.  Bytes: input and output once.  A strip that begins inside an image repeats the tile row above for its
// carry.  A NaN or Inf in the input reaches all outputs of its tile; an Inf may arrive as NaN.
#ifndef GENIMG_FAST_ISA

#include <algorithm>
#include <vector>

#include "cpu/conv_transpose2d_variants.h"
#include "cpu/thread_workspace.h"
#include "cpu/toom_cook_plan.h"

namespace genimg_fast::cpu {

// A panel of weights makes one row phase of one vector of output channels.
struct Panel {
  int64_t group, row_phase;
};

// One strip of tile rows, one range of panels: the unit of work.
template <typename T>
struct StripJob {
  const ConvTranspose2dCall<T>& call;
  const ToomCookPlan& plan;
  int64_t first_row, last_row;  // of the batch's tile rows
  int64_t first_panel, last_panel;
  bool by_row_phase;     // how panels are numbered: those of one row phase together, or of one group
  T* evaluated;          // [points][band tiles][leading_dimension(Cin)]
  T* products;           // [panels of the chunk][band tiles][points][kTileColumns]
  T* carry;              // [panels of the job][column phase][positions][lanes]
  T* pixels;             // [m * m][leading_dimension(Cin)]: a tile after the prologue
  const T* zeros;        // [Cin] for tiles that hang over the edge of the image
  ChannelSums<T>* sums;  // [Cout] of the strip, or null

  Panel panel(int64_t number) const {
    if (by_row_phase) return {number % plan.groups, number / plan.groups};
    return {number / 2, number % 2};
  }
};

}  // namespace genimg_fast::cpu

#define GENIMG_FAST_KERNEL_FILE "cpu/conv_transpose2d_toom_cook.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu::toom_cook {

bool supports(const Deconvolution& conv, int64_t m) {
  auto fits = [](const DeconvolutionAxis& axis, int64_t kernel, int64_t padding, int64_t output) {
    return axis.kernel == kernel && axis.stride == 2 && axis.padding == padding && axis.output == output;
  };
  auto whole = [&](const DeconvolutionAxis& axis) {
    return fits(axis, 4, 1, 2 * axis.input) || fits(axis, 4, 3, 2 * axis.input - 4);
  };
  auto of_three = [&](const DeconvolutionAxis& axis) {
    return fits(axis, 3, 1, 2 * axis.input) || fits(axis, 3, 1, 2 * axis.input - 1);
  };
  // A quarter of the outputs sees one tap: sums of so few products err so little that the roundings at all points would
  // stand out.
  const bool many_products = conv.in_channels >= 8 * m && std::min(conv.y.input, conv.x.input) >= m;
  return (whole(conv.y) && whole(conv.x)) || (many_products && of_three(conv.y) && of_three(conv.x));
}

template <typename T>
int64_t packed_count(const Deconvolution& conv, int64_t m) {
  const int64_t lanes = vector_bytes(active_isa()) / sizeof(T);
  return (m + 1) * (m + 1) * conv.in_channels * divide_up(conv.out_channels, lanes) * lanes * kPhases;
}

template <typename T>
void pack(const Deconvolution& conv, int64_t m, const T* weight, T* packed) {
  const int64_t lanes = vector_bytes(active_isa()) / sizeof(T);
  const int64_t groups = divide_up(conv.out_channels, lanes);
  const bool past_caches = packed_count<T>(conv, m) * static_cast<int64_t>(sizeof(T)) > kPastCaches;
  parallel_for(0, groups * conv.in_channels, 8, [&](int64_t begin, int64_t end) {
    if (m == 2)
      GENIMG_FAST_DISPATCH_ISA(pack_channels<2, T>(conv, weight, packed, past_caches, begin, end));
    else
      GENIMG_FAST_DISPATCH_ISA(pack_channels<4, T>(conv, weight, packed, past_caches, begin, end));
  });
}

template <typename T>
void run(const ConvTranspose2dCall<T>& call, int64_t m, std::vector<ChannelSums<T>>* sums) {
  const Deconvolution& conv = call.conv;
  if (conv.batch == 0) return;
  const int64_t lanes = vector_bytes(active_isa()) / sizeof(T);
  const ToomCookPlan plan = make_plan<T>(conv, m);
  const std::vector<int64_t> bounds = strip_bounds(plan, conv.batch);
  const int64_t strips = static_cast<int64_t>(bounds.size()) - 1;
  if (sums) sums->resize(strips * conv.out_channels);

  // Parts that share an image write rows of their own, if they can: two cores that write every other few lines of the
  // same pages fetch them from each other.  The statistics of a channel are gathered in one place.
  const int64_t parts = channel_parts(strips, sums ? plan.groups : 2 * plan.groups);
  auto first_panel = [&](int64_t part) {
    return sums ? 2 * (plan.groups * part / parts) : 2 * plan.groups * part / parts;
  };
  const int64_t part_panels = 2 * divide_up(plan.groups, parts);
  parallel_for(0, strips * parts, 1, [&](int64_t begin, int64_t end) {
    const int64_t row = leading_dimension<T>(conv.in_channels);
    const auto [evaluated, products, carry, pixels, zeros] =
        thread_workspace<T>(plan.points * (plan.band_tiles() * row + 16),
                            plan.points * plan.band_tiles() * plan.chunk_groups * kPhases * lanes,
                            part_panels * 2 * plan.positions() * lanes, m * m * row, row);
    std::fill_n(zeros, row, T(0));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t strip = item / parts, part = item % parts;
      const StripJob<T> job{call,
                            plan,
                            bounds[strip],
                            bounds[strip + 1],
                            first_panel(part),
                            first_panel(part + 1),
                            parts > 1 && !sums,
                            evaluated,
                            products,
                            carry,
                            pixels,
                            zeros,
                            sums ? sums->data() + strip * conv.out_channels : nullptr};
      if (m == 2)
        GENIMG_FAST_DISPATCH_ISA(run_strip<2, T>(job));
      else
        GENIMG_FAST_DISPATCH_ISA(run_strip<4, T>(job));
    }
  });
}

#define INSTANTIATE(T)                                                \
  template int64_t packed_count<T>(const Deconvolution&, int64_t);    \
  template void pack<T>(const Deconvolution&, int64_t, const T*, T*); \
  template void run<T>(const ConvTranspose2dCall<T>&, int64_t, std::vector<ChannelSums<T>>*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu::toom_cook

#else  // once per instruction set

#include "cpu/gemm_tile.h"
#include "cpu/toom_cook.h"
#include "cpu/vec_activation.h"
#include "cpu/vec_channel_sums.h"
#include "cpu/vec_prologue.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// Weights of items [begin, end), an item being one vector of output channels of one input channel.
template <int M, int Kernel, bool Stream, typename T>
void pack_items(const Deconvolution& conv, const T* weight, T* packed, int64_t begin, int64_t end) {
  constexpr int kTaps = Kernel * Kernel, kPoints = (M + 1) * (M + 1), kItemsAhead = 4;
  constexpr int kLoads = (kTaps + kLanes<T> - 1) / kLanes<T>;  // that see the taps of one channel
  constexpr int kTap[2][2] = {{1, 3}, {0, 2}};                 // of a phase: h0 and h1
  const int64_t panel_size = conv.in_channels * kTileColumns<T>;
  const T* weight_end = weight + conv.in_channels * conv.out_channels * kTaps;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / conv.in_channels, k = item % conv.in_channels;
    const int64_t channel = group * kLanes<T>, left = conv.out_channels - channel;
    const T* rows = weight + (k * conv.out_channels + channel) * kTaps;
    for (int lane = 0; lane < kLanes<T>; ++lane)
      __builtin_prefetch(rows + (kItemsAhead * conv.out_channels + lane) * kTaps, 0, 3);
    Vec<T> taps[kLoads * kLanes<T>];
#pragma GCC unroll 4
    for (int first = 0; first < kTaps; first += kLanes<T>) {
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes<T>; ++lane) {
        const T* from = rows + lane * kTaps + first;
        taps[first + lane] = lane >= left                     ? Vec<T>{}
                             : from + kLanes<T> <= weight_end ? load(from)
                                                              : load(from, Tail{static_cast<int>(weight_end - from)});
      }
      transpose<T>(taps + first);
    }
    auto tap = [&](int ky, int kx) __attribute__((always_inline)) {
      return ky < Kernel && kx < Kernel ? taps[ky * Kernel + kx] : Vec<T>{};
    };
    T* to = packed + group * kPoints * 2 * panel_size + k * kTileColumns<T>;
#pragma GCC unroll 2
    for (int a = 0; a < 2; ++a) {
      Vec<T> half[2][2][M + 1], u[2][M + 1];  // by column phase and column tap
#pragma GCC unroll 4
      for (int b = 0; b < 2; ++b)
        for (int tx = 0; tx < 2; ++tx)
          ToomCook<T, M>::weight(tap(kTap[a][0], kTap[b][tx]), tap(kTap[a][1], kTap[b][tx]), half[b][tx]);
#pragma GCC unroll 8
      for (int i = 0; i <= M; ++i) {
#pragma GCC unroll 2
        for (int b = 0; b < 2; ++b) ToomCook<T, M>::weight(half[b][0][i], half[b][1][i], u[b]);
#pragma GCC unroll 8
        for (int j = 0; j <= M; ++j) {
          T* place = to + ((i * (M + 1) + j) * 2 + a) * panel_size;
#pragma GCC unroll 2
          for (int b = 0; b < 2; ++b)
            Stream ? stream<T>(place + b * kLanes<T>, u[b][j]) : store(place + b * kLanes<T>, u[b][j]);
        }
      }
    }
  }
  if (Stream) stream_fence();
}

template <int M, typename T>
void pack_channels(const Deconvolution& conv, const T* weight, T* packed, bool past_caches, int64_t begin,
                   int64_t end) {
  auto pack_kernel = [&](auto kernel) __attribute__((always_inline)) {
    constexpr int kKernel = decltype(kernel)::value;
    past_caches ? pack_items<M, kKernel, true, T>(conv, weight, packed, begin, end)
                : pack_items<M, kKernel, false, T>(conv, weight, packed, begin, end);
  };
  conv.y.kernel == 3 ? pack_kernel(Number<3>{}) : pack_kernel(Number<4>{});
}

// The M x M pixels of a tile -> their values at all points.
template <int M, typename T>
void evaluate_tile(const T* const* pixels, int64_t channels, T* to, int64_t point_stride) {
  for_each_vector<T>(0, channels, [&](int64_t c, auto count) {
    Vec<T> half[M + 1][M], x[M], v[M + 1];
#pragma GCC unroll 8
    for (int j = 0; j < M; ++j) {
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) x[i] = load(pixels[i * M + j] + c, count);
      ToomCook<T, M>::input(x, v);
#pragma GCC unroll 8
      for (int i = 0; i <= M; ++i) half[i][j] = v[i];
    }
#pragma GCC unroll 8
    for (int i = 0; i <= M; ++i) {
      ToomCook<T, M>::input(half[i], v);
#pragma GCC unroll 8
      for (int j = 0; j <= M; ++j) store(to + (i * (M + 1) + j) * point_stride + c, v[j]);
    }
  });
}

// Tile rows [first, last) of the batch -> job.evaluated.
template <int M, typename T>
void evaluate_band(const StripJob<T>& job, int64_t first, int64_t last, int64_t lda, int64_t point_stride) {
  const Deconvolution& conv = job.call.conv;
  T* to = job.evaluated;
  for (int64_t row = first; row < last; ++row)
    for (int64_t tx = 0; tx < job.plan.tiles_x; ++tx, to += lda) {
      const int64_t n = row / job.plan.tiles_y, y0 = row % job.plan.tiles_y * M, x0 = tx * M;
      const T* pixels[M * M];
      for (int64_t i = 0; i < M; ++i)
        for (int64_t j = 0; j < M; ++j) {
          const int64_t y = y0 + i, x = x0 + j;
          const bool inside = y < conv.y.input && x < conv.x.input;
          const T*& pixel = pixels[i * M + j];
          pixel = inside ? job.call.input + ((n * conv.y.input + y) * conv.x.input + x) * conv.in_channels : job.zeros;
          if (!inside || !job.call.prologue.mean) continue;
          T* after = job.pixels + (i * M + j) * lda;
          apply_prologue(job.call.prologue, pixel, 1, conv.in_channels, after, lda);
          pixel = after;
        }
      evaluate_tile<M, T>(pixels, conv.in_channels, to, point_stride);
    }
}

// Walks over the lines of the output that tile rows and groups will write, group by group, a part with each tile of
// products.
template <typename T>
struct OutputPrefetch {
  const T* group_start;
  int64_t pixels, pixel_stride, per_tile, pixel = 0;

  OutputPrefetch(const StripJob<T>& job, int64_t first_row, int64_t rows, int64_t first_panel)
      : pixel_stride(job.call.conv.out_channels), per_tile(job.call.conv.in_channels / kDepthStep) {
    const Deconvolution& conv = job.call.conv;
    const int64_t n = first_row / job.plan.tiles_y, y = first_row % job.plan.tiles_y * job.plan.m * 2;
    const int64_t begin = (n * conv.y.output + y) * conv.x.output;
    group_start = job.call.output + begin * pixel_stride + job.panel(first_panel).group * kLanes<T>;
    pixels = job.by_row_phase ? 0 : rows * job.plan.m * 2 * conv.x.output;
  }
  GF_INLINE void add_to(Prefetch& prefetch) {
    if (pixels == 0) return;
    if (pixel >= pixels) {
      pixel = 0;
      group_start += kLanes<T>;
    }
    prefetch.output = group_start + pixel * pixel_stride;
    prefetch.output_stride = pixel_stride * static_cast<int64_t>(sizeof(T));
    pixel += per_tile;
  }
};

// job.evaluated x weights -> job.products, for tile rows [first_row, last_row) and panels [first, last).
template <int M, typename T>
void multiply_points(const StripJob<T>& job, int64_t first_row, int64_t last_row, int64_t first, int64_t last,
                     int64_t lda, int64_t point_stride) {
  constexpr int64_t kPoints = (M + 1) * (M + 1);
  const int64_t tiles = (last_row - first_row) * job.plan.tiles_x, depth = job.call.conv.in_channels;
  auto weights = [&](int64_t point, int64_t number) {
    const Panel panel = job.panel(number);
    return job.call.packed + ((panel.group * kPoints + point) * 2 + panel.row_phase) * depth * kTileColumns<T>;
  };
  // With kernel 3 the first phase has one tap, whose value at the last point, inf, is 0.
  const bool one_tap = job.call.conv.y.kernel == 3;
  OutputPrefetch<T> output(job, first_row, last_row - first_row, first);
  for (int64_t point = 0; point < kPoints; ++point)
    for (int64_t number = first; number < last; ++number) {
      const T* next =
          number + 1 < last ? weights(point, number + 1) : weights(point + 1 < kPoints ? point + 1 : point, first);
      T* c = job.products + ((number - first) * tiles * kPoints + point) * kTileColumns<T>;
      if (one_tap && point >= kPoints - (M + 1) && job.panel(number).row_phase == 0) {
        for (int64_t tile = 0; tile < tiles; ++tile)
          for (int v = 0; v < kPanelVectors; ++v) store(c + tile * kPoints * kTileColumns<T> + v * kLanes<T>, Vec<T>{});
        continue;
      }
      multiply_panel<T>(tiles, job.evaluated + point * point_stride, lda, weights(point, number), depth, c,
                        kPoints * kTileColumns<T>, next, [&](Prefetch& prefetch) { output.add_to(prefetch); });
    }
}

// Interpolates a tile row, adds what neighbours share, and stores what no later tile adds to.  The rest goes to carry,
// and nothing else does if carry_only.  products: of this panel and column phase, [tile][point][kTileColumns].
template <int M, bool Statistics, typename T, typename Count>
void finish_tile_row(const StripJob<T>& job, int64_t row, bool carry_only, int64_t number, int b, const T* products,
                     Count count) {
  const Deconvolution& conv = job.call.conv;
  const Epilogue<T>& epilogue = job.call.epilogue;
  const auto [group, a] = job.panel(number);
  const int64_t channel = group * kLanes<T>, n = row / job.plan.tiles_y, ty = row % job.plan.tiles_y;
  const bool first_row = ty == 0, last_row = ty + 1 == job.plan.tiles_y;
  const Vec<T> scale = load(epilogue.scale + channel, count), shift = load(epilogue.shift + channel, count);
  T* carry = job.carry + ((number - job.first_panel) * 2 + b) * job.plan.positions() * kLanes<T>;
  const int64_t stride = 2 * conv.out_channels;  // between positions in the output
  // Position 0 of this phase is row -above and column -before of the output.
  const int64_t above = a + conv.y.padding - 1, before = b + conv.x.padding - 1;
  T* image = job.call.output + (n * conv.y.output * conv.x.output - before) * conv.out_channels + channel;
  const int lanes = lanes_in(count, kLanes<T>);
  LaneSums<T> sums(job.sums + channel, Statistics ? lanes : 0);

  Vec<T> left[M + 1] = {};  // the last position of the tile before, by row
  for (int64_t tx = 0; tx < job.plan.tiles_x; ++tx, carry += M * kLanes<T>) {
    const bool last_tile = tx + 1 == job.plan.tiles_x;
    const T* from = products + tx * (M + 1) * (M + 1) * kTileColumns<T>;
    Vec<T> half[M + 1][M + 1], v[M + 1], y[M + 1];
#pragma GCC unroll 8
    for (int j = 0; j <= M; ++j) {
#pragma GCC unroll 8
      for (int i = 0; i <= M; ++i) v[i] = load(from + (i * (M + 1) + j) * kTileColumns<T>);
      ToomCook<T, M>::output(v, y);
#pragma GCC unroll 8
      for (int i = 0; i <= M; ++i) half[i][j] = y[i];
    }
    // Positions [begin, end) of this tile are complete and lie in the output.
    const int64_t begin = (before + 1) / 2 - tx * M, inside = (conv.x.output + before + 1) / 2 - tx * M;
    const int64_t end = inside < M + last_tile ? inside : M + last_tile;
#pragma GCC unroll 8
    for (int i = 0; i <= M; ++i) {
      ToomCook<T, M>::output(half[i], y);
      y[0] += left[i];
      left[i] = y[M];
      if (i == 0 && !first_row) {
#pragma GCC unroll 8
        for (int j = 0; j < M; ++j) y[j] += load(carry + j * kLanes<T>);
        if (last_tile) y[M] += load(carry + M * kLanes<T>);
      }
      if (i == M && !last_row) {
#pragma GCC unroll 8
        for (int j = 0; j < M; ++j) store(carry + j * kLanes<T>, y[j]);
        if (last_tile) store(carry + M * kLanes<T>, y[M]);
        continue;
      }
      const int64_t output_row = 2 * (ty * M + i) - above;
      if (carry_only || output_row < 0 || output_row >= conv.y.output) continue;
      T* to = image + output_row * conv.x.output * conv.out_channels + tx * M * stride;
#pragma GCC unroll 8
      for (int j = 0; j <= M; ++j) y[j] = y[j] * scale + shift;
      activate_all<T, M + 1>(epilogue.activation, y, epilogue.negative_slope);
#pragma GCC unroll 8
      for (int j = 0; j <= M; ++j) {
        if (j < begin || j >= end) continue;
        store(to + j * stride, y[j], count);
        if constexpr (Statistics) sums.add(y[j]);
      }
    }
  }
  if constexpr (Statistics)
    if (sums.count > 0) sums.save(job.sums + channel, lanes);
}

template <int M, bool Statistics, typename T>
void run_bands(const StripJob<T>& job) {
  const ToomCookPlan& plan = job.plan;
  const int64_t lda = leading_dimension<T>(job.call.conv.in_channels);
  const int64_t point_stride = plan.band_tiles() * lda + 16;
  const bool halo = job.first_row % plan.tiles_y != 0;
  int64_t last;
  for (int64_t first = job.first_row - halo; first < job.last_row; first = last) {
    const bool carry_only = first < job.first_row;
    last = carry_only ? job.first_row : first + plan.band_rows;
    last = last < job.last_row ? last : job.last_row;
    evaluate_band<M>(job, first, last, lda, point_stride);
    int64_t last_panel;
    for (int64_t first_panel = job.first_panel; first_panel < job.last_panel; first_panel = last_panel) {
      last_panel = first_panel + 2 * plan.chunk_groups;
      last_panel = last_panel < job.last_panel ? last_panel : job.last_panel;
      multiply_points<M>(job, first, last, first_panel, last_panel, lda, point_stride);
      for (int64_t number = first_panel; number < last_panel; ++number) {
        const int64_t channel = job.panel(number).group * kLanes<T>, left = job.call.conv.out_channels - channel;
        for_each_vector<T>(0, left < kLanes<T> ? left : kLanes<T>, [&](int64_t, auto count) {
          for (int b = 0; b < 2; ++b)
            for (int64_t row = first; row < last; ++row) {
              const int64_t tile = ((number - first_panel) * (last - first) + row - first) * plan.tiles_x;
              const T* from = job.products + tile * plan.points * kTileColumns<T> + b * kLanes<T>;
              finish_tile_row<M, Statistics, T>(job, row, carry_only, number, b, from, count);
            }
        });
      }
    }
  }
}

template <int M, typename T>
void run_strip(const StripJob<T>& job) {
  job.sums ? run_bands<M, true, T>(job) : run_bands<M, false, T>(job);
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif
