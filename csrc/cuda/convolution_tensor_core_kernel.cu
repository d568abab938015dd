// SPDX-License-Identifier: MIT
// Convolutions and transposed convolutions on tensor cores, epilogue fused: one launch a block.
//
// A transposed convolution is one implicit GEMM (implicit_gemm.cuh) a phase (common/deconvolution.h), each over its
// live taps alone; all phases are blocks of one grid:
//
//     rows: the phase's output positions       columns: output channels       depth: live taps x input channels
//
// A convolution is the same with a single phase.  An image of 1 x 1 is the plain GEMM that it is: each output position
// is a phase with one tap.  Blocks that read the same pixels (the column tiles, then the phases) follow each other, so
// that the image comes from device memory once and from the L2 cache afterwards, and so does the weight, which fits
// there.
//
// Plan, DCGAN-64 on an H200 (790 TFLOP/s of bf16 and 4.3 TB/s as measured there), per image: 512-256, 256-128 and
// 128-64 are 67.1 MFLOP each, 48, 96 and 192 KB of image read and written; 23, 12 and 6 % of the multiplications fall
// on padding, which is copied as zeros.  Tiles of 128 x 128 or 256 x 64 by 4 warps of 64 x 64: 4 KB of shared memory
// read for 32 mma, 4 stages of 64 bytes of depth = 64 or 80 KB, two blocks a multiprocessor.  mma.sync reaches about 60
// % of what wgmma would on sm_90; on sm_80 to sm_89 it is the whole rate.  So expected: 55 % of the limit on Hopper, 75
// % on Ampere and Ada.  100-512 on 1 x 1 (1.6 MFLOP, 16 KB) is bound by its writes. Outcome: not yet measured.
//
// Few input channels (a discriminator's 3-64 from 64 x 64, and the data gradient of a generator's image layer): 6.3
// MFLOP and 156 KB of image read and written, so bound by memory: 36 ns.  cuDNN's convolution and one pass of batch
// normalisation and activation after it would move the output's 131 KB twice more, 97 ns, after a copy of the image
// that fills its 3 channels up to 8.  The depth is dense (FewChannelsLoader): 48 values in two steps, where a step a
// tap would be sixteen, 67 MFLOP.  A thread loads 64 single elements for them, all of a step under way at once. Counted
// in the machine code, a warp takes about 2,500 instructions for its part of 16 KB of output, which is what a
// multiprocessor issues in 2.5 times the time that they take in memory.  Expected: 40 % of the limit, 90 ns.  Outcome:
// not yet measured.
#include "cuda/convolution_tensor_core_kernel.h"

#include <algorithm>
#include <stdexcept>

#include "cuda/convolution_epilogue.cuh"
#include "cuda/implicit_gemm.cuh"

namespace genimg_fast::cuda {
namespace {

using Tile128x128 = GemmTile<128, 128, 2, 2>;
using Tile256x64 = GemmTile<256, 64, 4, 1>;
using Tile128x64 = GemmTile<128, 64, 2, 2>;
using Tile64x64 = GemmTile<64, 64, 2, 2>;

// Pixels that are no multiple of 16 bytes are copied 4 bytes at a time, in this tile alone: such layers are small.
constexpr GemmTileChoice kTileOfNarrowCopies = GemmTileChoice::m64n64;

// Of few channels, and so few steps that two stages are enough.
constexpr int64_t kFewChannels = 16;
using TileOfFewChannels = GemmTile<128, 64, 2, 2, 2>;
constexpr GemmTileChoice kTileOfFewChannels = GemmTileChoice::m128n64;

template <typename T>
bool has_few_channels(const PhasedConvolution& conv) {
  return conv.in_channels < kFewChannels && conv.in_channels % kPack<T> != 0;
}

// Calls body(Tile{}).
template <typename Body>
auto with_tile(GemmTileChoice choice, const Body& body) {
  switch (choice) {
    case GemmTileChoice::m128n128:
      return body(Tile128x128{});
    case GemmTileChoice::m256n64:
      return body(Tile256x64{});
    case GemmTileChoice::m128n64:
      return body(Tile128x64{});
    default:
      return body(Tile64x64{});
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t most_rows(const PhasedConvolution& conv) {  // the first phase of an axis has most positions
  return conv.batch * conv.y[0].gather.positions * conv.x[0].gather.positions;
}

// What a tap takes of a row of the packed weight.
template <typename T>
int64_t tap_depth(const PhasedConvolution& conv) {
  return has_few_channels<T>(conv) ? conv.in_channels : ceil_div(conv.in_channels, kStep<T>) * kStep<T>;
}

template <typename T>
PackedWeightShape packed_shape(const PhasedConvolution& conv) {
  int64_t y_taps = 0, x_taps = 0;
  for (int p = 0; p < conv.y_phases; ++p) y_taps = std::max<int64_t>(y_taps, conv.y[p].gather.taps);
  for (int p = 0; p < conv.x_phases; ++p) x_taps = std::max<int64_t>(x_taps, conv.x[p].gather.taps);
  const int64_t taps = y_taps * x_taps;
  return {taps, tap_depth<T>(conv), ceil_div(taps * tap_depth<T>(conv), kStep<T>) * kStep<T>};
}

// Taps of the kernel along an axis, up to the last one that a phase uses.
int kernel_size(const PhaseAxis* axis, int phases) {
  int size = 0;
  for (int p = 0; p < phases; ++p)
    if (axis[p].gather.taps > 0)
      size = std::max(size, axis[p].first_tap + (axis[p].gather.taps - 1) * axis[p].tap_stride + 1);
  return size;
}

// ---- The kernel.

template <typename T, typename Tile, typename Loader>
__global__ void __launch_bounds__(Tile::kThreads, 2)
    convolution_kernel(PhasedConvolution conv, const T* input, const T* weight, int64_t depth, Epilogue<T> epilogue) {
  GENIMG_FAST_SHARED(unsigned char, shared);
  const int column_tiles = static_cast<int>((conv.out_channels + Tile::kN - 1) / Tile::kN);
  const int phases = conv.y_phases * conv.x_phases;
  const int64_t row_block = blockIdx.x / column_tiles;  // of all phases
  const int phase = static_cast<int>(row_block % phases);
  const PhaseAxis &y_axis = conv.y[phase / conv.x_phases], &x_axis = conv.x[phase % conv.x_phases];
  const int width = x_axis.gather.positions, plane = y_axis.gather.positions * width;
  const int64_t first_row = row_block / phases * Tile::kM, rows_left = conv.batch * plane - first_row;
  const int rows = rows_left < 0 ? 0 : rows_left > Tile::kM ? Tile::kM : static_cast<int>(rows_left);
  const int64_t first_channel = blockIdx.x % column_tiles * static_cast<int64_t>(Tile::kN);
  const int channels =
      conv.out_channels - first_channel > Tile::kN ? Tile::kN : static_cast<int>(conv.out_channels - first_channel);

  // One division of 64 bits; those of the rows are then of 32.
  const int64_t first_image = plane > 0 ? first_row / plane : 0;
  const unsigned first_position = plane > 0 ? static_cast<unsigned>(first_row % plane) : 0;
  auto position = [&](int r) {  // of the tile's row r: its image, and its place among the phase's positions
    const unsigned p = first_position + r, in_image = p % plane;
    return GatherRow{r < rows ? first_image + p / plane : -1, static_cast<int>(in_image / width),
                     static_cast<int>(in_image % width)};
  };

  float acc[Tile::kFragmentsM][Tile::kFragmentsN][4] = {};
  if (rows > 0) {  // else this phase is a row of tiles shorter than the first
    Loader image(input, conv.in_channels, y_axis.gather, x_axis.gather, position);
    WeightLoader<T, Tile> columns(weight + (phase * conv.out_channels + first_channel) * depth, depth, channels);
    const int steps = Loader::steps(y_axis.gather.taps * x_axis.gather.taps, conv.in_channels);
    await_previous_kernel();
    implicit_gemm<T, Tile>(steps, image, columns, shared, acc);
  } else {
    await_previous_kernel();
  }

  auto pixel = [&](int r) -> int64_t {
    if (r >= rows) return -1;
    const GatherRow p = position(r);
    return (p.image * conv.y_output + y_axis.first_output + p.y * y_axis.out_stride) * conv.x_output +
           x_axis.first_output + p.x * x_axis.out_stride;
  };
  store_tile<T, Tile>(acc, epilogue, shared, conv.out_channels, first_channel, channels, row_block, pixel);
}

// ---- Packing.

constexpr int kPackIn = 32, kPackOut = 8;  // channels that a block takes with all their taps: a pair a thread
static_assert(kPackIn * kPackOut == kThreads);
constexpr int kTapsAtOnce = 16;  // whose loads are under way together
constexpr int kMostTaps = 64, kMostTapsOfAxis = 16;

// Elements from an output channel to the next in shared memory, [kPackOut][kernel][kPackIn]: eight of them begin in
// different banks.
template <typename T>
constexpr int pack_pitch(int kernel) {
  return kernel * kPackIn + kChunk / static_cast<int>(sizeof(T));
}

// One tile of the weight goes through shared memory: both sides then move runs of 64 bytes and more.  No thread
// divides, and none waits for one load after the other.  wide: taps lie side by side, and those of each pair begin and
// end at multiples of 16 bytes.
template <typename T>
__global__ void pack_weight_kernel(PhasedConvolution conv, const T* weight, WeightStrides strides, int y_kernel,
                                   int x_kernel, bool wide, int64_t tap_depth, int64_t depth, T* packed) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(T, tile);
  const int kernel = y_kernel * x_kernel, pitch = pack_pitch<T>(kernel), thread = static_cast<int>(threadIdx.x);
  const int64_t first_in = static_cast<int64_t>(blockIdx.x) * kPackIn,
                first_out = static_cast<int64_t>(blockIdx.y) * kPackOut;
  {
    // The order of memory: of the two channels, the one with the larger stride is slowest.
    const bool in_first = strides.in > strides.out;
    const int o = in_first ? thread % kPackOut : thread / kPackIn, i = in_first ? thread / kPackOut : thread % kPackIn;
    const bool inside = first_in + i < conv.in_channels && first_out + o < conv.out_channels;
    const T* next = weight + (first_out + o) * strides.out + (first_in + i) * strides.in;
    const int64_t next_row = strides.y - x_kernel * strides.x;
    int x = 0;
#pragma unroll 1
    for (int first = 0; first < kernel; first += kTapsAtOnce) {
      T taps[kTapsAtOnce];
      if (wide) {
#pragma unroll
        for (int t = 0; t < kTapsAtOnce; t += kPack<T>) {
          Pack<T, kPack<T>> pack = {};
          if (inside && first + t < kernel) pack = *reinterpret_cast<const Pack<T, kPack<T>>*>(next + first + t);
#pragma unroll
          for (int k = 0; k < kPack<T>; ++k) taps[t + k] = pack.lane[k];
        }
      } else {
#pragma unroll
        for (int t = 0; t < kTapsAtOnce; ++t) {
          taps[t] = inside && first + t < kernel ? *next : from_float<T>(0.0f);
          next += strides.x;
          if (++x == x_kernel) x = 0, next += next_row;
        }
      }
#pragma unroll
      for (int t = 0; t < kTapsAtOnce; ++t) {
        if constexpr (sizeof(T) == 4) taps[t] = __uint_as_float(to_tf32(taps[t]));
        if (first + t < kernel) tile[o * pitch + (first + t) * kPackIn + i] = taps[t];
      }
    }
  }
  __syncthreads();
  const int o = thread / kPackIn, i = thread % kPackIn;
  if (first_out + o >= conv.out_channels) return;
  const T* column = tile + o * pitch + i;
  T* row = packed + (first_out + o) * depth;  // of the first phase
  for (int y_phase = 0; y_phase < conv.y_phases; ++y_phase)
    for (int x_phase = 0; x_phase < conv.x_phases; ++x_phase, row += conv.out_channels * depth) {
      const PhaseAxis &y = conv.y[y_phase], &x = conv.x[x_phase];
      T* to = row + first_in + i;
      if (first_in + i < tap_depth)
        for (int ty = 0; ty < y.gather.taps; ++ty)
          for (int tx = 0; tx < x.gather.taps; ++tx, to += tap_depth)
            *to = column[((y.first_tap + ty * y.tap_stride) * x_kernel + x.first_tap + tx * x.tap_stride) * kPackIn];
      const int64_t end = y.gather.taps * x.gather.taps * tap_depth;
      const int left = blockIdx.x == 0 ? static_cast<int>(end % kStep<T>) : 0;  // of the last step
      if (left > 0 && i < kStep<T> - left) row[end + i] = from_float<T>(0.0f);
    }
}

// ---- Geometry.

constexpr int64_t kMaxAxis = int64_t{1} << 30, kMaxChannels = int64_t{1} << 18;

bool fits(int64_t size) { return size >= 0 && size < kMaxAxis; }

template <typename Axis>
bool axis_fits(const Axis& axis) {
  return fits(axis.input) && fits(axis.output) && fits(axis.kernel) && fits(axis.padding);
}

int to_int(int64_t v) { return static_cast<int>(v); }

PhaseAxis phase_axis(const DeconvolutionAxis& axis, int64_t phase) {
  const GatherAxis gather{to_int(axis.input),           to_int(axis.positions(phase)), 1,
                          to_int(axis.shift(phase, 0)), to_int(axis.taps(phase)),      -1};
  return {gather, to_int(axis.first_tap(phase)), to_int(axis.stride), to_int(phase), to_int(axis.stride)};
}

PhaseAxis phase_axis(const ConvolutionAxis& axis) {
  const GatherAxis gather{to_int(axis.input),    to_int(axis.output), to_int(axis.stride),
                          -to_int(axis.padding), to_int(axis.kernel), to_int(axis.dilation)};
  return {gather, 0, 1, 0, 1};
}

}  // namespace

std::optional<PhasedConvolution> phased(const Deconvolution& conv) {
  constexpr int kMost = PhasedConvolution::kMaxPhases;
  if (!axis_fits(conv.y) || !axis_fits(conv.x) || conv.y.phases() > kMost || conv.x.phases() > kMost) return {};
  PhasedConvolution result{conv.batch,
                           conv.in_channels,
                           conv.out_channels,
                           to_int(conv.y.output),
                           to_int(conv.x.output),
                           to_int(conv.y.phases()),
                           to_int(conv.x.phases()),
                           {},
                           {}};
  for (int p = 0; p < result.y_phases; ++p) result.y[p] = phase_axis(conv.y, p);
  for (int p = 0; p < result.x_phases; ++p) result.x[p] = phase_axis(conv.x, p);
  return result;
}

std::optional<PhasedConvolution> phased(const Convolution& conv) {
  if (!axis_fits(conv.y) || !axis_fits(conv.x)) return {};
  return PhasedConvolution{
      conv.batch, conv.in_channels,     conv.out_channels,   to_int(conv.y.output), to_int(conv.x.output), 1,
      1,          {phase_axis(conv.y)}, {phase_axis(conv.x)}};
}

const char* why_not_tensor_cores(DType dtype, const PhasedConvolution& conv) {
  if (dtype != DType::float32 && conv.in_channels % 2 != 0 && conv.in_channels >= kFewChannels)
    return "an odd number of input channels, and more than 15";
  if (conv.in_channels >= kMaxChannels || conv.out_channels >= kMaxChannels) return "more than 2^18 channels";
  if (!fits(static_cast<int64_t>(conv.y[0].gather.positions) * conv.x[0].gather.positions))
    return "an image of more than 2^30 pixels";
  const int64_t y_kernel = kernel_size(conv.y, conv.y_phases), x_kernel = kernel_size(conv.x, conv.x_phases);
  if (y_kernel > kMostTapsOfAxis || x_kernel > kMostTapsOfAxis || y_kernel * x_kernel > kMostTaps)
    return "a kernel of more than 64 taps, or more than 16 along an axis";
  return nullptr;
}

PackedWeightShape packed_weight_shape(DType dtype, const PhasedConvolution& conv) {
  PackedWeightShape shape{};
  dispatch(dtype, [&](auto zero) { shape = packed_shape<decltype(zero)>(conv); });
  return shape;
}

int64_t packed_weight_numel(DType dtype, const PhasedConvolution& conv) {
  return conv.y_phases * conv.x_phases * conv.out_channels * packed_weight_shape(dtype, conv).depth;
}

void pack_weight(DType dtype, const PhasedConvolution& conv, const void* weight, const WeightStrides& strides,
                 void* packed, Stream stream) {
  const int y_kernel = kernel_size(conv.y, conv.y_phases), x_kernel = kernel_size(conv.x, conv.x_phases);
  if (packed_weight_numel(dtype, conv) == 0) return;
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    auto in_packs = [](int64_t elements) { return elements % kPack<T> == 0; };
    const bool wide = strides.x == 1 && strides.y == x_kernel && in_packs(y_kernel * x_kernel) &&
                      in_packs(strides.in) && in_packs(strides.out) && is_aligned(weight);
    const dim3 grid(static_cast<unsigned>(ceil_div(tap_depth<T>(conv), kPackIn)),
                    static_cast<unsigned>(ceil_div(conv.out_channels, kPackOut)));
    launch(pack_weight_kernel<T>, grid, dim3(kThreads), kPackOut * pack_pitch<T>(y_kernel * x_kernel) * sizeof(T),
           stream, conv, static_cast<const T*>(weight), strides, y_kernel, x_kernel, wide, tap_depth<T>(conv),
           packed_shape<T>(conv).depth, static_cast<T*>(packed));
  });
}

bool takes_any_tile(DType dtype, const PhasedConvolution& conv) {
  return conv.in_channels % (dtype == DType::float32 ? kPack<float> : kPack<__half>) == 0;
}

GemmTileChoice choose_tile(const PhasedConvolution& conv, int multiprocessors) {
  // Multiply-adds of the busiest multiprocessor, by how well a tile of its shape feeds the tensor cores: a warp reads 4
  // KB of shared memory for 32 mma in the first two, 3 KB for 16 in the third and 2 KB for 8 in the last.
  constexpr double kCostOfShape[] = {1.0, 1.0, 1.15, 1.5};
  if (conv.in_channels % 8 != 0) return conv.in_channels < kFewChannels ? kTileOfFewChannels : kTileOfNarrowCopies;
  GemmTileChoice best = GemmTileChoice::m64n64;
  double least = 0;
  for (int64_t i = 0; i < kGemmTileChoices; ++i) {
    const auto choice = static_cast<GemmTileChoice>(i);
    with_tile(choice, [&](auto tile) {
      const int64_t tiles = statistics_splits(conv, choice) * ceil_div(conv.out_channels, tile.kN);
      const double cost = ceil_div(tiles, multiprocessors) * tile.kM * tile.kN * kCostOfShape[i];
      if (i == 0 || cost < least) least = cost, best = choice;
    });
  }
  return best;
}

GemmTileChoice choose_tile(const PhasedConvolution& conv) { return choose_tile(conv, multiprocessor_count()); }

int64_t statistics_splits(const PhasedConvolution& conv, GemmTileChoice choice) {
  return with_tile(
      choice, [&](auto tile) -> int64_t { return ceil_div(most_rows(conv), tile.kM) * conv.y_phases * conv.x_phases; });
}

void convolution_tensor_core(DType dtype, const PhasedConvolution& conv, GemmTileChoice choice, const void* input,
                             const void* packed, const ChannelAffine& affine, Activation activation,
                             float negative_slope, void* output, float* moments, Stream stream) {
  if (most_rows(conv) == 0 || conv.out_channels == 0) return;
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    auto run = [&](auto tile, auto kernel) {
      using Tile = decltype(tile);
      const int64_t blocks = statistics_splits(conv, choice) * ceil_div(conv.out_channels, Tile::kN);
      constexpr int kSharedBytes = std::max(EpilogueLayout<T, Tile>::kBytes, Tile::kPipelineBytes);
      prefer_shared_memory(kernel);
      launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads), kSharedBytes, stream, conv,
             static_cast<const T*>(input), static_cast<const T*>(packed), packed_shape<T>(conv).depth,
             Epilogue<T>{affine, activation, negative_slope, static_cast<T*>(output),
                         reinterpret_cast<Moments<float>*>(moments)});
    };
    if (takes_any_tile(dtype, conv))
      return with_tile(choice, [&](auto tile) {
        using Tile = decltype(tile);
        run(tile, convolution_kernel<T, Tile, ImageLoader<T, Tile, 16>>);
      });
    if (choice != (has_few_channels<T>(conv) ? kTileOfFewChannels : kTileOfNarrowCopies))
      throw std::logic_error("genimg_fast: this tile copies 16 bytes at a time");
    if (has_few_channels<T>(conv))
      run(TileOfFewChannels{}, convolution_kernel<T, TileOfFewChannels, FewChannelsLoader<T, TileOfFewChannels>>);
    else
      run(Tile64x64{}, convolution_kernel<T, Tile64x64, ImageLoader<T, Tile64x64, 4>>);
  });
}

}  // namespace genimg_fast::cuda
