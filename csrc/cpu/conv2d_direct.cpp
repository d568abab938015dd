// SPDX-License-Identifier: MIT
// Convolution on the CPU as one GEMM, any kernel, stride, padding and dilation; prologue in the gathering of its
// rows, epilogue in its tiles.
//
//      C [output pixels x Cout] = patches [output pixels x depth] * weights [depth x Cout]       depth = taps x Cin
//
//   patches  the input pixels that an output pixel's taps see, next to each other; padding is zeros.  A block of them
//            is gathered into a buffer that stays in L2, a kernel row in one copy.  Where a kernel row of few channels
//            is short nothing is gathered: the block's input rows are copied once, padded, and a tile reads each patch
//            in place, a kernel row at a time.
//   weights  packed into panels of one or two vectors of output channels: [panel][tap][Cin][column]
//   C        never exists: a tile is summed in registers over the full depth, goes through scale, shift and activation
//            in L1, and is stored.
//
// A vector of one to four output channels is mostly air.  The narrow variant has vectors run along the depth instead,
// and multiplies patches and weights [Cout][depth] as dot products.
//
// The unpacked variant does the same with the weight where it lies, [Cout][Cin][tap]: few pixels are sooner brought
// into that order than many weights into any other.
//
// Work is split over threads by blocks of pixels, and by panels where blocks are few.  Bytes: the input about once, the
// weights once a block, the output once.  FLOPs: 2 depth an output value, those on padding included.
#ifndef GENIMG_FAST_ISA

#include <algorithm>
#include <vector>

#include "cpu/conv2d_variants.h"
#include "cpu/thread_workspace.h"

namespace genimg_fast::cpu {

struct PatchTile {
  int64_t rows, lanes;
};

// A block of output pixels and a range of panels: the unit of work.
template <typename T>
struct PatchJob {
  const Conv2dCall<T>& call;
  int64_t first, count;  // output pixels
  int64_t panel_vectors, first_panel, last_panel;
  bool rows;             // patches are read in padded rows, and the block is whole rows of one image
  T* patches;            // [count, leading_dimension(depth)], or padded rows
  T* patches_by_tap;     // unpacked: the same before they are brought into the weight's order; else null
  ChannelSums<T>* sums;  // [Cout] of this block, or null
};

// A tile of dot products, and a panel of them.
constexpr int64_t kNarrowChannels = 4;
constexpr int64_t dot_columns(int64_t lanes) { return lanes > kNarrowChannels ? lanes : kNarrowChannels; }

// The rows of the input that a block of output rows sees, padded as wide as the taps of all output pixels reach.
struct PaddedRows {
  int64_t width, size;  // pixels, values
  explicit PaddedRows(const Convolution& conv)
      : width((conv.x.output - 1) * conv.x.stride + conv.x.kernel), size(width * conv.in_channels) {}

  static int64_t count(const Convolution& conv, int64_t output_rows) {
    return (output_rows - 1) * conv.y.stride + (conv.y.kernel - 1) * conv.y.dilation + 1;
  }
};

}  // namespace genimg_fast::cpu

