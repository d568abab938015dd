// SPDX-License-Identifier: MIT
// Convolution with kernel 3, 4 or 5 and stride 2, or kernel 3 or 4 and stride 1, any padding, by Toom-Cook products
// (toom_cook.h).
//
// Kernel 4, stride 2: the input's rows and columns fall into two phases by the tap pair that sees them.  Along a row:
//
//      input, padded      0    1    2    3    4    5    6    7
//      phase 0            p0        p1        p2        p3             output o = sum over both phases of
//      phase 1                 p0        p1        p2        p3                   p[o] h0 + p[o+1] h1
//
// with (h0, h1) = taps (0, 2) for phase 0 and (1, 3) for phase 1: correlations of two taps, the transposes of the
// products that conv_transpose2d_toom_cook.cpp adds up.  Stride 1 is the case of one phase and three or four taps. With
// kernel 5 and stride 2 a phase has three taps, the last of phase 1 being 0; with kernel 3 and stride 2 it has two.
//
// In two dimensions a tile is M x M outputs, from P x P positions of each phase, P = M + taps - 1.  They are evaluated
// at P^2 points, and each point is one GEMM over its phases, [tiles x phases Cin] x [phases Cin x Cout].  Outputs of
// tiles do not overlap.  Multiplications an output, input and output channel:
//
//      kernel, stride        4, 2                   5, 2               3, 1              4, 1             3, 2
//      direct                 16                     25                 9                 16                9
//      M = 2           4 * 9 / 4 = 9         49 / 4 = 12.25        16 / 4 = 4        25 / 4 = 6.25    25 / 4 = 6.25
//      M = 4           4 * 25 / 16 = 6.25    121 / 16 = 7.56       36 / 16 = 2.25                     81 / 16 = 5.06
//
// Work.  Tiles of all images are numbered through and cut into bands:
//
//      input    -> evaluated [point][tile][phase][Cin]
//      GEMMs    -> products  [tile][panel][point][column]
//      products -> interpolate -> epilogue -> output
//
// Weights: [point][panel][phase][Cin][column], read once a band, in that order.  What one point needs stays in L2 while
// its panels pass.  Bytes: output once, input (P / M)^2 times, from cache but for the first.  A NaN or Inf in the input
// reaches all outputs of its tiles; an Inf may arrive as NaN.
#ifndef GENIMG_FAST_ISA

#include <algorithm>
#include <vector>

#include "cpu/conv2d_variants.h"
#include "cpu/thread_workspace.h"

namespace genimg_fast::cpu {

struct Conv2dTiling {
  int64_t m, points, phases;
  int64_t tiles_y, tiles_x;  // of an image
  int64_t panels;            // of kTileColumns output channels
  int64_t unit, units;       // tiles that stay together, and how many such there are
  int64_t bands, band_tiles;

  // Where a band begins, and the one before it ends.
  int64_t first_tile(int64_t band) const { return units * band / bands * unit; }
};

// One band of tiles, one range of panels: the unit of work.
template <typename T>
struct TileBand {
  const Conv2dCall<T>& call;
  const Conv2dTiling& tiling;
  int64_t first_tile, last_tile;
  int64_t first_panel, last_panel;
  T* evaluated;          // [points][band tiles][leading_dimension(phases * Cin)]
  T* products;           // [band tiles][panels of the band][points][columns]
  T* pixels;             // [P * P][leading_dimension(Cin)]: a tile's phase after the prologue
  const T* zeros;        // [Cin]: padding
  ChannelSums<T>* sums;  // of this band, or null
};

// Where a channel's image lies: pixel (n, y, x) at first + n * image + y * row + x * pixel.
template <typename T>
struct OutputView {
  T* first;
  int64_t image, row, pixel, height, width;
  int64_t channel;  // of the epilogue's
  int64_t sums;     // of the band's

  OutputView(const Conv2dCall<T>& call, int64_t out_channel) {
    const SubpixelOutput* s = call.subpixel;
    const int64_t channels = call.channels(), step = s ? 2 : 1;
    const int64_t padded = s ? s->padded_channels : channels, phase = out_channel / padded;
    const int64_t full_height = s ? s->height : call.conv.y.output, full_width = s ? s->width : call.conv.x.output;
    channel = out_channel % padded;
    sums = phase * channels + channel;
    first = call.output + (phase / 2 * full_width + phase % 2) * channels + channel;
    image = full_height * full_width * channels;
    row = step * full_width * channels;
    pixel = step * channels;
    height = (full_height - phase / 2 + step - 1) / step;
    width = (full_width - phase % 2 + step - 1) / step;
  }
};

}  // namespace genimg_fast::cpu

#define GENIMG_FAST_KERNEL_FILE "cpu/conv2d_toom_cook.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu::toom_cook {
namespace {

constexpr int64_t kBandBytes = 1024 * 1024;  // evaluated inputs of a band, where that leaves it enough tiles
constexpr int64_t kFewestTiles = 64, kMostTiles = 128;
constexpr int64_t kPastCaches = 3 << 20;  // bytes beyond which weights are packed past the caches

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t stride_of(const Convolution& conv) { return conv.y.stride; }

template <typename T>
Conv2dTiling make_tiling(const Convolution& conv, int64_t m) {
  const int64_t columns = 2 * vector_bytes(active_isa()) / sizeof(T), edge = m + conv.y.phase_taps() - 1;
  Conv2dTiling tiling{};
  tiling.m = m;
  tiling.points = edge * edge;
  tiling.phases = stride_of(conv) * stride_of(conv);
  tiling.tiles_y = divide_up(conv.y.output, m);
  tiling.tiles_x = divide_up(conv.x.output, m);
  tiling.panels = divide_up(conv.out_channels, columns);
  const int64_t tile_bytes = tiling.points * tiling.phases * conv.in_channels * sizeof(T);
  const int64_t wanted = std::clamp(kBandBytes / tile_bytes, kFewestTiles, kMostTiles);
  // Whole rows of tiles where they are short: what a band reads and writes is then one piece of memory.
  tiling.unit = tiling.tiles_x <= wanted ? tiling.tiles_x : 1;
  tiling.units = conv.batch * tiling.tiles_y * tiling.tiles_x / tiling.unit;
  tiling.bands = divide_up(tiling.units, wanted / tiling.unit);
  tiling.band_tiles = divide_up(tiling.units, tiling.bands) * tiling.unit;
  return tiling;
}

}  // namespace

bool supports(const Convolution& conv, int64_t m) {
  // Sums of few products err so little that the roundings at so many points would stand out: not with few channels, nor
  // in images so small that most outputs see padding.
  const bool many_products = conv.in_channels >= 8 && std::min(conv.y.output, conv.x.output) >= 2 * m;
  return conv.has(4, 2) ||
         (many_products && (conv.has(3, 1) || conv.has(3, 2) || conv.has(5, 2) || (m == 2 && conv.has(4, 1))));
}

template <typename T>
int64_t packed_count(const Convolution& conv, int64_t m) {
  const int64_t columns = 2 * vector_bytes(active_isa()) / sizeof(T), edge = m + conv.y.phase_taps() - 1;
  const int64_t phases = stride_of(conv) * stride_of(conv);
  return edge * edge * phases * conv.in_channels * divide_up(conv.out_channels, columns) * columns;
}

template <typename T>
void pack(const Convolution& conv, int64_t m, WeightOrder order, const T* weight, T* packed) {
  const int64_t columns = 2 * vector_bytes(active_isa()) / sizeof(T);
  const WeightView view(conv, order);
  const int64_t items = divide_up(conv.out_channels, columns) * conv.in_channels;
  const bool past_caches = packed_count<T>(conv, m) * static_cast<int64_t>(sizeof(T)) > kPastCaches;
  parallel_for(0, items, 8, [&](int64_t begin, int64_t end) {
    GENIMG_FAST_DISPATCH_ISA(pack_channels<T>(conv, m, view, weight, packed, past_caches, begin, end));
  });
}

template <typename T>
void run(const Conv2dCall<T>& call, int64_t m, std::vector<ChannelSums<T>>* sums) {
  const Convolution& conv = call.conv;
  if (conv.batch == 0) return;
  const int64_t columns = 2 * vector_bytes(active_isa()) / sizeof(T);
  const Conv2dTiling tiling = make_tiling<T>(conv, m);
  const int64_t parts = channel_parts(tiling.bands, tiling.panels);
  if (sums) sums->resize(tiling.bands * call.sums_a_part());
  parallel_for(0, tiling.bands * parts, 1, [&](int64_t begin, int64_t end) {
    const int64_t lda = leading_dimension<T>(tiling.phases * conv.in_channels);
    const auto [evaluated, products, pixels] =
        thread_workspace<T>(tiling.points * (tiling.band_tiles * lda + 16),
                            tiling.points * tiling.band_tiles * divide_up(tiling.panels, parts) * columns,
                            call.prologue.mean ? tiling.points * leading_dimension<T>(conv.in_channels) : 0);
    const std::vector<T> zeros(conv.in_channels, T(0));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t band = item / parts, part = item % parts;
      const TileBand<T> job{call,
                            tiling,
                            tiling.first_tile(band),
                            tiling.first_tile(band + 1),
                            tiling.panels * part / parts,
                            tiling.panels * (part + 1) / parts,
                            evaluated,
                            products,
                            pixels,
                            zeros.data(),
                            sums ? sums->data() + band * call.sums_a_part() : nullptr};
      GENIMG_FAST_DISPATCH_ISA(run_tile_band<T>(job));
    }
  });
}

#define INSTANTIATE(T)                                                           \
  template int64_t packed_count<T>(const Convolution&, int64_t);                 \
  template void pack<T>(const Convolution&, int64_t, WeightOrder, const T*, T*); \
  template void run<T>(const Conv2dCall<T>&, int64_t, std::vector<ChannelSums<T>>*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu::toom_cook

#else  // once per instruction set

#include "cpu/gemm_tile.h"
#include "cpu/toom_cook.h"
#include "cpu/vec_activation.h"
#include "cpu/vec_channel_sums.h"
#include "cpu/vec_conv2d_toom_cook_weight.h"
#include "cpu/vec_prologue.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// The P x P pixels of a tile and a phase -> their values at all points.
template <int M, int Taps, typename T>
void evaluate_window(const T* const* pixels, int64_t channels, T* to, int64_t point_stride) {
  constexpr int kEdge = M + Taps - 1;
  for_each_vector<T>(0, channels, [&](int64_t c, auto count) {
    Vec<T> half[kEdge][kEdge], x[kEdge], v[kEdge];
#pragma GCC unroll 8
    for (int j = 0; j < kEdge; ++j) {
#pragma GCC unroll 8
      for (int i = 0; i < kEdge; ++i) x[i] = load(pixels[i * kEdge + j] + c, count);
      ToomCook<T, M, Taps>::output_transposed(x, v);
#pragma GCC unroll 8
      for (int i = 0; i < kEdge; ++i) half[i][j] = v[i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < kEdge; ++i) {
      ToomCook<T, M, Taps>::output_transposed(half[i], v);
#pragma GCC unroll 8
      for (int j = 0; j < kEdge; ++j) store(to + (i * kEdge + j) * point_stride + c, v[j]);
    }
  });
}

// The input of the band's tiles -> band.evaluated.  Phases go in order: a last vector runs over into the next phase.
template <int M, int Kernel, int Stride, typename T>
void evaluate_tiles(const TileBand<T>& band, int64_t lda, int64_t point_stride) {
  constexpr int kTaps = ToomCookTaps<Kernel, Stride>, kEdge = M + kTaps - 1;
  const Convolution& conv = band.call.conv;
  const int64_t channels = conv.in_channels;
  T* to = band.evaluated;
  for (int64_t tile = band.first_tile; tile < band.last_tile; ++tile, to += lda) {
    const int64_t n = tile / (band.tiling.tiles_y * band.tiling.tiles_x);
    const int64_t y0 = tile / band.tiling.tiles_x % band.tiling.tiles_y * M * Stride - conv.y.padding;
    const int64_t x0 = tile % band.tiling.tiles_x * M * Stride - conv.x.padding;
    const T* image = band.call.input + n * conv.y.input * conv.x.input * channels;
    for (int phase = 0; phase < Stride * Stride; ++phase) {
      const T* pixels[kEdge * kEdge];
      for (int64_t i = 0; i < kEdge; ++i)
        for (int64_t j = 0; j < kEdge; ++j) {
          const int64_t y = y0 + i * Stride + phase / Stride, x = x0 + j * Stride + phase % Stride;
          const bool inside = y >= 0 && y < conv.y.input && x >= 0 && x < conv.x.input;
          const T*& pixel = pixels[i * kEdge + j];
          pixel = inside ? image + (y * conv.x.input + x) * channels : band.zeros;
          if (!inside || !band.call.prologue.mean) continue;
          T* after = band.pixels + (i * kEdge + j) * leading_dimension<T>(channels);
          apply_prologue(band.call.prologue, pixel, 1, channels, after, channels);
          pixel = after;
        }
      evaluate_window<M, kTaps, T>(pixels, channels, to + phase * channels, point_stride);
    }
  }
}

// What the band will write and what the next band will read, as far as each is one piece of memory.  It is fetched
// while the last products are computed.
template <typename T>
struct UpcomingMemory {
  struct Piece {
    const char *next, *end;
  } pieces[2];
  int64_t tiles_to_skip, lines;  // products of tiles that do not fetch yet; cache lines that one can fetch

  UpcomingMemory(const TileBand<T>& band, int64_t depth, int64_t products) {
    const Conv2dTiling& tiling = band.tiling;
    const Convolution& conv = band.call.conv;
    const int64_t tiles = tiling.unit == tiling.tiles_x ? band.last_tile - band.first_tile : 0;
    auto piece = [&](const T* memory, const ConvolutionAxis& y, bool input, int64_t first_tile, int64_t row) -> Piece {
      const int64_t rows_a_tile = input ? tiling.m * y.stride : tiling.m, height = input ? y.input : y.output;
      auto row_of = [&](int64_t tile) {
        const int64_t n = tile / (tiling.tiles_y * tiling.tiles_x), r = tile / tiling.tiles_x % tiling.tiles_y;
        return n * height + (r * rows_a_tile < height ? r * rows_a_tile : height);
      };
      return {reinterpret_cast<const char*>(memory + row_of(first_tile) * row),
              reinterpret_cast<const char*>(memory + row_of(first_tile + tiles) * row)};
    };
    const SubpixelOutput* s = band.call.subpixel;
    const int64_t output_row = s ? 2 * s->width * s->channels : conv.x.output * conv.out_channels;
    pieces[0] = piece(band.call.output, conv.y, false, band.first_tile, output_row);
    pieces[1] = piece(band.call.input, conv.y, true, band.last_tile, conv.x.input * conv.in_channels);
    lines = depth / kDepthStep;
    const int64_t bytes = pieces[0].end - pieces[0].next + (pieces[1].end - pieces[1].next);
    tiles_to_skip = products - (lines > 0 ? bytes / (lines * kCacheLine) + 2 : 0);
  }
  GF_INLINE void fetch(Prefetch& prefetch) {
    if (--tiles_to_skip >= 0) return;
    Piece& piece = pieces[pieces[0].next < pieces[0].end ? 0 : 1];
    if (piece.next >= piece.end) return;
    prefetch.output = piece.next;
    prefetch.output_stride = kCacheLine;
    piece.next += lines * kCacheLine;
  }
};

// The runs of the depth, phases by rows, that a point multiplies.
struct LivePhases {
  int64_t runs, length, stride;

  LivePhases(const Convolution& conv, bool last_row, bool last_column) {
    const bool is_short = toom_cook::has_short_phase(conv);
    const int64_t rows = is_short && last_row ? 1 : conv.y.stride;
    const bool apart = is_short && last_column;
    stride = conv.y.stride * conv.in_channels;
    runs = apart ? rows : 1;
    length = apart ? conv.in_channels : rows * stride;
  }
};

// band.evaluated x weights -> band.products.
template <typename T>
void multiply_points(const TileBand<T>& band, int64_t depth, int64_t lda, int64_t point_stride) {
  const int64_t points = band.tiling.points, panels = band.last_panel - band.first_panel;
  const int64_t tiles = band.last_tile - band.first_tile, panel_size = depth * kTileColumns<T>;
  auto weights = [&](int64_t point, int64_t panel) {
    return band.call.packed + (point * band.tiling.panels + panel) * panel_size;
  };
  UpcomingMemory<T> upcoming(band, depth, points * panels * ((tiles + kTileRows - 1) / kTileRows));
  const int64_t edge = band.tiling.m + band.call.conv.y.phase_taps() - 1;
  for (int64_t point = 0; point < points; ++point) {
    const LivePhases live(band.call.conv, point / edge + 1 == edge, point % edge + 1 == edge);
    for (int64_t panel = band.first_panel; panel < band.last_panel; ++panel) {
      const T* next = panel + 1 < band.last_panel ? weights(point, panel + 1)
                                                  : weights(point + 1 < points ? point + 1 : point, band.first_panel);
      T* c = band.products + ((panel - band.first_panel) * points + point) * kTileColumns<T>;
      for (int64_t run = 0; run < live.runs; ++run)
        multiply_panel<T>(
            tiles, band.evaluated + point * point_stride + run * live.stride, lda,
            weights(point, panel) + run * live.stride * kTileColumns<T>, live.length, c,
            panels * points * kTileColumns<T>, next + run * live.stride * kTileColumns<T>,
            [&](Prefetch& prefetch) { upcoming.fetch(prefetch); }, run > 0);
    }
  }
}

// Interpolates one vector of channels of all tiles, and stores what lies inside the image.
template <int M, int Taps, bool Statistics, typename T, typename Count>
void finish_tiles(const TileBand<T>& band, const T* products, int64_t tile_stride, const OutputView<T>& output,
                  Count count) {
  constexpr int kEdge = M + Taps - 1;
  const Epilogue<T>& epilogue = band.call.epilogue;
  const int64_t height = output.height, width = output.width;
  const Vec<T> scale = load(epilogue.scale + output.channel, count);
  const Vec<T> shift = load(epilogue.shift + output.channel, count);
  const int lanes = lanes_in(count, kLanes<T>);
  ChannelSums<T>* const to_sums = band.sums + output.sums;
  LaneSums<T> sums(to_sums, Statistics ? lanes : 0);
  for (int64_t tile = band.first_tile; tile < band.last_tile; ++tile, products += tile_stride) {
    const int64_t n = tile / (band.tiling.tiles_y * band.tiling.tiles_x);
    const int64_t y0 = tile / band.tiling.tiles_x % band.tiling.tiles_y * M, x0 = tile % band.tiling.tiles_x * M;
    Vec<T> half[M][kEdge], v[kEdge], y[M];
#pragma GCC unroll 8
    for (int j = 0; j < kEdge; ++j) {
#pragma GCC unroll 8
      for (int i = 0; i < kEdge; ++i) v[i] = load(products + (i * kEdge + j) * kTileColumns<T>);
      ToomCook<T, M, Taps>::input_transposed(v, y);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) half[i][j] = y[i];
    }
    T* to = output.first + n * output.image + y0 * output.row + x0 * output.pixel;
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      if (y0 + i >= height) break;
      ToomCook<T, M, Taps>::input_transposed(half[i], y);
#pragma GCC unroll 8
      for (int j = 0; j < M; ++j) {
        if (x0 + j >= width) break;
        const Vec<T> value = activate<T>(epilogue.activation, y[j] * scale + shift, epilogue.negative_slope);
        store(to + i * output.row + j * output.pixel, value, count);
        if constexpr (Statistics) sums.add(value);
      }
    }
    if constexpr (Statistics)
      if (sums.count >= 128) {
        sums.save(to_sums, lanes);
        sums = LaneSums<T>(to_sums, lanes);
      }
  }
  if constexpr (Statistics)
    if (sums.count > 0) sums.save(to_sums, lanes);
}

