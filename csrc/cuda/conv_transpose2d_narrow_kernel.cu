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
// rows, 1.33 times the pixels and 1.5 times the 6.3 MFLOP.  The bytes take 36 ns at 4.3 TB/s.  Two stages are the whole
// depth of 64 channels, and two blocks a multiprocessor overlap their loads with each other's sums.  Counted in the
// machine code, an output takes 45 instructions (with tanh; of any other geometry 115) and a patch about 11,000 of a
// warp, which is what a multiprocessor issues in 1.9 times the time that the patch's bytes take.  Expected: 50 % of the
// limit.  Outcome: not yet measured.
//
// Shared memory: a patch writes 12288 floats and reads 9216.  Products lie column by column, pitch = 4 banks modulo 32:
// a fragment is written to 32 different banks, and read from as many (k4s2p1, a pixel a lane).  Of any other geometry
// two lanes meet in a bank in channels_last, and four in NCHW, where packs of half types begin 4 pixels apart; that is
// left so, since the instructions around a read take longer.
//
// The output is written in the order that is wanted: in NCHW it would else take one more launch.  The two differ in
// numbers alone, planes and the channels of a plane, which come at run time.  A template parameter would save no
// register, since the main loop takes the most, and at best 4 % of the instructions, and double the code.
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
  int planes, plane_channels;  // of the output: [image][plane][y][x][channel of the plane]
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

// Of an output along one axis, the first of its taps, which are every stride-th of the kernel, and the input pixel that
// it sees, counted from the patch's first.  Each further tap sees the pixel before.
struct FirstTap {
  int tap, pixel;

  __device__ __forceinline__ FirstTap(const PatchAxis& axis, int patch, int output_in_patch) {
    const int padded = output_in_patch + axis.padding;
    tap = padded % axis.stride;
    pixel = patch * axis.positions - axis.first_pixel(patch) + padded / axis.stride;
  }
  // That of the next output, without a division.
  __device__ __forceinline__ void advance(const PatchAxis& axis) {
    if (++tap < axis.stride) return;
    tap = 0;
    ++pixel;
  }
};

// Those of its taps that see a pixel of the image.  The others give nothing and are left out.
struct LiveTaps {
  int first, count, pixel;

  __device__ __forceinline__ LiveTaps(const PatchAxis& axis, int patch, const FirstTap& nearest) {
    const int last_pixel = axis.input - 1 - axis.first_pixel(patch);
    const int skipped = nearest.pixel > last_pixel ? nearest.pixel - last_pixel : 0;
    first = nearest.tap + skipped * axis.stride;
    count = axis.kernel / axis.stride + (nearest.tap < axis.kernel % axis.stride) - skipped;
    pixel = nearest.pixel - skipped;
    if (count > pixel + 1) count = pixel + 1;
  }
};

// Sums up the products of a patch and stores its outputs; any geometry.  products: [kColumns][kPitch]; affine:
// [channels] [scale, shift].  All threads of the block.
template <typename T, int kColumns>
__device__ __forceinline__ void store_patch(const PatchAxis& y, const PatchAxis& x, int patch_y, int patch_x,
                                            int64_t image, const NarrowOperands<T>& operands, const float* products,
                                            const float* affine) {
  using Tile = NarrowTile<kColumns>;
  using Layout = NarrowLayout<kColumns>;
  const int planes = operands.planes, plane_channels = operands.plane_channels, channels = planes * plane_channels;
  // A thread makes 16 bytes of a row of a plane, or one element where rows do not begin at multiples of that.  Patches
  // do (choose_patches).
  const int first_x = x.first_output(patch_x), row_elements = x.outputs(patch_x) * plane_channels;
  const bool wide = x.output * static_cast<int64_t>(plane_channels) % kPack<T> == 0;
  const int at_once = wide ? kPack<T> : 1, packs = row_elements / at_once, rows_of_plane = y.outputs(patch_y);
  const int next_column = x.stride * channels * Layout::kPitch - 1;  // from the product of a tap to the next tap's
  const int next_row = y.stride * x.kernel * channels * Layout::kPitch - x.pixels;
  for (int e = threadIdx.x; e < planes * rows_of_plane * packs; e += Tile::kThreads) {
    const int plane = e / packs / rows_of_plane, out_y = e / packs % rows_of_plane, first = e % packs * at_once;
    const int first_channel = plane * plane_channels;
    int c = first_channel + first % plane_channels;
    const LiveTaps rows(y, patch_y, FirstTap(y, patch_y, out_y));
    FirstTap first_tap(x, patch_x, first / plane_channels);
    Pack<T, kPack<T>> values;
#pragma unroll
    for (int k = 0; k < kPack<T>; ++k) {
      if (k >= at_once) break;
      const LiveTaps columns(x, patch_x, first_tap);
      const float* product = products + ((rows.first * x.kernel + columns.first) * channels + c) * Layout::kPitch +
                             rows.pixel * x.pixels + columns.pixel;
      float sum = 0;
#pragma unroll 1  // of the two taps that there usually are: more would only take registers
      for (int ty = 0; ty < rows.count; ++ty)
#pragma unroll 1
        for (int tx = 0; tx < columns.count; ++tx) sum += product[ty * next_row + tx * next_column];
      values.lane[k] = from_float<T>(
          activate(operands.activation, operands.negative_slope, sum * affine[2 * c] + affine[2 * c + 1]));
      if (++c == first_channel + plane_channels) {
        c = first_channel;
        first_tap.advance(x);
      }
    }
    const int64_t row = (image * planes + plane) * y.output + y.first_output(patch_y) + out_y;
    T* to = operands.output + (row * x.output + first_x) * plane_channels + first;
    if (wide)
      store_16_bytes(to, &values);
    else
      *to = values.lane[0];
  }
}

// The same for kernel 4, stride 2, padding 1, where an output is the sum of 2 x 2 products whose places are known to
// the compiler.  A thread makes the 2 x 2 outputs around a pixel, from the 16 products a channel that no other thread
// reads:
//
//     output rows 2 y and 2 y + 1 of pixel y:     taps 1 of pixel y and 3 of pixel y - 1;     2 of y and 0 of y + 1
template <typename T, int kChannels>
__device__ __forceinline__ void store_patch_k4s2p1(const PatchAxis& y, const PatchAxis& x, int patch_y, int patch_x,
                                                   int64_t image, const NarrowOperands<T>& operands,
                                                   const float* products, const float* affine) {
  constexpr int kPitch = NarrowLayout<16 * kChannels>::kPitch;
  const int first_y = y.first_output(patch_y), first_x = x.first_output(patch_x);
  const int y_offset = first_y / 2 - y.first_pixel(patch_y), x_offset = first_x / 2 - x.first_pixel(patch_x);
  const int width = x.outputs(patch_x) / 2, positions = y.outputs(patch_y) / 2 * width;
  for (int p = threadIdx.x; p < positions; p += NarrowTile<16 * kChannels>::kThreads) {
    const int pixel_y = y_offset + p / width, pixel_x = x_offset + p % width;  // counted from the patch's first
    const float* at = products + pixel_y * x.pixels + pixel_x;
    // Pixels that lie beyond the patch lie beyond the image.
    const bool has_y[] = {pixel_y > 0, true, pixel_y + 1 < y.pixels},
               has_x[] = {pixel_x > 0, true, pixel_x + 1 < x.pixels};
    float values[2][2][kChannels];  // [row][column][channel]
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
#pragma unroll
      for (int a = 0; a < 2; ++a)
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          float sum = 0;
#pragma unroll
          for (int t = 0; t < 4; ++t) {
            const int ky = 1 - a + t / 2 * 2, kx = 1 - b + t % 2 * 2;  // the taps
            const int dy = (a + 1 - ky) / 2, dx = (b + 1 - kx) / 2;    // what they see
            const float* product = at + ((ky * 4 + kx) * kChannels + c) * kPitch + dx + dy * x.pixels;
            sum += has_y[dy + 1] && has_x[dx + 1] ? *product : 0.0f;
          }
          values[a][b][c] =
              activate(operands.activation, operands.negative_slope, sum * affine[2 * c] + affine[2 * c + 1]);
        }
    // Pairs of elements, which begin at multiples of a pair since rows and columns are even.
    auto store = [&](int64_t to, float first, float second) {
      *reinterpret_cast<Pack<T, 2>*>(operands.output + to) = {from_float<T>(first), from_float<T>(second)};
    };
    const int out_y = first_y + p / width * 2, out_x = first_x + p % width * 2;
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      if (operands.plane_channels == 1) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c)
          store(((image * kChannels + c) * y.output + out_y + a) * x.output + out_x, values[a][0][c], values[a][1][c]);
      } else {
        const int64_t row = ((image * y.output + out_y + a) * x.output + out_x) * kChannels;
#pragma unroll
        for (int e = 0; e < 2 * kChannels; e += 2)
          store(row + e, values[a][e / kChannels][e % kChannels], values[a][(e + 1) / kChannels][(e + 1) % kChannels]);
      }
    }
  }
}

template <typename T, int kColumns, bool kK4S2P1>
__global__ void __launch_bounds__(NarrowTile<kColumns>::kThreads, 2)
    narrow_kernel(PatchAxis y, PatchAxis x, NarrowOperands<T> operands) {
  using Tile = NarrowTile<kColumns>;
  using Layout = NarrowLayout<kColumns>;
  GENIMG_FAST_SHARED(unsigned char, shared);
  const int patch_x = static_cast<int>(blockIdx.x % x.patches);
  const int patch_y = static_cast<int>(blockIdx.x / x.patches % y.patches);
  const int64_t image = blockIdx.x / x.patches / y.patches;
  const int channels = operands.planes * operands.plane_channels;

  auto pixel_at = [&](int r) {  // a patch at the end of the image has pixels beyond it, which are zeros
    const int row = r / x.pixels;
    return GatherRow{row < y.pixels ? image : -1, y.first_pixel(patch_y) + row, x.first_pixel(patch_x) + r % x.pixels};
  };
  const GatherAxis y_axis{y.input, y.pixels, 1, 0, 1, 0};
  const GatherAxis x_axis{x.input, x.pixels, 1, 0, 1, 0};
  typename Tile::Accumulators acc = {};
  ImageLoader<T, Tile, kChunk> pixels(operands.input, operands.in_channels, y_axis, x_axis, pixel_at);
  WeightLoader<T, Tile> weight(operands.weight, operands.padded_channels, y.kernel * x.kernel * channels);
  await_previous_kernel();
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

  if constexpr (kK4S2P1)
    store_patch_k4s2p1<T, kColumns / 16>(y, x, patch_y, patch_x, image, operands, products, affine);
  else
    store_patch<T, kColumns>(y, x, patch_y, patch_x, image, operands, products, affine);
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

bool is_k4s2p1(const DeconvolutionAxis& conv) {
  return conv.kernel == 4 && conv.stride == 2 && conv.padding == 1 && conv.output == 2 * conv.input;
}

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
                             MemoryOrder order, Stream stream) {
  PatchAxis y, x;
  if (!choose_patches(conv, &y, &x) || conv.batch == 0) return;
  const bool nchw = order == MemoryOrder::nchw;
  const int channels = static_cast<int>(conv.out_channels);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const NarrowOperands<T> operands{conv.in_channels,
                                     (conv.in_channels + kStep<T> - 1) / kStep<T> * kStep<T>,
                                     nchw ? channels : 1,
                                     nchw ? 1 : channels,
                                     static_cast<const T*>(input),
                                     static_cast<const T*>(packed),
                                     affine,
                                     activation,
                                     negative_slope,
                                     static_cast<T*>(output)};
    auto launch_kernel = [&](auto columns, auto k4s2p1) {
      constexpr int kColumns = decltype(columns)::value;
      const auto kernel = narrow_kernel<T, kColumns, decltype(k4s2p1)::value>;
      prefer_shared_memory(kernel);
      launch(kernel, dim3(static_cast<unsigned>(conv.batch * y.patches * x.patches)),
             dim3(NarrowTile<kColumns>::kThreads), NarrowLayout<kColumns>::kSharedBytes, stream, y, x, operands);
    };
    auto run = [&](auto columns) {
      is_k4s2p1(conv.y) && is_k4s2p1(conv.x) ? launch_kernel(columns, std::true_type{})
                                             : launch_kernel(columns, std::false_type{});
    };
    const int64_t columns = conv.y.kernel * conv.x.kernel * conv.out_channels;
    if (columns <= 16) return run(std::integral_constant<int, 16>{});
    if (columns <= 32) return run(std::integral_constant<int, 32>{});
    if (columns <= 48) return run(std::integral_constant<int, 48>{});
    run(std::integral_constant<int, 64>{});
  });
}

}  // namespace genimg_fast::cuda