#define GENIMG_FAST_KERNEL_FILE "cpu/conv2d_direct.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu::direct {
namespace {

constexpr int64_t kPatchBytes = 512 * 1024,
                  kMaxPatches = 192;      // of one block: a quarter of L2, the rest is for weights
constexpr int64_t kRowBytes = 16 * 1024;  // of one block: a third of L1
constexpr int64_t kRowDepth = 64, kRowPixels = 8;

int64_t depth_of(const Convolution& conv) { return conv.taps() * conv.in_channels; }

int64_t panel_vectors(const Convolution& conv, int64_t lanes) { return conv.out_channels <= lanes ? 1 : 2; }

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// Output pixels of a block: enough blocks to share out, and not a function of the number of threads, since statistics
// add up in the blocks' order.
int64_t block_size(const Convolution& conv, Variant variant, int64_t tile_rows, int64_t element_size) {
  if (variant == Variant::unpacked) return std::max<int64_t>(conv.pixels(), 1);  // the weights are read once
  const int64_t fair = std::max(tile_rows, conv.pixels() / 16);
  const int64_t size = std::min({kPatchBytes / (depth_of(conv) * element_size), kMaxPatches, fair});
  return std::max(size / tile_rows, int64_t{1}) * tile_rows;
}

// Output rows of a block whose patches are read in rows, on the same grounds.
int64_t block_rows(const Convolution& conv, int64_t element_size) {
  const int64_t step = conv.y.stride * PaddedRows(conv).size * element_size;
  const int64_t most = std::max(std::min(kRowBytes / step, conv.batch * conv.y.output / 16), int64_t{1});
  const int64_t blocks = round_up(conv.y.output, most) / most;
  return round_up(conv.y.output, blocks) / blocks;  // alike
}

// Whether patches are read in padded rows of the input, where they overlap, and none is gathered.
bool reads_rows(const Convolution& conv) {
  return conv.x.dilation == 1 && conv.x.kernel * conv.in_channels <= kRowDepth && conv.x.output >= kRowPixels;
}

}  // namespace

template <typename T>
bool supports(const Convolution& conv, Variant variant) {
  const PatchTile tile = GENIMG_FAST_DISPATCH_ISA(patch_tile<T>());
  if (variant == Variant::narrow) return conv.out_channels <= kNarrowChannels;
  if (variant == Variant::unpacked) return conv.pixels() <= kMostUnpackedPixels && depth_of(conv) % tile.lanes == 0;
  return variant == Variant::direct;
}

template <typename T>
int64_t packed_count(const Convolution& conv, Variant variant) {
  const PatchTile tile = GENIMG_FAST_DISPATCH_ISA(patch_tile<T>());
  if (variant != Variant::direct) return conv.out_channels * round_up(depth_of(conv), tile.lanes);
  return depth_of(conv) * round_up(conv.out_channels, panel_vectors(conv, tile.lanes) * tile.lanes);
}

// Weight -> [panel][tap][Cin][column], or for narrow [Cout][tap][Cin] padded to whole vectors.  What stands for no
// channel or tap is zero.
template <typename T>
void pack(const Convolution& conv, Variant variant, WeightOrder order, const T* weight, T* packed) {
  const PatchTile tile = GENIMG_FAST_DISPATCH_ISA(patch_tile<T>());
  const WeightView view(conv, order);
  const int64_t taps = conv.taps(), channels = conv.in_channels, depth = depth_of(conv);
  if (variant == Variant::unpacked) return void(std::copy_n(weight, conv.out_channels * depth, packed));
  if (variant == Variant::narrow) {
    const int64_t row = round_up(depth, tile.lanes);
    for (int64_t o = 0; o < conv.out_channels; ++o) {
      T* to = packed + o * row;
      for (int64_t c = 0; c < channels; ++c) {
        const T* from = weight + view.at(o, c);
        for (int64_t t = 0; t < taps; ++t) to[t * channels + c] = from[t * view.tap_stride];
      }
      std::fill(to + depth, to + row, T(0));
    }
    return;
  }
  const int64_t columns = panel_vectors(conv, tile.lanes) * tile.lanes;
  const int64_t panels = round_up(conv.out_channels, columns) / columns;
  parallel_for(0, panels * channels, 8, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t panel = item / channels, c = item % channels;
      const int64_t used = std::min(columns, conv.out_channels - panel * columns);
      const T* from = weight + view.at(panel * columns, c);
      T* to = packed + (panel * depth + c) * columns;
      for (int64_t t = 0; t < taps; ++t, to += channels * columns) {
        for (int64_t column = 0; column < used; ++column)
          to[column] = from[column * view.out_stride + t * view.tap_stride];
        for (int64_t column = used; column < columns; ++column) to[column] = 0;
      }
    }
  });
}

