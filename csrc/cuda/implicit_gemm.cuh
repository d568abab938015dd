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
// Steps go through kStages buffers of shared memory: while one is multiplied the others are under way (cp.async), and
// one barrier a step both publishes what has landed and frees what has been read (of two stages, two barriers).  Both
// operands are rows of 64 bytes, so that one ldmatrix serves all types: a matrix of 8 rows x 16 bytes is 8 x 8 half or
// 8 x 4 tf32 values, and either way the fragment that mma wants.
//
// Shared memory without bank conflicts: two rows share a line of 128 bytes (all 32 banks), and a row's four chunks of
// 16 bytes are permuted by the number of its line, so that chunk k of 8 consecutive rows, which ldmatrix reads at once,
// covers the 32 banks once.  So do the chunks that 8 consecutive threads copy.
#pragma once
#include "cuda/convolution_tensor_core_kernel.h"
#include "cuda/platform.cuh"
#include "cuda/ptx.cuh"

namespace genimg_fast::cuda {

constexpr int kStepBytes = 64;
constexpr int kChunk = 16;  // bytes
constexpr int kStepChunks = kStepBytes / kChunk;

// Elements of depth in a step.
template <typename T>
constexpr int kStep = kStepBytes / static_cast<int>(sizeof(T));

template <int kM_, int kN_, int kWarpsM_, int kWarpsN_, int kStages_ = 4>
struct GemmTile {
  static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kStages = kStages_;
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

// Where chunk `chunk` of row `row` lies in a buffer of rows of kStepBytes, in bytes.  The same for `row` + any multiple
// of 8, but for that many rows: addresses below are made once, and constants are added to them.
__device__ __forceinline__ int swizzled(unsigned row, unsigned chunk) {
  return row * kStepBytes + (chunk ^ (row / 2 % kStepChunks)) * kChunk;
}

// ---- What is copied.  A loader keeps the place of the next step and copies its part of it; it is called for one step
// after the other.  Thread t copies chunk t % 4 of rows t / 4, t / 4 + kThreads / 4, ...

// One row of the left operand.
struct GatherRow {
  int64_t image;  // number of the image, or -1: a row beyond the last
  int y, x;       // its position (GatherAxis)
};

// Bit t: tap t of a row that begins at pixel `first` sees a pixel of the image.
__device__ __forceinline__ unsigned taps_inside(const GatherAxis& axis, int first) {
  unsigned bits = 0;
  for (int t = 0; t < axis.taps; ++t) {
    const int pixel = first + t * axis.tap_step;
    if (pixel >= 0 && pixel < axis.size) bits |= 1u << t;
  }
  return bits;
}

// Rows of the left operand.  kCopyBytes: 16 where the bytes of a pixel are a multiple of that, else 4.  At most 16 taps
// along an axis.
template <typename T, typename Tile, int kCopyBytes>
class ImageLoader {
 public:
  // Each tap begins a step.
  __device__ __forceinline__ static int steps(int taps, int64_t channels) {
    return taps * static_cast<int>((channels + kStep<T> - 1) / kStep<T>);
  }

  // row_at(r): the GatherRow of the tile's row r
  template <typename RowAt>
  __device__ __forceinline__ ImageLoader(const T* image, int64_t channels, const GatherAxis& y_axis,
                                         const GatherAxis& x_axis, const RowAt& row_at)
      : pixel_bytes_(static_cast<int>(channels * sizeof(T))),
        row_bytes_(static_cast<int64_t>(pixel_bytes_) * x_axis.size),
        y_axis_(y_axis),
        x_axis_(x_axis) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const GatherRow row = row_at(static_cast<int>(threadIdx.x) / kStepChunks + i * kRowsApart);
      const int y = row.y * y_axis.step + y_axis.origin, x = row.x * x_axis.step + x_axis.origin;
      first_[i] = reinterpret_cast<const char*>(image) + (row.image * y_axis.size + y) * row_bytes_ +
                  static_cast<int64_t>(x) * pixel_bytes_ + threadIdx.x % kStepChunks * kChunk;
      inside_[i] = row.image < 0 ? 0 : taps_inside(y_axis, y) | taps_inside(x_axis, x) << 16;
    }
  }

