// SPDX-License-Identifier: MIT
// Transposed convolution on the CPU as one GEMM a phase (common/deconvolution.h), epilogue in the tile.
//
//   per phase:  C [rows x Cout] = A [rows x depth] * B [depth x Cout],   depth = live taps x Cin
//
//   A  the input pixels that the taps see; padding is zeros.  A block of rows is gathered into a buffer
//      that stays in L2.
//
//   B  the weights, packed into panels of kTileColumns columns: [phase][panel][tap][Cin][column].
//
//   C  never exists: a tile of kTileRows x kTileColumns is summed in registers over the full depth, goes
//      through scale, shift and activation in L1, and is stored to the rows' places in the output.
//
// Near the edge of an image some taps see padding: on 4 x 4 pixels a quarter of all products.  In a small block rows
// are ordered so that those a tap does not see come first or last, and the tap leaves them out.
//
// Work is split over threads by row blocks of all phases; by panels too where these do not share out, as in a batch of
// one, whose time goes into reading weights.  Bytes: the input once a phase, the weights once a row block, the output
// once.  FLOPs: 2 Cin taps an output value and channel, those on padding included in large blocks.
#ifndef GENIMG_FAST_ISA

#include <algorithm>
#include <vector>

#include "cpu/conv_transpose2d_variants.h"
#include "cpu/thread_workspace.h"

namespace genimg_fast::cpu {

struct TileShape {
  int64_t rows, columns;
};

// One block of rows of one phase.
struct RowBlock {
  int64_t phase, first, count;
};

// A range of panels of a block: the unit of work.
template <typename T>
struct RowBlockJob {
  const ConvTranspose2dCall<T>& call;
  const T* packed;  // of the block's phase
  RowBlock block;
  int64_t first_panel, last_panel;
  T* gathered;           // [block.count, leading_dimension]
  ChannelSums<T>* sums;  // [Cout] of this block, or null
};

// Where a tap's [Cin][column] slab begins in the first panel, or -1 if no output sees it; the distance to the next
// panel's.
struct TapPlace {
  int64_t slab, panel_size;
};

// Taps one after the other that the same rows of a block see.
struct TapRows {
  int64_t first_tap, taps, first_row, rows;
};

constexpr int64_t kMaxBlockRows = 192;
constexpr int64_t kSmallBlockRows = 48;  // whose results stay in L1 from tap to tap
constexpr int64_t kMaxTapsApart = 16;

}  // namespace genimg_fast::cpu

#define GENIMG_FAST_KERNEL_FILE "cpu/conv_transpose2d_direct.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu::direct {
namespace {

constexpr int64_t kBlockBytes = 512 * 1024;  // gathered rows of one block: a quarter of a 2 MiB L2 keeps room for B

std::vector<RowBlock> split_rows(const Deconvolution& conv, int64_t tile_rows, int64_t element_size) {
  std::vector<RowBlock> blocks;
  int64_t total = 0;
  for (int64_t phase = 0; phase < conv.phases(); ++phase) total += conv.rows(phase);
  // Enough blocks to share out, and large enough to be worth reading the weights.  Not a function of the number of
  // threads: the statistics add up in the blocks' order.
  const int64_t fair = std::max(4 * tile_rows, total / 16);
  for (int64_t phase = 0; phase < conv.phases(); ++phase) {
    const int64_t rows = conv.rows(phase), row_bytes = std::max<int64_t>(conv.depth(phase), 1) * element_size;
    const int64_t size = std::min({std::max(kBlockBytes / row_bytes, tile_rows), kMaxBlockRows, fair});
    const int64_t count = (rows + size - 1) / size;
    for (int64_t i = 0; i < count; ++i)
      blocks.push_back({phase, rows * i / count, rows * (i + 1) / count - rows * i / count});
  }
  return blocks;
}

// Where the panels of a phase begin in the packed weights; one entry more than phases.
std::vector<int64_t> panel_offsets(const Deconvolution& conv, int64_t columns) {
  std::vector<int64_t> offsets(conv.phases() + 1, 0);
  for (int64_t phase = 0; phase < conv.phases(); ++phase)
    offsets[phase + 1] = offsets[phase] + conv.depth(phase) * columns;
  return offsets;
}

}  // namespace

template <typename T>
int64_t packed_count(const Deconvolution& conv) {
  const TileShape tile = GENIMG_FAST_DISPATCH_ISA(tile_shape<T>());
  const int64_t panels = (conv.out_channels + tile.columns - 1) / tile.columns;
  return panel_offsets(conv, tile.columns * panels).back();
}