template <typename T>
void run(const Conv2dCall<T>& call, Variant variant, std::vector<ChannelSums<T>>* sums) {
  const Convolution& conv = call.conv;
  const PatchTile tile = GENIMG_FAST_DISPATCH_ISA(patch_tile<T>());
  const bool dots = variant != Variant::direct, rows = !dots && reads_rows(conv);
  const int64_t vectors = dots ? 0 : panel_vectors(conv, tile.lanes);
  const int64_t columns = dots ? dot_columns(tile.lanes) : vectors * tile.lanes;
  const int64_t panels = round_up(conv.out_channels, columns) / columns;
  const int64_t output_rows = block_rows(conv, sizeof(T));
  const int64_t size = rows ? output_rows * conv.x.output : block_size(conv, variant, tile.rows, sizeof(T));
  const int64_t workspace = rows ? leading_dimension<T>(PaddedRows::count(conv, output_rows) * PaddedRows(conv).size)
                                 : size * leading_dimension<T>(depth_of(conv));
  // A block lies within one image, or else anywhere among all of them.
  const int64_t spans = rows ? conv.batch : 1, span = rows ? conv.y.output * conv.x.output : conv.pixels();
  const int64_t span_blocks = round_up(span, size) / size, blocks = spans * span_blocks;
  const int64_t parts = channel_parts(blocks, panels);
  if (sums) sums->resize(blocks * conv.out_channels);
  parallel_for(0, blocks * parts, 1, [&](int64_t begin, int64_t end) {
    const auto [patches, patches_by_tap] = thread_workspace<T>(workspace, variant == Variant::unpacked ? workspace : 0);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item / parts, part = item % parts;
      const int64_t first = block % span_blocks * size;  // in the span
      const PatchJob<T> job{call,
                            block / span_blocks * span + first,
                            std::min(size, span - first),
                            vectors,
                            panels * part / parts,
                            panels * (part + 1) / parts,
                            rows,
                            patches,
                            variant == Variant::unpacked ? patches_by_tap : nullptr,
                            sums ? sums->data() + block * conv.out_channels : nullptr};
      GENIMG_FAST_DISPATCH_ISA(run_patches<T>(job));
    }
  });
}

#define INSTANTIATE(T)                                                           \
  template bool supports<T>(const Convolution&, Variant);                        \
  template int64_t packed_count<T>(const Convolution&, Variant);                 \
  template void pack<T>(const Convolution&, Variant, WeightOrder, const T*, T*); \
  template void run<T>(const Conv2dCall<T>&, Variant, std::vector<ChannelSums<T>>*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu::direct

#else  // once per instruction set

#include "cpu/gemm_tile.h"
#include "cpu/vec_activation.h"
#include "cpu/vec_channel_sums.h"
#include "cpu/vec_prologue.h"
#include "cpu/vec_transpose_taps.h"
//
#include "cpu/vec_patches.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
PatchTile patch_tile() {
  return {kTileRows, kLanes<T>};
}

template <typename T>
PatchSource<T> source_of(const PatchJob<T>& job) {
  return {job.call.conv, job.call.input, job.call.prologue};
}

// The rows of the input that a block of output rows sees -> job.patches.
template <bool HasPrologue, typename T>
void pad_rows(const PatchJob<T>& job) {
  const Convolution& conv = job.call.conv;
  const PaddedRows padded(conv);
  const int64_t row_size = conv.x.input * conv.in_channels;
  const T* const end = job.call.input + conv.batch * conv.y.input * row_size;
  const int64_t first_output = job.first / conv.x.output, n = first_output / conv.y.output;
  const int64_t first = first_output % conv.y.output * conv.y.stride - conv.y.padding;
  const int64_t count = PaddedRows::count(conv, job.count / conv.x.output);
  const T* image = job.call.input + n * conv.y.input * row_size;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t iy = first + r;
    const T* row = iy >= 0 && iy < conv.y.input ? image + iy * row_size : nullptr;
    gather_taps<HasPrologue>(source_of(job), row, end, -conv.x.padding, padded.width, job.patches + r * padded.size);
  }
}

template <int Step>
struct LanesApart {
  template <typename T>
  static constexpr int of(int lane) {
    return lane ^ Step;
  }
};

// The sum of all lanes, by halves.
template <typename T, int Step = kLanes<T> / 2>
GF_INLINE T add_lanes(Vec<T> v) {
  v += shuffle<T, LanesApart<Step>>(v, v);
  if constexpr (Step > 1) return add_lanes<T, Step / 2>(v);
  return v[0];
}

// c [Rows x Channels] = a [Rows x depth] * b [Channels x depth], depth in whole vectors.
template <typename T, int Rows, int Channels>
void multiply_dots_tile(const T* a, int64_t lda, const T* b, int64_t depth, T* c, int64_t ldc) {
  for (int64_t first = 0; first < depth; first += kFoldedDepth * kLanes<T>) {
    const int64_t last = depth - first < kFoldedDepth * kLanes<T> ? depth : first + kFoldedDepth * kLanes<T>;
    Vec<T> sum[Rows][Channels] = {};
    for (int64_t k = first; k < last; k += kLanes<T>) {
      Vec<T> row[Channels];
#pragma GCC unroll 4
      for (int i = 0; i < Channels; ++i) row[i] = load(b + i * depth + k);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const Vec<T> x = load(a + r * lda + k);
#pragma GCC unroll 4
        for (int i = 0; i < Channels; ++i) sum[r][i] += x * row[i];
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < Channels; ++i) {
        T& to = c[r * ldc + i];
        to = first ? to + add_lanes<T>(sum[r][i]) : add_lanes<T>(sum[r][i]);
      }
  }
}

// All rows against at most Channels output channels.
template <typename T, int Channels = kNarrowChannels>
void multiply_dots(int64_t channels, int64_t rows, const T* a, int64_t lda, const T* b, int64_t depth, T* c,
                   int64_t ldc) {
  if constexpr (Channels > 1)
    if (channels < Channels) return multiply_dots<T, Channels - 1>(channels, rows, a, lda, b, depth, c, ldc);
  constexpr int kRows = GENIMG_FAST_VECTOR_BYTES == 64 || Channels <= 2 ? 4 : 2;  // by the registers there are
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows)
    multiply_dots_tile<T, kRows, Channels>(a + r * lda, lda, b, depth, c + r * ldc, ldc);
  for (; r < rows; ++r) multiply_dots_tile<T, 1, Channels>(a + r * lda, lda, b, depth, c + r * ldc, ldc);
}

// The epilogue of one vector of output channels over the rows of a tile, and the sums for its statistics.
template <Activation A, bool Statistics, typename T, typename Count>
GF_INLINE void finish_patches(const PatchJob<T>& job, const T* tile, int64_t tile_columns, int64_t first_pixel,
                              int64_t rows, int64_t channel, Count count) {
  const Epilogue<T>& epilogue = job.call.epilogue;
  const Vec<T> scale = load(epilogue.scale + channel, count);
  const Vec<T> shift = load(epilogue.shift + channel, count);
  const int64_t channels = job.call.conv.out_channels;
  T* to = job.call.output + first_pixel * channels + channel;
  const int lanes = lanes_in(count, kLanes<T>);
  LaneSums<T> sums(job.sums + channel, Statistics ? lanes : 0);
  for (int64_t r = 0; r < rows; ++r) {
    const Vec<T> v = activate<A, T>(load(tile + r * tile_columns) * scale + shift, epilogue.negative_slope);
    store(to + r * channels, v, count);
    if constexpr (Statistics) sums.add(v);
  }
  if constexpr (Statistics) sums.save(job.sums + channel, lanes);
}

// Where the patches of a block lie: in rows of `pixels`, `row_stride` values apart; `lda` values from patch to patch.
struct PatchView {
  int64_t pixels, row_stride, lda;
  Segments segments;
};

// Vectors of output channels a panel; 0 means dot products.
template <int Vectors, Activation A, bool Statistics, typename T>
void run_patch_tiles(const PatchJob<T>& job, const PatchView& view) {
  constexpr int64_t kColumns = Vectors ? Vectors * kLanes<T> : dot_columns(kLanes<T>);
  const int64_t depth = view.segments.count * view.segments.length;
  const int64_t channels = job.call.conv.out_channels, panel_size = depth * kColumns;
  const int64_t whole_vectors = (depth + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  const int64_t tiles = (view.pixels + kTileRows - 1) / kTileRows;
  alignas(64) T tile[kTileRows * kColumns];
  const T* row = job.patches;
  for (int64_t done = 0; done < job.count; done += view.pixels, row += view.row_stride) {
    for (int64_t panel = job.first_panel; panel < job.last_panel; ++panel) {
      const T* b = job.call.packed + panel * panel_size;
      const int64_t first_channel = panel * kColumns, last_channel = first_channel + kColumns;
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t r = view.pixels * t / tiles, rows = view.pixels * (t + 1) / tiles - r;  // split evenly
        const int64_t pixel = job.first + done + r;
        const T* a = row + r * view.lda;
        if constexpr (Vectors == 0) {
          const int64_t end = last_channel < channels ? last_channel : channels;
          for (int64_t c = first_channel; c < end; c += kNarrowChannels) {
            const int64_t column = c - first_channel;
            multiply_dots<T>(end - c, rows, a, view.lda, b + column * whole_vectors, whole_vectors, tile + column,
                             kColumns);
          }
        } else if (job.rows) {
          const T* to = job.call.output + pixel * channels + first_channel;
          for (int64_t i = 0; i < rows; ++i)
            for (int v = 0; v < Vectors; ++v) __builtin_prefetch(to + i * channels + v * kLanes<T>, 1, 3);
          multiply_segments<T, kTileRows, Vectors>(rows, a, view.lda, view.segments, b, tile, kColumns);
        } else {
          multiply<T, kTileRows, Vectors>(rows, a, view.lda, b, depth, tile, kColumns,
                                          share_of_panel<T, Vectors>(b + panel_size, depth, t, tiles));
        }
        for_each_vector<T>(first_channel, last_channel < channels ? last_channel : channels,
                           [&](int64_t channel, auto count) {
                             finish_patches<A, Statistics, T>(job, tile + channel - first_channel, kColumns, pixel,
                                                              rows, channel, count);
                           });
      }
    }
  }
}

template <int Vectors, typename T>
void run_patch_panels(const PatchJob<T>& job, const PatchView& view) {
  with_activation(job.call.epilogue.activation, [&](auto tag) {
    if (job.sums)
      run_patch_tiles<Vectors, decltype(tag)::value, true>(job, view);
    else
      run_patch_tiles<Vectors, decltype(tag)::value, false>(job, view);
  });
}

template <bool HasPrologue, typename T>
PatchView prepare_patches(const PatchJob<T>& job) {
  const Convolution& conv = job.call.conv;
  if (job.rows) {
    const int64_t row = PaddedRows(conv).size;
    pad_rows<HasPrologue>(job);
    return {conv.x.output,
            conv.y.stride * row,
            conv.x.stride * conv.in_channels,
            {conv.y.kernel, conv.x.kernel * conv.in_channels, conv.y.dilation * row}};
  }
  const int64_t depth = conv.taps() * conv.in_channels, lda = leading_dimension<T>(depth);
  if (job.patches_by_tap)
    gather_in_weight_order(source_of(job), job.patches_by_tap, job.patches, lda);
  else
    gather_patches<HasPrologue>(source_of(job), job.first, job.count, job.patches, lda);
  return {job.count, 0, lda, {1, depth, 0}};
}

template <typename T>
void run_patches(const PatchJob<T>& job) {
  const PatchView view = job.call.prologue.mean ? prepare_patches<true>(job) : prepare_patches<false>(job);
  if (job.panel_vectors == 0)
    run_patch_panels<0>(job, view);
  else if (job.panel_vectors == 1)
    run_patch_panels<1>(job, view);
  else
    run_patch_panels<2>(job, view);
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif
