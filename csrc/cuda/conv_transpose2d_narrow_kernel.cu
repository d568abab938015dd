// SPDX-License-Identifier: MIT
// A transposed convolution to few channels (the image layer of a generator) on tensor cores, epilogue fused.
//
// As an implicit GEMM a phase it would have 3 columns and read the image once a phase and tap.  Here every pixel is
// multiplied by all taps at once, and what neighbouring pixels give the same output is added up in shared memory:
//
//     rows: a patch of input pixels     columns: taps x output channels (k4, 3 channels: 48)     depth: input channels
//
//        input pixel    o   o   o        a block: up to 256 pixels; the outputs that lie within reach of them alone
//        output       x x x x x x x      (the patch overlaps the next one by the reach of the kernel)
//
// Plan, DCGAN-64's 64-3 layer, bf16, per image: 152 KB of image in and out; 32 x 32 pixels are 6 patches of 8
// rows, 1.33 times the pixels and 1.5 times the 6.3 MFLOP.  Bound by memory (36 ns at 4.3 TB/s).  Two stages are the
// whole depth of 64 channels, and four blocks a multiprocessor overlap their loads with each other's sums.  Expected:
// 70 % of the limit; the sums in shared memory (12288 floats written, 9216 read a patch) come to about half the time of
// the loads. Products lie column by column, so that both lie in different banks: pitch = 4 banks modulo 32. Outcome:
// not yet measured.
#include "cuda/conv_transpose2d_narrow_kernel.h"

#include <algorithm>
#include <type_traits>

#include "cuda/implicit_gemm.cuh"

namespace genimg_fast::cuda {
namespace {

constexpr int kPixels = 256;  // of a patch
constexpr int kMostColumns = 64, kMostChannels = 4;

template <int kColumns>
using NarrowTile = GemmTile<kPixels, kColumns, 8, 1, 2>;

// One axis of the patches.  In int: the sums below divide often.
struct PatchAxis {
  int input, output, kernel, stride, padding;
  int lowest_shift;  // from a position to the first input pixel that it sees
  int positions;     // of a patch, in each phase
  int pixels;        // of a patch
  int patches;

  __device__ __forceinline__ int first_pixel(int patch) const {
    const int first = patch * positions + lowest_shift;
    return first < 0 ? 0 : first;
  }
  // Outputs of a patch: those of its positions in all phases lie side by side.
  __device__ __forceinline__ int first_output(int patch) const { return patch * positions * stride; }
  __device__ __forceinline__ int outputs(int patch) const {
    const int left = output - first_output(patch);
    return patch + 1 < patches ? positions * stride : left;
  }
};

template <typename T>
struct NarrowOperands {
  int64_t in_channels, padded_channels;
  int out_channels;
  const T *input, *weight;
  ChannelAffine affine;
  Activation activation;
  float negative_slope;
  T* output;
};

template <int kColumns>
struct NarrowLayout {
  using Tile = NarrowTile<kColumns>;
  static constexpr int kPitch = kPixels + 4;
  static constexpr int kAffineAt = kColumns * kPitch;  // in floats
  static constexpr int kBytes = (kAffineAt + 2 * kMostChannels) * static_cast<int>(sizeof(float));
  static constexpr int kSharedBytes = kBytes > Tile::kPipelineBytes ? kBytes : Tile::kPipelineBytes;
};

// The taps that an output sees along one axis: kernel positions first, first + stride, ... from the input pixels
// `pixel`, pixel - 1, ..., counted from the patch's first.  Pixels beyond the image give nothing: their taps are left
// out.
struct LiveTaps {
  int first, count, pixel;

  __device__ __forceinline__ LiveTaps(const PatchAxis& axis, int patch, int output_in_patch) {
    const int padded = output_in_patch % axis.stride + axis.padding;
    const int nearest = patch * axis.positions + output_in_patch / axis.stride + padded / axis.stride;
    const int skipped = nearest >= axis.input ? nearest - axis.input + 1 : 0;
    const int inside = nearest - skipped + 1;
    first = padded % axis.stride + skipped * axis.stride;
    count = first < axis.kernel ? (axis.kernel - first + axis.stride - 1) / axis.stride : 0;
    if (count > inside) count = inside;
    pixel = inside - 1 - axis.first_pixel(patch);
  }
};

template <typename T, int kColumns>
__global__ void __launch_bounds__(NarrowTile<kColumns>::kThreads, 2)
    narrow_kernel(PatchAxis y, PatchAxis x, NarrowOperands<T> operands) {
  using Tile = NarrowTile<kColumns>;
  using Layout = NarrowLayout<kColumns>;
  GENIMG_FAST_SHARED(unsigned char, shared);
  const int patch_x = static_cast<int>(blockIdx.x % x.patches);
  const int patch_y = static_cast<int>(blockIdx.x / x.patches % y.patches);
  const int64_t image = blockIdx.x / x.patches / y.patches;
  const int channels = operands.out_channels;

  auto pixel_at = [&](int r) {  // a patch at the end of the image has pixels beyond it, which are zeros
    const int row = r / x.pixels;
    return GatherRow{row < y.pixels ? image : -1, y.first_pixel(patch_y) + row, x.first_pixel(patch_x) + r % x.pixels};
  };
  const GatherAxis y_axis{y.input, y.pixels, 1, 0, 1, 0};
  const GatherAxis x_axis{x.input, x.pixels, 1, 0, 1, 0};
  typename Tile::Accumulators acc = {};
  ImageLoader<T, Tile, kChunk> pixels(operands.input, operands.in_channels, y_axis, x_axis, pixel_at);
  WeightLoader<T, Tile> weight(operands.weight, operands.padded_channels, y.kernel * x.kernel * channels);
  implicit_gemm<T, Tile>(static_cast<int>(operands.padded_channels / kStep<T>), pixels, weight, shared, acc);

  float* products = reinterpret_cast<float*>(shared);  // [kColumns][kPitch]
#pragma unroll
  for (int m = 0; m < Tile::kFragmentsM; ++m)
#pragma unroll
    for (int n = 0; n < Tile::kFragmentsN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) products[Tile::column(n, i) * Layout::kPitch + Tile::row(m, i)] = acc[m][n][i];
  float* affine = products + Layout::kAffineAt;  // [kMostChannels][scale, shift]
  if (threadIdx.x < channels) operands.affine.at(threadIdx.x, affine + 2 * threadIdx.x, affine + 2 * threadIdx.x + 1);
  __syncthreads();

  // A thread makes 16 bytes of a row of the output, or one element where rows do not begin at multiples of that.
  const int first_x = x.first_output(patch_x), row_elements = x.outputs(patch_x) * channels;
  const bool wide = x.output * static_cast<int64_t>(channels) % kPack<T> == 0 && first_x * channels % kPack<T> == 0 &&
                    row_elements % kPack<T> == 0;
  const int at_once = wide ? kPack<T> : 1, packs = row_elements / at_once;
  for (int e = threadIdx.x; e < y.outputs(patch_y) * packs; e += Tile::kThreads) {
    const int out_y = e / packs, first = e % packs * at_once;
    int out_x = first / channels, c = first % channels;
    const LiveTaps rows(y, patch_y, out_y);
    LiveTaps columns(x, patch_x, out_x);
    Pack<T, kPack<T>> values;
#pragma unroll
    for (int k = 0; k < kPack<T>; ++k) {
      if (k >= at_once) break;
      float sum = 0;
#pragma unroll 1  // of the two taps that there usually are: more would only take registers
      for (int ty = 0; ty < rows.count; ++ty)
#pragma unroll 1
        for (int tx = 0; tx < columns.count; ++tx) {
          const int tap = (rows.first + ty * y.stride) * x.kernel + columns.first + tx * x.stride;
          sum += products[(tap * channels + c) * Layout::kPitch + (rows.pixel - ty) * x.pixels + columns.pixel - tx];
        }
      values.lane[k] = from_float<T>(
          activate(operands.activation, operands.negative_slope, sum * affine[2 * c] + affine[2 * c + 1]));
      if (++c == channels) {
        c = 0;
        columns = LiveTaps(x, patch_x, ++out_x);
      }
    }
    const int64_t row = image * y.output + y.first_output(patch_y) + out_y;
    T* to = operands.output + (row * x.output + first_x) * channels + first;
    if (wide)
      *reinterpret_cast<Pack<T, kPack<T>>*>(to) = values;
    else
      *to = values.lane[0];
  }
}

// ---- Geometry.

// Every tap a phase of its own, for the packing.
PhasedConvolution taps_as_phases(const Deconvolution& conv) {
  PhasedConvolution result{conv.batch,
                           conv.in_channels,
                           conv.out_channels,
                           0,
                           0,
                           static_cast<int>(conv.y.kernel),
                           static_cast<int>(conv.x.kernel),
                           {},
                           {}};
  for (int t = 0; t < PhasedConvolution::kMaxPhases; ++t)
    result.y[t] = result.x[t] = PhaseAxis{GatherAxis{1, 1, 1, 0, 1, 0}, t, 1, 0, 1};
  return result;
}

// The input pixels that position 0 sees, in all phases: from lowest to highest.
struct Reach {
  int64_t lowest = 0, highest = 0;

  explicit Reach(const DeconvolutionAxis& conv) {
    for (int64_t phase = 0; phase < conv.phases(); ++phase)
      if (conv.taps(phase) > 0) {
        lowest = std::min(lowest, conv.shift(phase, conv.taps(phase) - 1));
        highest = std::max(highest, conv.shift(phase, 0));
      }
  }
  // What `positions` of them see of an image.
  int64_t pixels(const DeconvolutionAxis& conv, int64_t positions) const {
    return std::min(positions + highest - lowest, conv.input);
  }
};

PatchAxis patch_axis(const DeconvolutionAxis& conv, const Reach& reach, int64_t positions) {
  auto to_int = [](int64_t v) { return static_cast<int>(v); };
  return {to_int(conv.input),
          to_int(conv.output),
          to_int(conv.kernel),
          to_int(conv.stride),
          to_int(conv.padding),
          to_int(reach.lowest),
          to_int(positions),
          to_int(reach.pixels(conv, positions)),
          to_int((conv.positions(0) + positions - 1) / positions)};
}

// The patches that cover the outputs with fewest blocks.  Across, they cover a row or a multiple of 8 positions, so
// that their rows of outputs begin at multiples of 16 bytes.
bool choose_patches(const Deconvolution& conv, PatchAxis* y, PatchAxis* x) {
  const int64_t y_all = conv.y.positions(0), x_all = conv.x.positions(0);
  const Reach y_reach(conv.y), x_reach(conv.x);
  int64_t fewest = 0;
  for (int64_t x_positions = std::min<int64_t>(x_all, kPixels); x_positions > 0; --x_positions) {
    if (x_positions != x_all && x_positions % 8 != 0) continue;
    const int64_t rows = kPixels / x_reach.pixels(conv.x, x_positions);
    const int64_t y_positions = conv.y.input <= rows ? y_all : std::min(y_all, rows - y_reach.highest + y_reach.lowest);
    if (y_positions <= 0) continue;
    const int64_t patches = ((x_all + x_positions - 1) / x_positions) * ((y_all + y_positions - 1) / y_positions);
    if (fewest > 0 && patches >= fewest) continue;
    fewest = patches;
    *x = patch_axis(conv.x, x_reach, x_positions);
    *y = patch_axis(conv.y, y_reach, y_positions);
  }
  return fewest > 0;
}

}  // namespace

const char* why_not_narrow(DType dtype, const Deconvolution& conv) {
  const int64_t columns = conv.y.kernel * conv.x.kernel * conv.out_channels;
  if (conv.out_channels > kMostChannels) return "more than 4 output channels";
  if (columns > kMostColumns || std::max(conv.y.kernel, conv.x.kernel) > PhasedConvolution::kMaxPhases)
    return "more than 64 values of the kernel an input channel";
  if (conv.in_channels % (dtype == DType::float32 ? 4 : 8) != 0) return "input pixels that are no multiple of 16 bytes";
  PatchAxis y, x;
  return choose_patches(conv, &y, &x) ? nullptr : "a kernel that reaches further than a patch";
}

int64_t narrow_packed_numel(DType dtype, const Deconvolution& conv) {
  return packed_weight_numel(dtype, taps_as_phases(conv));
}

void narrow_pack_weight(DType dtype, const Deconvolution& conv, const void* weight, const WeightStrides& strides,
                        void* packed, Stream stream) {
  pack_weight(dtype, taps_as_phases(conv), weight, strides, packed, stream);
}

void conv_transpose2d_narrow(DType dtype, const Deconvolution& conv, const void* input, const void* packed,
                             const ChannelAffine& affine, Activation activation, float negative_slope, void* output,
                             Stream stream) {
  PatchAxis y, x;
  if (!choose_patches(conv, &y, &x) || conv.batch == 0) return;
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const NarrowOperands<T> operands{conv.in_channels,
                                     (conv.in_channels + kStep<T> - 1) / kStep<T> * kStep<T>,
                                     static_cast<int>(conv.out_channels),
                                     static_cast<const T*>(input),
                                     static_cast<const T*>(packed),
                                     affine,
                                     activation,
                                     negative_slope,
                                     static_cast<T*>(output)};
    auto run = [&](auto columns) {
      constexpr int kColumns = decltype(columns)::value;
      launch(narrow_kernel<T, kColumns>, dim3(static_cast<unsigned>(conv.batch * y.patches * x.patches)),
             dim3(NarrowTile<kColumns>::kThreads), NarrowLayout<kColumns>::kSharedBytes, stream, y, x, operands);
    };
    const int64_t columns = conv.y.kernel * conv.x.kernel * conv.out_channels;
    if (columns <= 16) return run(std::integral_constant<int, 16>{});
    if (columns <= 32) return run(std::integral_constant<int, 32>{});
    if (columns <= 48) return run(std::integral_constant<int, 48>{});
    run(std::integral_constant<int, 64>{});
  });
}

}  // namespace genimg_fast::cuda
