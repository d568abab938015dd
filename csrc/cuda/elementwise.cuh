// SPDX-License-Identifier: MIT
// The loop of every elementwise kernel: N elements a thread at a time in a grid-stride loop, then the rest one by one.
#pragma once
#include <type_traits>

#include "cuda/ptx.cuh"

namespace genimg_fast::cuda {

// N consecutive elements.  N > 1 needs 16-byte aligned base pointers.
template <int N>
struct PackOf {
  static constexpr int size = N;
  template <typename T>
  __device__ __forceinline__ Pack<T, N> load(const T* p) const {
    return *reinterpret_cast<const Pack<T, N>*>(p);
  }
  template <typename T>
  __device__ __forceinline__ Pack<T, N> fill(T value) const {
    Pack<T, N> pack;
    for (int k = 0; k < N; ++k) pack.lane[k] = value;
    return pack;
  }
  template <typename T>
  __device__ __forceinline__ void store(T* p, const Pack<T, N>& pack) const {
    if constexpr (sizeof(pack) == 16)
      store_16_bytes(p, &pack);
    else
      *reinterpret_cast<Pack<T, N>*>(p) = pack;
  }
};

// In what a loss keeps the gradient of a T that it makes in its forward pass (csrc/ops/loss.h).
template <typename T>
using SavedGradient = std::conditional_t<std::is_same_v<T, __half>, float, T>;

template <typename To, int N>
__device__ __forceinline__ Pack<To, N> rounded_to(const Pack<float, N>& values) {
  Pack<To, N> pack;
  if constexpr (N == 1) {
    pack.lane[0] = from_float<To>(values.lane[0]);
  } else {
    for (int k = 0; k < N; k += 2) {
      const Pack<To, 2> pair = from_floats<To>(values.lane[k], values.lane[k + 1]);
      pack.lane[k] = pair.lane[0], pack.lane[k + 1] = pair.lane[1];
    }
  }
  return pack;
}

// Of an array of T, or of float32 although T is narrower.
template <typename T, typename PackOfN>
__device__ __forceinline__ auto load_floats(const PackOfN& pack, const void* p, int64_t i, bool is_float32) {
  if (sizeof(T) == sizeof(float) || is_float32) return pack.load(static_cast<const float*>(p) + i);
  const auto narrow = pack.load(static_cast<const T*>(p) + i);
  Pack<float, PackOfN::size> values;
  for (int k = 0; k < PackOfN::size; ++k) values.lane[k] = to_float(narrow.lane[k]);
  return values;
}

// body(offset, PackOf<N>{}) over the whole packs of [0, numel), then body(offset, PackOf<1>{}) over what is left.
template <int N, typename Body>
__device__ __forceinline__ void for_each_pack(int64_t numel, const Body& body) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t packs = numel / N;
  for (int64_t p = thread; p < packs; p += threads) body(p * N, PackOf<N>{});
  if (N > 1)
    for (int64_t i = packs * N + thread; i < numel; i += threads) body(i, PackOf<1>{});
}

}  // namespace genimg_fast::cuda