// [Cin, Cout, kH, kW] -> [phase][panel][tap][Cin][column].  Columns beyond Cout are zeros.
template <typename T>
void pack(const Deconvolution& conv, const T* weight, T* packed) {
  const TileShape tile = GENIMG_FAST_DISPATCH_ISA(tile_shape<T>());
  const int64_t panels = (conv.out_channels + tile.columns - 1) / tile.columns;
  const std::vector<int64_t> offsets = panel_offsets(conv, tile.columns * panels);
  std::vector<TapPlace> places(conv.y.kernel * conv.x.kernel, {-1, 0});
  for (int64_t phase = 0; phase < conv.phases(); ++phase) {
    const int64_t py = phase / conv.x.phases(), px = phase % conv.x.phases();
    for (int64_t ty = 0; ty < conv.y.taps(py); ++ty)
      for (int64_t tx = 0; tx < conv.x.taps(px); ++tx)
        places[conv.y.tap(py, ty) * conv.x.kernel + conv.x.tap(px, tx)] = {
            offsets[phase] + (ty * conv.x.taps(px) + tx) * conv.in_channels * tile.columns,
            conv.depth(phase) * tile.columns};
  }
  parallel_for(0, panels * conv.in_channels, 8, [&](int64_t begin, int64_t end) {
    GENIMG_FAST_DISPATCH_ISA(pack_rows<T>(conv, places.data(), weight, packed, begin, end));
  });
}

template <typename T>
void run(const ConvTranspose2dCall<T>& call, std::vector<ChannelSums<T>>* sums) {
  const Deconvolution& conv = call.conv;
  const TileShape tile = GENIMG_FAST_DISPATCH_ISA(tile_shape<T>());
  const int64_t panels = (conv.out_channels + tile.columns - 1) / tile.columns;
  const std::vector<int64_t> offsets = panel_offsets(conv, tile.columns * panels);
  int64_t deepest = 0;
  for (int64_t phase = 0; phase < conv.phases(); ++phase) deepest = std::max(deepest, conv.depth(phase));

  const std::vector<RowBlock> blocks = split_rows(conv, tile.rows, sizeof(T));
  if (sums) sums->resize(blocks.size() * conv.out_channels);
  const int64_t parts = channel_parts(static_cast<int64_t>(blocks.size()), panels);
  parallel_for(0, static_cast<int64_t>(blocks.size()) * parts, 1, [&](int64_t begin, int64_t end) {
    const auto [gathered] = thread_workspace<T>((kMaxBlockRows + tile.rows) * leading_dimension<T>(deepest));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / parts, part = item % parts;
      const RowBlockJob<T> job{call,
                               call.packed + offsets[blocks[b].phase],
                               blocks[b],
                               panels * part / parts,
                               panels * (part + 1) / parts,
                               gathered,
                               sums ? sums->data() + b * conv.out_channels : nullptr};
      GENIMG_FAST_DISPATCH_ISA(run_block<T>(job));
    }
  });
}

#define INSTANTIATE(T)                                       \
  template int64_t packed_count<T>(const Deconvolution&);    \
  template void pack<T>(const Deconvolution&, const T*, T*); \
  template void run<T>(const ConvTranspose2dCall<T>&, std::vector<ChannelSums<T>>*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu::direct

#else  // once per instruction set

#include "cpu/gemm_tile.h"
#include "cpu/vec_activation.h"
#include "cpu/vec_channel_sums.h"
#include "cpu/vec_prologue.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
TileShape tile_shape() {
  return {kTileRows, kTileColumns<T>};
}

// Weights of items [begin, end), an item being one panel of one input channel.  Each weight row of kH * kW values is
// read once and dealt out to the phases.
template <typename T>
void pack_rows(const Deconvolution& conv, const TapPlace* places, const T* weight, T* packed, int64_t begin,
               int64_t end) {
  constexpr int64_t kItemsAhead = 4;
  const int64_t taps = conv.y.kernel * conv.x.kernel;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t panel = item / conv.in_channels, c = item % conv.in_channels;
    for (int v = 0; v < kPanelVectors; ++v) {
      const int64_t channel = panel * kTileColumns<T> + v * kLanes<T>, left = conv.out_channels - channel;
      const T* rows = weight + (c * conv.out_channels + channel) * taps;
      for (int lane = 0; lane < kLanes<T>; ++lane)
        __builtin_prefetch(rows + (kItemsAhead * conv.out_channels + lane) * taps, 0, 3);
      for_each_vector<T>(0, taps, [&](int64_t tap, auto count) {
        Vec<T> values[kLanes<T>];
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes<T>; ++lane)
          values[lane] = lane < left ? load(rows + lane * taps + tap, count) : Vec<T>{};
        transpose<T>(values);
        for (int i = 0; i < lanes_in(count, kLanes<T>); ++i) {
          const TapPlace& place = places[tap + i];
          if (place.slab < 0) continue;
          store(packed + place.slab + panel * place.panel_size + c * kTileColumns<T> + v * kLanes<T>, values[i]);
        }
      });
    }
  }
}

// Where an output of a phase lies, and whether all its taps see the image.
struct Position {
  int64_t n, j, i;
  bool y_inside, x_inside;

  Position(const RowBlock& block, const Deconvolution& conv, int64_t row) {
    const int64_t py = block.phase / conv.x.phases(), px = block.phase % conv.x.phases();
    const int64_t height = conv.y.positions(py), width = conv.x.positions(px);
    n = row / (height * width), j = row / width % height, i = row % width;
    y_inside = sees_all(conv.y, py, j), x_inside = sees_all(conv.x, px, i);
  }
  static bool sees(const DeconvolutionAxis& axis, int64_t input) { return input >= 0 && input < axis.input; }
  static bool sees_all(const DeconvolutionAxis& axis, int64_t phase, int64_t j) {
    bool all = true;
    for (int64_t tap = 0; tap < axis.taps(phase); ++tap) all &= sees(axis, j + axis.shift(phase, tap));
    return all;
  }
  // The edge in x, the inside, the edge in y, the corners: if one tap of an axis sees padding there, the rows that it
  // does see lie together.
  int order() const { return x_inside ? (y_inside ? 1 : 2) : (y_inside ? 0 : 3); }
};

// A block of rows laid out for the product.
template <typename T>
struct Gathered {
  int64_t lda, parts;
  TapRows part[kMaxTapsApart];
  int64_t output_offset[kMaxBlockRows + kTileRows];
};

// Lays the pixels that each row's taps see next to each other, prologue applied, and finds where each row's results go.
template <typename T>
void gather(const RowBlockJob<T>& job, Gathered<T>& to) {
  const Deconvolution& conv = job.call.conv;
  const DeconvolutionAxis &y = conv.y, &x = conv.x;
  const int64_t py = job.block.phase / x.phases(), px = job.block.phase % x.phases(), channels = conv.in_channels;
  const int64_t taps = y.taps(py) * x.taps(px), rows = job.block.count;
  const bool apart = rows <= kSmallBlockRows && taps <= kMaxTapsApart && channels >= kFoldedDepth;
  int64_t first_seen[kMaxTapsApart], last_seen[kMaxTapsApart], r = 0;
  for (int64_t tap = 0; apart && tap < taps; ++tap) first_seen[tap] = rows, last_seen[tap] = -1;
  for (int order = 0; order < (apart ? 4 : 1); ++order)
    for (int64_t row = job.block.first; row < job.block.first + rows; ++row) {
      const Position p(job.block, conv, row);
      if (apart && p.order() != order) continue;
      to.output_offset[r] =
          ((p.n * y.output + py + p.j * y.stride) * x.output + px + p.i * x.stride) * conv.out_channels;
      T* values = job.gathered + r * to.lda;
      for (int64_t tap = 0; tap < taps; ++tap, values += channels) {
        const int64_t iy = p.j + y.shift(py, tap / x.taps(px)), ix = p.i + x.shift(px, tap % x.taps(px));
        if (!Position::sees(y, iy) || !Position::sees(x, ix)) {
          __builtin_memset(values, 0, channels * sizeof(T));
          continue;
        }
        apply_prologue(job.call.prologue, job.call.input + ((p.n * y.input + iy) * x.input + ix) * channels, 1,
                       channels, values, channels);
        if (!apart) continue;
        first_seen[tap] = first_seen[tap] < r ? first_seen[tap] : r;
        last_seen[tap] = r;
      }
      ++r;
    }
  to.parts = 0;
  if (!apart) {
    to.part[to.parts++] = {0, taps, 0, rows};
    return;
  }
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t first = first_seen[tap], count = last_seen[tap] + 1 - first;
    TapRows* before = to.parts ? &to.part[to.parts - 1] : nullptr;
    const bool follows = before && before->first_tap + before->taps == tap;  // no tap between them that no row sees
    if (follows && before->first_row == first && before->rows == count)
      ++before->taps;
    else if (count > 0)
      to.part[to.parts++] = {tap, 1, first, count};
  }
}

// The epilogue of one vector of output channels over the rows of a tile, and the sums for its statistics.
template <Activation A, bool Statistics, typename T, typename Count>
GF_INLINE void finish_column(const RowBlockJob<T>& job, const T* tile, int64_t rows, const int64_t* output_offset,
                             int64_t channel, Count count) {
  const Epilogue<T>& epilogue = job.call.epilogue;
  const Vec<T> scale = load(epilogue.scale + channel, count);
  const Vec<T> shift = load(epilogue.shift + channel, count);
  const int lanes = lanes_in(count, kLanes<T>);
  LaneSums<T> sums(job.sums + channel, Statistics ? lanes : 0);
  for (int64_t r = 0; r < rows; ++r) {
    const Vec<T> v = activate<A, T>(load(tile + r * kTileColumns<T>) * scale + shift, epilogue.negative_slope);
    store(job.call.output + output_offset[r] + channel, v, count);
    if constexpr (Statistics) sums.add(v);
  }
  if constexpr (Statistics) sums.save(job.sums + channel, lanes);
}

template <Activation A, bool Statistics, typename T>
void finish(const RowBlockJob<T>& job, const T* tile, int64_t rows, const int64_t* output_offset, int64_t panel) {
  const int64_t channels = job.call.conv.out_channels;
  const int64_t first_channel = panel * kTileColumns<T>, last_channel = first_channel + kTileColumns<T>;
  for_each_vector<T>(
      first_channel, last_channel < channels ? last_channel : channels, [&](int64_t channel, auto count) {
        finish_column<A, Statistics, T>(job, tile + channel - first_channel, rows, output_offset, channel, count);
      });
}

template <Activation A, bool Statistics, typename T>
void run_tiles(const RowBlockJob<T>& job, int64_t depth, const Gathered<T>& rows) {
  const int64_t panel_size = depth * kTileColumns<T>, tiles = (job.block.count + kTileRows - 1) / kTileRows;
  alignas(64) T tile[kTileRows * kTileColumns<T>];
  for (int64_t panel = job.first_panel; panel < job.last_panel; ++panel) {
    const T* b = job.packed + panel * panel_size;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t r = job.block.count * t / tiles, count = job.block.count * (t + 1) / tiles - r;
      multiply<T>(count, job.gathered + r * rows.lda, rows.lda, b, depth, tile, kTileColumns<T>,
                  share_of_panel(b + panel_size, depth, t, tiles));
      finish<A, Statistics, T>(job, tile, count, rows.output_offset + r, panel);
    }
  }
}

template <Activation A, bool Statistics, typename T>
void run_taps(const RowBlockJob<T>& job, int64_t depth, const Gathered<T>& rows) {
  const int64_t panel_size = depth * kTileColumns<T>, channels = job.call.conv.in_channels;
  alignas(64) T tile[kSmallBlockRows * kTileColumns<T>];
  for (int64_t panel = job.first_panel; panel < job.last_panel; ++panel) {
    __builtin_memset(tile, 0, job.block.count * kTileColumns<T> * sizeof(T));
    for (int64_t i = 0; i < rows.parts; ++i) {
      const TapRows& part = rows.part[i];
      const T* b = job.packed + panel * panel_size + part.first_tap * channels * kTileColumns<T>;
      multiply_panel<T>(
          part.rows, job.gathered + part.first_row * rows.lda + part.first_tap * channels, rows.lda, b,
          part.taps * channels, tile + part.first_row * kTileColumns<T>, kTileColumns<T>, b + panel_size,
          [](Prefetch&) {}, true);
    }
    finish<A, Statistics, T>(job, tile, job.block.count, rows.output_offset, panel);
  }
}

template <typename T>
void run_block(const RowBlockJob<T>& job) {
  const int64_t depth = job.call.conv.depth(job.block.phase);
  Gathered<T> rows;
  rows.lda = leading_dimension<T>(depth);
  gather(job, rows);
  with_activation(job.call.epilogue.activation, [&](auto tag) {
    constexpr Activation kActivation = decltype(tag)::value;
    if (rows.parts == 1)
      job.sums ? run_tiles<kActivation, true>(job, depth, rows) : run_tiles<kActivation, false>(job, depth, rows);
    else
      job.sums ? run_taps<kActivation, true>(job, depth, rows) : run_taps<kActivation, false>(job, depth, rows);
  });
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif
