// SPDX-License-Identifier: MIT
// Transposed convolution on the CPU as one GEMM a phase (common/deconvolution.h), epilogue in the tile.
//
//   per phase:  C [rows x Cout] = A [rows x depth] * B [depth x Cout],   depth = live taps x Cin
//
//   A  the input pixels that the taps see.  A block of rows is gathered into a buffer that stays in L2; padding is
//   zeros. B  the weights, packed once a call into panels of kPanel columns: [phase][panel][tap][Cin][kPanel]. C  never
//   exists: a tile of kTileRows x kPanel is summed in registers over the full depth, goes through scale, shift and
//      activation in L1, and is stored to the rows' places in the output.
//
// Work is split over threads by row blocks of all phases.  Bytes: the input once a phase, the weights once a row block,
// the output once.
#ifndef GENIMG_FAST_ISA

#include "cpu/conv_transpose2d_bn_act_kernel.h"

#include <algorithm>
#include <memory>
#include <vector>

namespace genimg_fast::cpu {

struct TileShape {
  int64_t rows, columns;
};

// One block of rows of one phase: the unit of work.
struct RowBlock {
  int64_t phase, first, count;
};

// Sums of (value - origin) and its square over one row block, for one channel.  The origin is a value of the block, so
// nothing cancels however far the mean lies from zero.
template <typename T>
struct ChannelSums {
  T origin, sum, sum_of_squares;
};

template <typename T>
struct TileJob {
  const Deconvolution& conv;
  const T* input;
  const T* packed_weight;  // of the block's phase
  const Epilogue<T>& epilogue;
  T* output;
  RowBlock block;
  T* gathered;           // [block.count, leading_dimension]
  ChannelSums<T>* sums;  // [Cout] of this block, or null
};

constexpr int64_t kMaxBlockRows = 192;

// Rows lie 64 bytes beyond a multiple of the cache's set stride, so that the rows of a tile do not evict each other.
template <typename T>
constexpr int64_t leading_dimension(int64_t depth) {
  return depth + 64 / static_cast<int64_t>(sizeof(T));
}

}  // namespace genimg_fast::cpu

#define GENIMG_FAST_KERNEL_FILE "cpu/conv_transpose2d_bn_act_kernel.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu {
namespace {

constexpr int64_t kBlockBytes = 512 * 1024;  // gathered rows of one block: a quarter of a 2 MiB L2 keeps room for B

template <typename T>
struct AlignedDelete {
  void operator()(T* p) const { ::operator delete[](p, std::align_val_t(64)); }
};
template <typename T>
using AlignedArray = std::unique_ptr<T[], AlignedDelete<T>>;
template <typename T>
AlignedArray<T> aligned_array(int64_t count) {
  return AlignedArray<T>(static_cast<T*>(::operator new[](count * sizeof(T), std::align_val_t(64))));
}

std::vector<RowBlock> split_rows(const Deconvolution& conv, int64_t tile_rows, int64_t element_size) {
  std::vector<RowBlock> blocks;
  int64_t total = 0;
  for (int64_t phase = 0; phase < conv.phases(); ++phase) total += conv.rows(phase);
  // Enough blocks to share out, and not a function of the number of threads: the statistics add up in the blocks'
  // order.
  const int64_t fair = std::max(tile_rows, total / 16);
  for (int64_t phase = 0; phase < conv.phases(); ++phase) {
    const int64_t depth = std::max<int64_t>(conv.depth(phase), 1);
    int64_t size = std::min({kBlockBytes / (depth * element_size), kMaxBlockRows, fair});
    size = std::max(size / tile_rows, int64_t{1}) * tile_rows;
    for (int64_t first = 0; first < conv.rows(phase); first += size)
      blocks.push_back({phase, first, std::min(size, conv.rows(phase) - first)});
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

// [Cin, Cout, kH, kW] -> [phase][panel][tap][Cin][column].  Each weight row of kH * kW values is read once and dealt
// out to the phases.  Columns beyond Cout are zeros.
template <typename T>
void pack_weight(const Deconvolution& conv, const T* weight, int64_t tile_columns, int64_t panels,
                 const std::vector<int64_t>& offsets, T* packed) {
  const int64_t taps = conv.y.kernel * conv.x.kernel;
  std::vector<int64_t> start(taps, -1), panel_size(taps, 0);  // of each tap's [Cin][column] slab, and panel to panel
  for (int64_t phase = 0; phase < conv.phases(); ++phase) {
    const int64_t py = phase / conv.x.phases(), px = phase % conv.x.phases();
    for (int64_t ty = 0; ty < conv.y.taps(py); ++ty)
      for (int64_t tx = 0; tx < conv.x.taps(px); ++tx) {
        const int64_t tap = conv.y.tap(py, ty) * conv.x.kernel + conv.x.tap(px, tx);
        start[tap] = offsets[phase] + (ty * conv.x.taps(px) + tx) * conv.in_channels * tile_columns;
        panel_size[tap] = conv.depth(phase) * tile_columns;
      }
  }
  parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      for (int64_t c = 0; c < conv.in_channels; ++c)
        for (int64_t column = 0; column < tile_columns; ++column) {
          const int64_t channel = panel * tile_columns + column;
          const bool inside = channel < conv.out_channels;
          const T* row = weight + (c * conv.out_channels + channel) * taps;
          for (int64_t tap = 0; tap < taps; ++tap)
            if (start[tap] >= 0)
              packed[start[tap] + panel * panel_size[tap] + c * tile_columns + column] = inside ? row[tap] : T(0);
        }
  });
}

// Chan's formula, in order of the blocks: the same for every number of threads.
template <typename T>
void combine(const std::vector<RowBlock>& blocks, const ChannelSums<T>* sums, int64_t channels, T* mean, T* var) {
  parallel_for(0, channels, 16, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double count = 0, average = 0, squares = 0;
      for (size_t b = 0; b < blocks.size(); ++b) {
        const ChannelSums<T>& s = sums[b * channels + c];
        const double n = blocks[b].count, delta_sum = s.sum;
        const double block_mean = s.origin + delta_sum / n;
        const double block_squares = s.sum_of_squares - delta_sum * delta_sum / n;
        const double delta = block_mean - average;
        squares += block_squares + delta * delta * count * n / (count + n);
        average += delta * n / (count + n);
        count += n;
      }
      mean[c] = static_cast<T>(average);
      var[c] = static_cast<T>(squares / count);
    }
  });
}

}  // namespace

template <typename T>
void conv_transpose2d(const Deconvolution& conv, const T* input, const T* weight, const Epilogue<T>& epilogue,
                      T* output, T* mean, T* var) {
  const TileShape tile = GENIMG_FAST_DISPATCH_ISA(tile_shape<T>());
  const int64_t panels = (conv.out_channels + tile.columns - 1) / tile.columns;

  const std::vector<int64_t> offsets = panel_offsets(conv, tile.columns * panels);
  auto packed = aligned_array<T>(offsets.back());
  pack_weight(conv, weight, tile.columns, panels, offsets, packed.get());
  int64_t deepest = 0;
  for (int64_t phase = 0; phase < conv.phases(); ++phase) deepest = std::max(deepest, conv.depth(phase));

  const std::vector<RowBlock> blocks = split_rows(conv, tile.rows, sizeof(T));
  std::vector<ChannelSums<T>> sums(mean ? blocks.size() * conv.out_channels : 0);
  parallel_for(0, static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    auto gathered = aligned_array<T>((kMaxBlockRows + tile.rows) * leading_dimension<T>(deepest));
    for (int64_t b = begin; b < end; ++b) {
      const TileJob<T> job{conv,
                           input,
                           packed.get() + offsets[blocks[b].phase],
                           epilogue,
                           output,
                           blocks[b],
                           gathered.get(),
                           mean ? sums.data() + b * conv.out_channels : nullptr};
      GENIMG_FAST_DISPATCH_ISA(run_block<T>(job));
    }
  });
  if (mean) combine(blocks, sums.data(), conv.out_channels, mean, var);
}

template void conv_transpose2d<float>(const Deconvolution&, const float*, const float*, const Epilogue<float>&, float*,
                                      float*, float*);
template void conv_transpose2d<double>(const Deconvolution&, const double*, const double*, const Epilogue<double>&,
                                       double*, double*, double*);

}  // namespace genimg_fast::cpu

#else  // once per instruction set

#include "cpu/vec_activation.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// Two vectors a row.  24 accumulators of AVX-512's 32 registers, 12 of the other sets' 16.
constexpr int kTileRows = GENIMG_FAST_VECTOR_BYTES == 64 ? 12 : 6;
template <typename T>
constexpr int kTileColumns = 2 * kLanes<T>;

template <typename T>
TileShape tile_shape() {
  return {kTileRows, kTileColumns<T>};
}

// tile [Rows, kTileColumns] = a [Rows, depth] * b [depth, kTileColumns]
template <typename T, int Rows>
void multiply_tile(const T* a, int64_t lda, const T* b, int64_t depth, T* tile) {
  Vec<T> left[Rows], right[Rows];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) left[r] = right[r] = Vec<T>{};
  for (int64_t k = 0; k < depth; ++k) {
    const Vec<T> b0 = load(b), b1 = load(b + kLanes<T>);
    b += kTileColumns<T>;
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      left[r] += a[r * lda + k] * b0;
      right[r] += a[r * lda + k] * b1;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    store(tile + r * kTileColumns<T>, left[r]);
    store(tile + r * kTileColumns<T> + kLanes<T>, right[r]);
  }
}

template <typename T, int Rows = kTileRows>
GF_INLINE void multiply(int64_t rows, const T* a, int64_t lda, const T* b, int64_t depth, T* tile) {
  if (rows == Rows) return multiply_tile<T, Rows>(a, lda, b, depth, tile);
  if constexpr (Rows > 1) multiply<T, Rows - 1>(rows, a, lda, b, depth, tile);
}

// Copies the pixels that each row's taps see next to each other, and finds where each row's results go.
template <typename T>
void gather(const TileJob<T>& job, int64_t lda, int64_t* output_offset) {
  const Deconvolution& conv = job.conv;
  const DeconvolutionAxis &y = conv.y, &x = conv.x;
  const int64_t py = job.block.phase / x.phases(), px = job.block.phase % x.phases();
  const int64_t height = y.positions(py), width = x.positions(px), channels = conv.in_channels;
  for (int64_t r = 0; r < job.block.count; ++r) {
    const int64_t row = job.block.first + r;
    const int64_t n = row / (height * width), j = row / width % height, i = row % width;
    output_offset[r] = ((n * y.output + py + j * y.stride) * x.output + px + i * x.stride) * conv.out_channels;
    T* to = job.gathered + r * lda;
    for (int64_t ty = 0; ty < y.taps(py); ++ty)
      for (int64_t tx = 0; tx < x.taps(px); ++tx, to += channels) {
        const int64_t iy = j + y.shift(py, ty), ix = i + x.shift(px, tx);
        if (iy >= 0 && iy < y.input && ix >= 0 && ix < x.input)
          __builtin_memcpy(to, job.input + ((n * y.input + iy) * x.input + ix) * channels, channels * sizeof(T));
        else
          __builtin_memset(to, 0, channels * sizeof(T));
      }
  }
}

// The epilogue of one vector of output channels over the rows of a tile, and the sums for its statistics.
template <Activation A, bool Statistics, typename T, typename Count>
GF_INLINE void finish_column(const TileJob<T>& job, const T* tile, int64_t rows, const int64_t* output_offset,
                             int64_t channel, bool first_tile, Count count) {
  const Epilogue<T>& epilogue = job.epilogue;
  const Vec<T> scale = load(epilogue.scale + channel, count);
  const Vec<T> shift = load(epilogue.shift + channel, count);
  Vec<T> origin{}, sum{}, sum_of_squares{};
  for (int64_t r = 0; r < rows; ++r) {
    const Vec<T> v = activate<A, T>(load(tile + r * kTileColumns<T>) * scale + shift, epilogue.negative_slope);
    store(job.output + output_offset[r] + channel, v, count);
    if constexpr (Statistics) {
      if (r == 0) {
        origin = v;
        if (!first_tile)
          for (int i = 0; i < kLanes<T> && channel + i < job.conv.out_channels; ++i)
            origin[i] = job.sums[channel + i].origin;
      }
      const Vec<T> d = v - origin;
      sum += d;
      sum_of_squares += d * d;
    }
  }
  if constexpr (Statistics)
    for (int i = 0; i < kLanes<T> && channel + i < job.conv.out_channels; ++i) {
      ChannelSums<T>& s = job.sums[channel + i];
      if (first_tile) s = {origin[i], 0, 0};
      s.sum += sum[i];
      s.sum_of_squares += sum_of_squares[i];
    }
}

template <Activation A, bool Statistics, typename T>
void run_tiles(const TileJob<T>& job, int64_t depth, int64_t lda, const int64_t* output_offset) {
  const int64_t channels = job.conv.out_channels;
  alignas(64) T tile[kTileRows * kTileColumns<T>];
  const T* b = job.packed_weight;
  for (int64_t first_channel = 0; first_channel < channels;
       first_channel += kTileColumns<T>, b += depth * kTileColumns<T>)
    for (int64_t r = 0; r < job.block.count; r += kTileRows) {
      const int64_t rows = r + kTileRows < job.block.count ? kTileRows : job.block.count - r;
      multiply<T>(rows, job.gathered + r * lda, lda, b, depth, tile);
      for (int half = 0; half < 2; ++half) {
        const int64_t channel = first_channel + half * kLanes<T>;
        if (channel + kLanes<T> <= channels)
          finish_column<A, Statistics, T>(job, tile + half * kLanes<T>, rows, output_offset + r, channel, r == 0,
                                          Full{});
        else if (channel < channels)
          finish_column<A, Statistics, T>(job, tile + half * kLanes<T>, rows, output_offset + r, channel, r == 0,
                                          Tail{static_cast<int>(channels - channel)});
      }
    }
}

template <typename T>
void run_block(const TileJob<T>& job) {
  const int64_t depth = job.conv.depth(job.block.phase), lda = leading_dimension<T>(depth);
  int64_t output_offset[kMaxBlockRows + kTileRows];
  gather(job, lda, output_offset);
  with_activation(job.epilogue.activation, [&](auto tag) {
    if (job.sums)
      run_tiles<decltype(tag)::value, true>(job, depth, lda, output_offset);
    else
      run_tiles<decltype(tag)::value, false>(job, depth, lda, output_offset);
  });
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif
