// SPDX-License-Identifier: MIT
// The main loop of every convolution on tensor cores: out[row][column] = sum over taps and channels of
// image[pixel(row, tap)][channel] * weight[column][tap][channel].
//
//              depth: tap 0, channels 0..C, tap 1, ...                a block: kM x kN of out, kWarpsM x kWarpsN warps
//            +----------------------------+
//     rows   | image, gathered pixel by   |   x   weight, packed    a step: 64 bytes of depth of both operands
//            | pixel (zeros beyond it)    |       [column][depth]   (32 half or bfloat16 channels, or 16 of tf32)
//            +----------------------------+
//
// Steps go through kStages buffers of shared memory: while one is multiplied the next three are under way (cp.async),
// and one barrier a step both publishes what has landed and frees what has been read.  Both operands are rows of 64
// bytes, so that one ldmatrix serves all types: a matrix of 8 rows x 16 bytes is 8 x 8 half or 8 x 4 tf32 values, and
// either way the fragment that mma wants.
//
// Shared memory without bank conflicts: two rows share a line of 128 bytes (all 32 banks), and a row's four chunks of
// 16 bytes are permuted by the number of its line, so that chunk k of 8 consecutive rows, which ldmatrix reads at once,
// covers the 32 banks once.  So do the chunks that 8 consecutive threads copy.
#pragma once
#include "cuda/convolution_tensor_core_kernel.h"
#include "cuda/platform.cuh"
#include "cuda/ptx.cuh"

namespace genimg_fast::cuda {

constexpr int kStages = 4;
constexpr int kStepBytes = 64;
constexpr int kChunk = 16;  // bytes
constexpr int kStepChunks = kStepBytes / kChunk;

// Elements of depth in a step.
template <typename T>
constexpr int kStep = kStepBytes / static_cast<int>(sizeof(T));

template <int kM_, int kN_, int kWarpsM_, int kWarpsN_>
struct GemmTile {
  static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;  // a warp's part of the tile
  static constexpr int kFragmentsM = kWarpM / 16, kFragmentsN = kWarpN / 8;
  static constexpr int kStageBytes = (kM + kN) * kStepBytes;
  static constexpr int kPipelineBytes = kStages * kStageBytes;
  static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0, "ldmatrix_x4 loads 16 rows of either operand");

  using Accumulators = float[kFragmentsM][kFragmentsN][4];

  // The tile's row and column of acc[m][n][i] of this thread (see ptx.cuh).
  __device__ __forceinline__ static int row(int m, int i) {
    return static_cast<int>(threadIdx.x) / 32 / kWarpsN * kWarpM + m * 16 + i / 2 * 8 + threadIdx.x % 32 / 4;
  }
  __device__ __forceinline__ static int column(int n, int i) {
    return static_cast<int>(threadIdx.x) / 32 % kWarpsN * kWarpN + n * 8 + threadIdx.x % 4 * 2 + i % 2;
  }
};

// Where chunk `chunk` of row `row` lies in a buffer of rows of kStepBytes, in bytes.
__device__ __forceinline__ int swizzled(int row, int chunk) {
  return row * kStepBytes + (chunk ^ (row / 2 % kStepChunks)) * kChunk;
}

// ---- What is copied.  A loader keeps the place of the next step and copies its part of it; it is called for one step
// after the other.  Thread t copies chunk t % 4 of rows t / 4, t / 4 + kThreads / 4, ...

// One row of the left operand.
struct GatherRow {
  int64_t image;  // number of the image, or -1: a row beyond the last
  int y, x;       // its position (GatherAxis)
};

// Rows of the left operand.  kCopyBytes: 16 where the bytes of a pixel are a multiple of that, else 4.
template <typename T, typename Tile, int kCopyBytes>
class ImageLoader {
 public:
  // row_at(r): the GatherRow of the tile's row r
  template <typename RowAt>
  __device__ __forceinline__ ImageLoader(const T* image, int64_t channels, const GatherAxis& y_axis,
                                         const GatherAxis& x_axis, const RowAt& row_at)
      : image_(reinterpret_cast<const char*>(image)),
        pixel_bytes_(static_cast<int>(channels * sizeof(T))),
        y_axis_(y_axis),
        x_axis_(x_axis) {
    for (int i = 0; i < kRows; ++i) {
      const GatherRow row = row_at(static_cast<int>(threadIdx.x) / kStepChunks + i * kRowsApart);
      y_[i] = row.image < 0 ? kOutside : row.y * y_axis.step + y_axis.origin;
      x_[i] = row.x * x_axis.step + x_axis.origin;
      pixel_[i] = (row.image * y_axis.size + y_[i]) * x_axis.size + x_[i];
    }
  }

  __device__ __forceinline__ void copy_step(unsigned char* stage) {
    const int dy = tap_y_ * y_axis_.tap_step, dx = tap_x_ * x_axis_.tap_step;
    const int byte = step_byte_ + threadIdx.x % kStepChunks * kChunk;
    const int64_t shift = static_cast<int64_t>(dy) * x_axis_.size + dx;
    for (int i = 0; i < kRows; ++i) {
      const int y = y_[i] + dy, x = x_[i] + dx;
      const bool inside = y >= 0 && y < y_axis_.size && x >= 0 && x < x_axis_.size;
      const char* from = image_ + (pixel_[i] + shift) * pixel_bytes_ + byte;
      unsigned char* to = stage + swizzled(threadIdx.x / kStepChunks + i * kRowsApart, threadIdx.x % kStepChunks);
      for (int b = 0; b < kChunk; b += kCopyBytes) {
        const bool valid = inside && byte + b < pixel_bytes_;
        cp_async<kCopyBytes>(to + b, valid ? from + b : image_, valid);
      }
    }
    step_byte_ += kStepBytes;
    if (step_byte_ < pixel_bytes_) return;
    step_byte_ = 0;
    if (++tap_x_ < x_axis_.taps) return;
    tap_x_ = 0;
    ++tap_y_;
  }