template <typename T>
void run_tile_band(const TileBand<T>& band) {
  const Convolution& conv = band.call.conv;
  const int64_t depth = band.tiling.phases * conv.in_channels, lda = leading_dimension<T>(depth);
  const int64_t point_stride = band.tiling.band_tiles * lda + 16;
  const int64_t first = band.first_panel * kTileColumns<T>, last = band.last_panel * kTileColumns<T>;
  const int64_t panel_products = band.tiling.points * kTileColumns<T>;
  const int64_t tile_stride = (band.last_panel - band.first_panel) * panel_products;
  with_tile(band.tiling.m, conv.y.kernel, conv.y.stride, [&](auto m_tag, auto kernel_tag, auto stride_tag) {
    constexpr int M = decltype(m_tag)::value, kKernel = decltype(kernel_tag)::value;
    constexpr int kStride = decltype(stride_tag)::value, kTaps = ToomCookTaps<kKernel, kStride>;
    evaluate_tiles<M, kKernel, kStride>(band, lda, point_stride);
    multiply_points(band, depth, lda, point_stride);
    for (int64_t channel = first; channel < last && channel < conv.out_channels; channel += kLanes<T>) {
      const OutputView<T> output(band.call, channel);
      const int64_t column = channel - first, left = band.call.channels() - output.channel;
      const T* products = band.products + column / kTileColumns<T> * panel_products + column % kTileColumns<T>;
      for_each_vector<T>(0, left < kLanes<T> ? left : kLanes<T>, [&](int64_t, auto count) {
        if (band.sums)
          finish_tiles<M, kTaps, true>(band, products, tile_stride, output, count);
        else
          finish_tiles<M, kTaps, false>(band, products, tile_stride, output, count);
      });
    }
  });
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif
