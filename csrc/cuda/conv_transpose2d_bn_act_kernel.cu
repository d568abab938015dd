// SPDX-License-Identifier: MIT
// Transposed convolution on CUDA as one implicit GEMM a phase (common/deconvolution.h), epilogue in registers.
//
// Plan: the plain kernel, for every dtype, stride and memory order, and the yardstick of faster ones.  A block of 256
// threads makes a tile of 64 output positions of one phase by 64 output channels; a thread makes 4 x 4 of it.  Per step
// 16 values of the depth (tap, input channel) are gathered into shared memory for both operands, so each value fetched
// is used 64 times.  FLOPs are those of the live taps alone; sums are float FMAs, so the limit is the FP32 rate and not
// that of the tensor cores.
#include "cuda/conv_transpose2d_bn_act_kernel.h"

#include <algorithm>

#include "cuda/ptx.cuh"

namespace genimg_fast::cuda {
namespace {

constexpr int kTile = 64;      // rows and columns of a block's tile
constexpr int kStep = 16;      // depth per step
constexpr int kPerThread = 4;  // rows and columns of a thread's part
constexpr int kPitch = kTile + 1;

// Where an output position of a phase lies, and which input position its taps count from.
struct Position {
  int64_t n, j, i;
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    conv_transpose2d_kernel(Deconvolution conv, const T* input, ImageStrides in, const T* weight, ChannelAffine affine,
                            Activation activation, float negative_slope, T* output, ImageStrides out) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(float, shared);
  float* a = shared;                   // [kStep][kPitch]: a[k][row]
  float* b = shared + kStep * kPitch;  // [kStep][kPitch]: b[k][column]

  const int64_t phase = blockIdx.x % conv.phases(), py = phase / conv.x.phases(), px = phase % conv.x.phases();
  const int64_t rows = conv.rows(phase), first_row = blockIdx.x / conv.phases() * kTile;
  if (first_row >= rows) return;  // phases differ in size by a row or a column
  const int64_t first_channel = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t height = conv.y.positions(py), width = conv.x.positions(px);
  const int64_t x_taps = conv.x.taps(px), depth = conv.depth(phase), kernel_size = conv.y.kernel * conv.x.kernel;
  auto position = [&](int64_t row) { return Position{row / (height * width), row / width % height, row % width}; };

  float sum[kPerThread][kPerThread] = {};
  const int thread_row = threadIdx.x / (kTile / kPerThread), thread_column = threadIdx.x % (kTile / kPerThread);
  for (int64_t first_k = 0; first_k < depth; first_k += kStep) {
    for (int e = threadIdx.x; e < kTile * kStep; e += kThreads) {
      const int k = e % kStep, r = e / kStep;
      const int64_t tap = (first_k + k) / conv.in_channels, c = (first_k + k) % conv.in_channels;
      const int64_t ty = tap / x_taps, tx = tap % x_taps;
      float av = 0, bv = 0;
      if (first_k + k < depth) {
        if (first_row + r < rows) {
          const Position p = position(first_row + r);
          const int64_t iy = p.j + conv.y.shift(py, ty), ix = p.i + conv.x.shift(px, tx);
          if (iy >= 0 && iy < conv.y.input && ix >= 0 && ix < conv.x.input)
            av = to_float(input[p.n * in.n + c * in.c + iy * in.y + ix * in.x]);
        }
        if (first_channel + r < conv.out_channels)
          bv = to_float(weight[(c * conv.out_channels + first_channel + r) * kernel_size +
                               conv.y.tap(py, ty) * conv.x.kernel + conv.x.tap(px, tx)]);
      }
      a[k * kPitch + r] = av;
      b[k * kPitch + r] = bv;
    }
    __syncthreads();
    for (int k = 0; k < kStep; ++k)
      for (int r = 0; r < kPerThread; ++r)
        for (int c = 0; c < kPerThread; ++c)
          sum[r][c] += a[k * kPitch + thread_row * kPerThread + r] * b[k * kPitch + thread_column * kPerThread + c];
    __syncthreads();
  }

  for (int c = 0; c < kPerThread; ++c) {
    const int64_t channel = first_channel + thread_column * kPerThread + c;
    if (channel >= conv.out_channels) break;
    float scale, shift;
    affine.at(channel, &scale, &shift);
    for (int r = 0; r < kPerThread; ++r) {
      const int64_t row = first_row + thread_row * kPerThread + r;
      if (row >= rows) break;
      const Position p = position(row);
      output[p.n * out.n + channel * out.c + (py + p.j * conv.y.stride) * out.y + (px + p.i * conv.x.stride) * out.x] =
          from_float<T>(activate(activation, negative_slope, sum[r][c] * scale + shift));
    }
  }
}

}  // namespace

void conv_transpose2d(DType dtype, const Deconvolution& conv, const void* input, ImageStrides input_strides,
                      const void* weight, const ChannelAffine& affine, Activation activation, float negative_slope,
                      void* output, ImageStrides output_strides, Stream stream) {
  int64_t most_rows = 0;
  for (int64_t phase = 0; phase < conv.phases(); ++phase) most_rows = std::max(most_rows, conv.rows(phase));
  if (most_rows == 0 || conv.out_channels == 0) return;
  auto tiles = [](int64_t n) { return (n + kTile - 1) / kTile; };
  const dim3 grid(static_cast<unsigned>(tiles(most_rows) * conv.phases()),  // along y and z it holds 65,535
                  static_cast<unsigned>(tiles(conv.out_channels)));
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(conv_transpose2d_kernel<T>, grid, dim3(kThreads), 2 * kStep * kPitch * sizeof(float), stream, conv,
           static_cast<const T*>(input), input_strides, static_cast<const T*>(weight), affine, activation,
           negative_slope, static_cast<T*>(output), output_strides);
  });
}

}  // namespace genimg_fast::cuda