 private:
  static constexpr int kRowsApart = Tile::kThreads / kStepChunks;
  static constexpr int kRows = Tile::kM / kRowsApart;
  static constexpr int kOutside = -(1 << 30);  // no tap leads back from there

  const char* image_;
  int pixel_bytes_;
  const GatherAxis &y_axis_, &x_axis_;
  int y_[kRows], x_[kRows];
  int64_t pixel_[kRows];
  int tap_y_ = 0, tap_x_ = 0, step_byte_ = 0;
};

// Rows of the right operand: weight[columns][depth], depth a whole number of steps, 16-byte aligned.
template <typename T, typename Tile>
class WeightLoader {
 public:
  __device__ __forceinline__ WeightLoader(const T* weight, int64_t depth, int64_t first_column, int64_t columns)
      : next_(reinterpret_cast<const char*>(weight + (first_column + threadIdx.x / kStepChunks) * depth) +
              threadIdx.x % kStepChunks * kChunk),
        any_(reinterpret_cast<const char*>(weight)),
        row_bytes_(depth * static_cast<int64_t>(sizeof(T))),
        columns_left_(columns - first_column - threadIdx.x / kStepChunks) {}

  __device__ __forceinline__ void copy_step(unsigned char* stage) {
    for (int i = 0; i < kRows; ++i) {
      const int row = threadIdx.x / kStepChunks + i * kRowsApart;
      if (Tile::kN % kRowsApart != 0 && row >= Tile::kN) break;
      const bool valid = i * kRowsApart < columns_left_;
      cp_async<kChunk>(stage + swizzled(row, threadIdx.x % kStepChunks),
                       valid ? next_ + i * kRowsApart * row_bytes_ : any_, valid);
    }
    next_ += kStepBytes;
  }

 private:
  static constexpr int kRowsApart = Tile::kThreads / kStepChunks;
  static constexpr int kRows = (Tile::kN + kRowsApart - 1) / kRowsApart;

  const char *next_, *any_;
  int64_t row_bytes_, columns_left_;
};

// ---- What is multiplied.

template <typename T>
__device__ __forceinline__ void multiply_add(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (sizeof(T) == 4)
    mma_m16n8k8_tf32(acc, a, b);
  else
    mma_m16n8k16<T>(acc, a, b);
}

// acc += the product of one step, which lies at `stage`: kM rows of the left operand, then kN of the right one.
template <typename T, typename Tile>
__device__ __forceinline__ void multiply_step(const unsigned char* stage, typename Tile::Accumulators& acc) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int matrix = lane / 8;  // of the four that ldmatrix loads; the lane gives the address of its row lane % 8
  const int a_row = warp / Tile::kWarpsN * Tile::kWarpM + matrix % 2 * 8 + lane % 8;
  const int b_row = warp % Tile::kWarpsN * Tile::kWarpN + matrix / 2 * 8 + lane % 8;
  const unsigned char* b_stage = stage + Tile::kM * kStepBytes;
#pragma unroll
  for (int k = 0; k < kStepChunks; k += 2) {
    uint32_t b[Tile::kFragmentsN][2];
#pragma unroll
    for (int n = 0; n < Tile::kFragmentsN; n += 2) {
      uint32_t pair[4];
      ldmatrix_x4(pair, b_stage + swizzled(b_row + n * 8, k + matrix % 2));
      b[n][0] = pair[0], b[n][1] = pair[1], b[n + 1][0] = pair[2], b[n + 1][1] = pair[3];
    }
#pragma unroll
    for (int m = 0; m < Tile::kFragmentsM; ++m) {
      uint32_t a[4];
      ldmatrix_x4(a, stage + swizzled(a_row + m * 16, k + matrix / 2));
      if constexpr (sizeof(T) == 4)  // the weight was rounded when it was packed
        for (uint32_t& value : a) value = to_tf32(__uint_as_float(value));
#pragma unroll
      for (int n = 0; n < Tile::kFragmentsN; ++n) multiply_add<T>(acc[m][n], a, b[n]);
    }
  }
}

// acc += the whole product.  shared: [Tile::kPipelineBytes], free again afterwards.  All threads of the block.
template <typename T, typename Tile, typename LeftLoader, typename RightLoader>
__device__ __forceinline__ void implicit_gemm(int steps, LeftLoader& left, RightLoader& right, unsigned char* shared,
                                              typename Tile::Accumulators& acc) {
  auto copy = [&](int step) {
    unsigned char* stage = shared + step % kStages * Tile::kStageBytes;
    if (step < steps) {
      left.copy_step(stage);
      right.copy_step(stage + Tile::kM * kStepBytes);
    }
    cp_async_commit();  // of nothing, beyond the last step, so that the count of groups stays that of steps
  };
  for (int step = 0; step < kStages - 1; ++step) copy(step);
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();  // this thread's part of `step` has landed
    __syncthreads();               // everybody's has, and everybody has read the stage that is filled next
    copy(step + kStages - 1);
    multiply_step<T, Tile>(shared + step % kStages * Tile::kStageBytes, acc);
  }
  cp_async_wait<0>();
  __syncthreads();
}

}  // namespace genimg_fast::cuda