  __device__ __forceinline__ void copy_step(unsigned char* stage) {
    const int64_t dy = tap_y_ * y_axis_.tap_step, dx = tap_x_ * x_axis_.tap_step;
    const int64_t shift = dy * row_bytes_ + dx * pixel_bytes_ + byte_;
    const int bytes_left = pixel_bytes_ - byte_ - static_cast<int>(threadIdx.x) % kStepChunks * kChunk;
    unsigned char* own_chunks = stage + swizzled(threadIdx.x / kStepChunks, threadIdx.x % kStepChunks);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool inside = inside_[i] >> tap_y_ & inside_[i] >> (16 + tap_x_) & 1;
#pragma unroll
      for (int b = 0; b < kChunk; b += kCopyBytes)
        cp_async<kCopyBytes>(own_chunks + i * kRowsApart * kStepBytes + b, first_[i] + shift + b,
                             inside && b < bytes_left);
    }
    byte_ += kStepBytes;
    if (byte_ < pixel_bytes_) return;
    byte_ = 0;
    if (++tap_x_ < x_axis_.taps) return;
    tap_x_ = 0;
    ++tap_y_;
  }

 private:
  static constexpr int kRowsApart = Tile::kThreads / kStepChunks;
  static_assert(kRowsApart % 8 == 0);
  static constexpr int kRows = Tile::kM / kRowsApart;

  int pixel_bytes_;
  int64_t row_bytes_;  // of the image
  const GatherAxis &y_axis_, &x_axis_;
  const char* first_[kRows];              // this thread's chunk of the pixel of tap 0
  unsigned inside_[kRows];                // the taps that see a pixel: along y, and 16 bits higher along x
  int tap_y_ = 0, tap_x_ = 0, byte_ = 0;  // of the next step
};

// The same for pixels of few channels: the depth is dense, channel after channel and tap after tap, where a step a tap
// would multiply by zeros for the most part (3 channels would fill 3 of 32 values).  A chunk then spans taps and begins
// anywhere, so that its elements are loaded one by one and stored together.
template <typename T, typename Tile>
class FewChannelsLoader {
 public:
  __device__ __forceinline__ static int steps(int taps, int64_t channels) {
    return (taps * static_cast<int>(channels) + kStep<T> - 1) / kStep<T>;
  }

  template <typename RowAt>
  __device__ __forceinline__ FewChannelsLoader(const T* image, int64_t channels, const GatherAxis& y_axis,
                                               const GatherAxis& x_axis, const RowAt& row_at)
      : channels_(static_cast<int>(channels)),
        y_axis_(y_axis),
        x_axis_(x_axis),
        element_(threadIdx.x % kStepChunks * kElements) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const GatherRow row = row_at(static_cast<int>(threadIdx.x) / kStepChunks + i * kRowsApart);
      const int y = row.y * y_axis.step + y_axis.origin, x = row.x * x_axis.step + x_axis.origin;
      first_[i] = image + ((row.image * y_axis.size + y) * x_axis.size + x) * channels_;
      inside_[i] = row.image < 0 ? 0 : taps_inside(y_axis, y) | taps_inside(x_axis, x) << 16;
    }
  }

  __device__ __forceinline__ void copy_step(unsigned char* stage) {
    const int tap = element_ / channels_, x_taps = x_axis_.taps;
    int channel = element_ % channels_, tap_y = tap / x_taps, tap_x = tap % x_taps;
    const int64_t row_step = static_cast<int64_t>(y_axis_.tap_step) * x_axis_.size * channels_;
    const int tap_step = x_axis_.tap_step * channels_;
    int64_t shift = tap_y * row_step + tap_x * tap_step + channel;
    Pack<T, kElements> chunks[kRows];
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      // Beyond the last tap every bit is asked for, and there are zeros: no kernel has so many taps.
      const unsigned asked = tap_y < y_axis_.taps ? 1u << tap_y | 0x10000u << tap_x : ~0u;
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        chunks[i].lane[e] = (asked & ~inside_[i]) == 0 ? first_[i][shift] : from_float<T>(0.0f);
      // Without branches: the chunks of a warp move on to another tap at different elements.
      const bool next_tap = ++channel == channels_, next_row = next_tap && tap_x + 1 == x_taps;
      shift += 1 + (next_tap ? tap_step - channels_ : 0) + (next_row ? row_step - x_taps * tap_step : 0);
      channel = next_tap ? 0 : channel;
      tap_x = next_row ? 0 : tap_x + next_tap;
      tap_y += next_row;
    }
    unsigned char* own_chunks = stage + swizzled(threadIdx.x / kStepChunks, threadIdx.x % kStepChunks);
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      *reinterpret_cast<Pack<T, kElements>*>(own_chunks + i * kRowsApart * kStepBytes) = chunks[i];
    element_ += kStep<T>;
  }

 private:
  static constexpr int kElements = kChunk / static_cast<int>(sizeof(T));
  static constexpr int kRowsApart = Tile::kThreads / kStepChunks;
  static_assert(kRowsApart % 8 == 0);
  static constexpr int kRows = Tile::kM / kRowsApart;

  int channels_;
  const GatherAxis &y_axis_, &x_axis_;
  int element_;             // of the depth: the first one of this thread's chunk in the next step
  const T* first_[kRows];   // the pixel of tap 0
  unsigned inside_[kRows];  // as in ImageLoader
};

// Rows of the right operand: weight[columns][depth], depth a whole number of steps, 16-byte aligned.  Rows of the tile
// beyond `columns` are zeros.
template <typename T, typename Tile>
class WeightLoader {
 public:
  __device__ __forceinline__ WeightLoader(const T* weight, int64_t depth, int columns)
      : next_(reinterpret_cast<const char*>(weight + threadIdx.x / kStepChunks * depth) +
              threadIdx.x % kStepChunks * kChunk),
        row_bytes_(depth * static_cast<int64_t>(sizeof(T))),
        columns_left_(columns - static_cast<int>(threadIdx.x / kStepChunks)) {}

  __device__ __forceinline__ void copy_step(unsigned char* stage) {
    unsigned char* own_chunks = stage + swizzled(threadIdx.x / kStepChunks, threadIdx.x % kStepChunks);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (Tile::kN % kRowsApart != 0 && threadIdx.x / kStepChunks + i * kRowsApart >= Tile::kN) break;
      cp_async<kChunk>(own_chunks + i * kRowsApart * kStepBytes, next_ + i * kRowsApart * row_bytes_,
                       i * kRowsApart < columns_left_);
    }
    next_ += kStepBytes;
  }

 private:
  static constexpr int kRowsApart = Tile::kThreads / kStepChunks;
  static constexpr int kRows = (Tile::kN + kRowsApart - 1) / kRowsApart;

  const char* next_;
  int64_t row_bytes_;
  int columns_left_;  // may be negative
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
#pragma unroll
  for (int k = 0; k < kStepChunks; k += 2) {
    const unsigned char* a_chunk = stage + swizzled(a_row, k + matrix / 2);
    const unsigned char* b_chunk = stage + Tile::kM * kStepBytes + swizzled(b_row, k + matrix % 2);
    uint32_t b[Tile::kFragmentsN][2];
#pragma unroll
    for (int n = 0; n < Tile::kFragmentsN; n += 2) {
      uint32_t pair[4];
      ldmatrix_x4(pair, b_chunk + n * 8 * kStepBytes);
      b[n][0] = pair[0], b[n][1] = pair[1], b[n + 1][0] = pair[2], b[n + 1][1] = pair[3];
    }
#pragma unroll
    for (int m = 0; m < Tile::kFragmentsM; ++m) {
      uint32_t a[4];
      ldmatrix_x4(a, a_chunk + m * 16 * kStepBytes);
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
  constexpr int kStages = Tile::kStages;
  // Of two stages both are under way at the start, for they may be the whole depth; each is filled again when everybody
  // has read it, which takes a second barrier.
  constexpr bool kFillsAll = kStages == 2;
  constexpr int kAhead = kFillsAll ? kStages : kStages - 1;
  auto copy = [&](int step) {
    unsigned char* stage = shared + step % kStages * Tile::kStageBytes;
    if (step < steps) {
      left.copy_step(stage);
      right.copy_step(stage + Tile::kM * kStepBytes);
    }
    cp_async_commit();  // of nothing, beyond the last step, so that the count of groups stays that of steps
  };
  for (int step = 0; step < kAhead; ++step) copy(step);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kAhead - 1>();  // this thread's part of `step` has landed
    __syncthreads();              // everybody's has, and everybody has read the step before
    if constexpr (!kFillsAll) copy(step + kAhead);
    multiply_step<T, Tile>(shared + step % kStages * Tile::kStageBytes, acc);
    if constexpr (kFillsAll) {
      if (step + kAhead < steps) __syncthreads();
      copy(step + kAhead);
    }
  }
  __syncthreads();  // what is still under way copies nothing
}

}  // namespace genimg_fast::cuda
