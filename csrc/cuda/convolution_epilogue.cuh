// SPDX-License-Identifier: MIT
// What the convolutions on tensor cores do with a tile of sums: affine map of its channel, activation, rounding, and
// for training the statistics of what was rounded.  The tile goes through shared memory, so that each output pixel is
// written in runs of 16 bytes.
#pragma once
#include "cuda/implicit_gemm.cuh"
#include "cuda/moments.cuh"

namespace genimg_fast::cuda {

template <typename T>
struct Epilogue {
  ChannelAffine affine;
  Activation activation;
  float negative_slope;
  T* output;                // [pixels][out_channels]
  Moments<float>* moments;  // [row tiles * phases][out_channels] or null
};

// Where the parts lie in shared memory, in bytes.
template <typename T, typename Tile>
struct EpilogueLayout {
  static constexpr int kPitch = Tile::kN + kChunk / static_cast<int>(sizeof(T));  // rows start in different banks
  static constexpr int kPixelsAt = Tile::kM * kPitch * static_cast<int>(sizeof(T));
  static constexpr int kAffineAt = kPixelsAt + Tile::kM * static_cast<int>(sizeof(int64_t));
  static constexpr int kMomentsAt = kAffineAt + 2 * Tile::kN * static_cast<int>(sizeof(float));
  static constexpr int kBytes = kMomentsAt + Tile::kWarpsM * Tile::kN * static_cast<int>(sizeof(Moments<float>));
};

// Statistics of the tile's columns over the rows that have a pixel.  pixels: [kM]; warp_moments: [kWarpsM][kN];
// moments: [columns]
template <typename Tile>
__device__ __forceinline__ void store_moments(const typename Tile::Accumulators& values, const int64_t* pixels,
                                              Moments<float>* warp_moments, Moments<float>* moments, int columns) {
  const bool has_rows = threadIdx.x < Tile::kThreads;
  if (has_rows) {
    const int warp_m = threadIdx.x / 32 / Tile::kWarpsN;
    unsigned real = 0;  // bit 2 m + i / 2: this thread's row of acc[m][..][i] has a pixel
#pragma unroll
    for (int m = 0; m < Tile::kFragmentsM; ++m)
#pragma unroll
      for (int i = 0; i < 4; i += 2) real |= (pixels[Tile::row(m, i)] >= 0 ? 1u : 0u) << (2 * m + i / 2);
    // Over the eight lanes that hold the same columns, in a fixed tree.
    auto sum_over_lanes = [](float sum) {
      for (int offset = 4; offset < 32; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      return sum;
    };
    const float count = sum_over_lanes(static_cast<float>(__popc(real)));
#pragma unroll
    for (int n = 0; n < Tile::kFragmentsN; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        auto sum_over_rows = [&](const auto& term) {
          float sum = 0;
#pragma unroll
          for (int m = 0; m < Tile::kFragmentsM; ++m)
#pragma unroll
            for (int i = j; i < 4; i += 2)
              if (real >> (2 * m + i / 2) & 1) sum += term(values[m][n][i]);
          return sum_over_lanes(sum);
        };
        const float mean = count > 0 ? sum_over_rows([](float v) { return v; }) / count : 0.0f;
        const float m2 = sum_over_rows([&](float v) { return (v - mean) * (v - mean); });
        if (threadIdx.x % 32 < 4) warp_moments[warp_m * Tile::kN + Tile::column(n, j)] = {count, mean, m2};
      }
  }
  __syncthreads();
  if (!has_rows) return;
  for (int c = threadIdx.x; c < Tile::kN && c < columns; c += Tile::kThreads) {
    Moments<float> total = warp_moments[c];
    for (int w = 1; w < Tile::kWarpsM; ++w) total.merge(warp_moments[w * Tile::kN + c]);
    moments[c] = total;
  }
}

// Writes the tile of the block.  All threads of the block; those beyond Tile::kThreads, which hold no sums, only meet
// the others at barriers.  shared: [EpilogueLayout::kBytes], which nobody reads any more; pixel(r): the output pixel of
// the tile's row r, or -1 if it has none; row_block: the row of `moments`; channels: the tile's real columns.
template <typename T, typename Tile, typename PixelOf>
__device__ __forceinline__ void store_tile(typename Tile::Accumulators& acc, const Epilogue<T>& epilogue,
                                           unsigned char* shared, int64_t out_channels, int64_t first_channel,
                                           int channels, int64_t row_block, const PixelOf& pixel) {
  using Layout = EpilogueLayout<T, Tile>;
  T* staged = reinterpret_cast<T*>(shared);  // [kM][kPitch]
  int64_t* pixels = reinterpret_cast<int64_t*>(shared + Layout::kPixelsAt);
  float* affine = reinterpret_cast<float*>(shared + Layout::kAffineAt);  // [kN][scale, shift]
  static_assert(Tile::kN <= Tile::kThreads);
  const bool has_sums = threadIdx.x < Tile::kThreads;
  if (has_sums) {
    for (int r = threadIdx.x; r < Tile::kM; r += Tile::kThreads) pixels[r] = pixel(r);
    if (threadIdx.x < channels)
      epilogue.affine.at(first_channel + threadIdx.x, affine + 2 * threadIdx.x, affine + 2 * threadIdx.x + 1);
  }
  __syncthreads();

  if (has_sums)
#pragma unroll
    for (int n = 0; n < Tile::kFragmentsN; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int column = Tile::column(n, j);
        const bool real = column < channels;
        const float scale = real ? affine[2 * column] : 0.0f, shift = real ? affine[2 * column + 1] : 0.0f;
#pragma unroll
        for (int m = 0; m < Tile::kFragmentsM; ++m)
#pragma unroll
          for (int i = j; i < 4; i += 2) {
            const T value =
                from_float<T>(activate(epilogue.activation, epilogue.negative_slope, acc[m][n][i] * scale + shift));
            staged[Tile::row(m, i) * Layout::kPitch + column] = value;
            acc[m][n][i] = to_float(value);  // as it will be read again
          }
      }
  __syncthreads();

  constexpr int kWide = kPack<T>, kChunks = Tile::kN / kWide;
  const bool wide = out_channels % kWide == 0;  // then every pixel begins at a multiple of 16 bytes
  for (int e = threadIdx.x; has_sums && e < Tile::kM * kChunks; e += Tile::kThreads) {
    const int r = e / kChunks, c = e % kChunks * kWide;
    if (c >= channels || pixels[r] < 0) continue;
    const T* from = staged + r * Layout::kPitch + c;
    T* to = epilogue.output + pixels[r] * out_channels + first_channel + c;
    if (wide)
      *reinterpret_cast<Pack<T, kWide>*>(to) = *reinterpret_cast<const Pack<T, kWide>*>(from);
    else
      for (int k = 0; k < kWide && c + k < channels; ++k) to[k] = from[k];
  }
  if (epilogue.moments)
    store_moments<Tile>(acc, pixels, reinterpret_cast<Moments<float>*>(shared + Layout::kMomentsAt),
                        epilogue.moments + row_block * out_channels + first_channel, channels);
}

}  // namespace genimg_fast::cuda
