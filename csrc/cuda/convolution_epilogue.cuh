// SPDX-License-Identifier: MIT
// What the convolutions on tensor cores do with a tile of sums: affine map of its channel, activation, rounding, and
// for training the statistics of what was rounded.  The tile goes through shared memory, so that each output pixel is
// written in runs of 16 bytes.
#pragma once
#include <type_traits>

#include "cuda/implicit_gemm.cuh"
#include "cuda/moments.cuh"

namespace genimg_fast::cuda {

// Calls body(activation) with a constant: tiles are mapped without asking for each value which one it is.
template <typename Body>
__device__ __forceinline__ void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::relu:
      return body(std::integral_constant<Activation, Activation::relu>{});
    case Activation::leaky_relu:
      return body(std::integral_constant<Activation, Activation::leaky_relu>{});
    case Activation::tanh:
      return body(std::integral_constant<Activation, Activation::tanh>{});
    case Activation::sigmoid:
      return body(std::integral_constant<Activation, Activation::sigmoid>{});
    default:
      return body(std::integral_constant<Activation, Activation::none>{});
  }
}

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
  static constexpr int kRowParts = Tile::kThreads / (Tile::kN / 2);  // of the statistics: a thread takes two columns
  static constexpr int kBytes = kMomentsAt + kRowParts * Tile::kN * static_cast<int>(sizeof(Moments<float>));
};

// Statistics of the tile's columns over the rows that have a pixel, of the values as they will be read again.  They
// come from where they are staged: lanes that hold a column's sums would have to exchange them six times a column, and
// an exchange takes shared memory as long as a read of 32 values does.
// staged: [kM][kPitch]; pixels: [kM]; parts: [kRowParts][kN]; moments: [columns]
template <typename T, typename Tile>
__device__ __forceinline__ void store_moments(const T* staged, const int64_t* pixels, Moments<float>* parts,
                                              Moments<float>* moments, int columns) {
  using Layout = EpilogueLayout<T, Tile>;
  constexpr int kRows = Tile::kM / Layout::kRowParts, kAtOnce = kRows < 32 ? kRows : 32;  // in registers
  const int column = threadIdx.x % (Tile::kN / 2) * 2, part = threadIdx.x / (Tile::kN / 2);
  Moments<float> total[2] = {};
#pragma unroll 1
  for (int first = part * kRows; first < (part + 1) * kRows; first += kAtOnce) {
    Pack<T, 2> rows[kAtOnce];
    unsigned real = 0;  // bit r: row first + r has a pixel
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      rows[r] = *reinterpret_cast<const Pack<T, 2>*>(staged + (first + r) * Layout::kPitch + column);
      real |= (pixels[first + r] >= 0 ? 1u : 0u) << r;
    }
    const float count = static_cast<float>(__popc(real));
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      auto sum = [&](const auto& term) {
        float result = 0;
#pragma unroll
        for (int r = 0; r < kAtOnce; ++r)
          if (real >> r & 1) result += term(to_float(rows[r].lane[j]));
        return result;
      };
      const float mean = count > 0 ? sum([](float v) { return v; }) / count : 0.0f;
      total[j].merge(count, mean, sum([&](float v) { return (v - mean) * (v - mean); }));
    }
  }
  for (int j = 0; j < 2; ++j) parts[part * Tile::kN + column + j] = total[j];
  __syncthreads();
  for (int c = threadIdx.x; c < Tile::kN && c < columns; c += Tile::kThreads) {
    Moments<float> of_column = parts[c];
    for (int p = 1; p < Layout::kRowParts; ++p) of_column.merge(parts[p * Tile::kN + c]);
    moments[c] = of_column;
  }
}

// Writes the tile of the block.  All threads of the block.  shared: [EpilogueLayout::kBytes], which nobody reads any
// more; pixel(r): the output pixel of the tile's row r, or -1 if it has none; row_block: the row of `moments`;
// channels: the tile's real columns.
template <typename T, typename Tile, typename PixelOf>
__device__ __forceinline__ void store_tile(const typename Tile::Accumulators& acc, const Epilogue<T>& epilogue,
                                           unsigned char* shared, int64_t out_channels, int64_t first_channel,
                                           int channels, int64_t row_block, const PixelOf& pixel) {
  using Layout = EpilogueLayout<T, Tile>;
  T* staged = reinterpret_cast<T*>(shared);  // [kM][kPitch]
  int64_t* pixels = reinterpret_cast<int64_t*>(shared + Layout::kPixelsAt);
  float* affine = reinterpret_cast<float*>(shared + Layout::kAffineAt);  // [kN][scale, shift]
  static_assert(Tile::kN <= Tile::kThreads);
  for (int r = threadIdx.x; r < Tile::kM; r += Tile::kThreads) pixels[r] = pixel(r);
  if (threadIdx.x < Tile::kN) {
    float scale = 0, shift = 0;
    if (threadIdx.x < channels) epilogue.affine.at(first_channel + threadIdx.x, &scale, &shift);
    affine[2 * threadIdx.x] = scale, affine[2 * threadIdx.x + 1] = shift;
  }
  __syncthreads();

  with_activation(epilogue.activation, [&](auto activation) {
#pragma unroll
    for (int n = 0; n < Tile::kFragmentsN; ++n) {
      const int column = Tile::column(n, 0);
      const auto map = *reinterpret_cast<const Pack<float, 4>*>(affine + 2 * column);  // of this column and the next
      auto value = [&](float sum, int j) {
        return activate(activation, epilogue.negative_slope, sum * map.lane[2 * j] + map.lane[2 * j + 1]);
      };
#pragma unroll
      for (int m = 0; m < Tile::kFragmentsM; ++m)
#pragma unroll
        for (int i = 0; i < 4; i += 2)
          *reinterpret_cast<Pack<T, 2>*>(staged + Tile::row(m, i) * Layout::kPitch + column) =
              from_floats<T>(value(acc[m][n][i], 0), value(acc[m][n][i + 1], 1));
    }
  });
  __syncthreads();

  constexpr int kWide = kPack<T>, kChunks = Tile::kN / kWide;
  const bool wide = out_channels % kWide == 0;  // then every pixel begins at a multiple of 16 bytes
  for (int e = threadIdx.x; e < Tile::kM * kChunks; e += Tile::kThreads) {
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
    store_moments<T, Tile>(staged, pixels, reinterpret_cast<Moments<float>*>(shared + Layout::kMomentsAt),
                           epilogue.moments + row_block * out_channels + first_channel, channels);
}

}  // namespace genimg_fast::cuda
