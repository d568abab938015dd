// SPDX-License-Identifier: MIT
// What a kernel file includes first: the CUDA runtime, or, under GENIMG_FAST_CUDA_ON_CPU, the shim of tests/cuda_on_cpu
// that runs the same source on the host.  Kernel files therefore
//   - use dynamic shared memory only, through GENIMG_FAST_SHARED, so that the shim can poison it between blocks;
//   - start kernels through launch() and launch_after_memset(), never <<<>>>, and call await_previous_kernel()
//   (cuda/ptx.cuh) in every thread of
//     them before it touches global memory;
//   - convert elements through to_float() and from_float<T>(), never by implicit conversion of half types;
//   - reach PTX instructions through cuda/ptx.cuh;
//   - use neither __restrict__ nor __ldg: a load that the compiler may take for one of constants it moves ahead of
//     await_previous_kernel().
#pragma once
#include <cstdint>

#include "cuda/channel_vector.h"

namespace genimg_fast::cuda {
constexpr int kThreads = 256;  // a block of the elementwise and reduction kernels
}

#ifdef GENIMG_FAST_CUDA_ON_CPU
#include "cuda_on_cpu.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

// Of a kernel parameter that threads refer to where it is: none makes a copy.
#define GENIMG_FAST_GRID_CONSTANT __grid_constant__

// Declares `T* name`, the block's dynamic shared memory.
#define GENIMG_FAST_SHARED(T, name)                             \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  T* name = reinterpret_cast<T*>(name##_bytes)

namespace genimg_fast::cuda {

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("genimg_fast: CUDA: ") + cudaGetErrorString(error));
}

inline int device_attribute(cudaDeviceAttr attribute) {  // of the current GPU
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}
inline int multiprocessor_count() { return device_attribute(cudaDevAttrMultiProcessorCount); }
inline int compute_capability_major() { return device_attribute(cudaDevAttrComputeCapabilityMajor); }

// Whether kernels on the current GPU wait for the one before them: it is one of those that this code was compiled for,
// and has the instruction.  A kernel made of older PTX lacks it.
inline bool kernels_await() {
  const int arch = compute_capability_major() * 100 + device_attribute(cudaDevAttrComputeCapabilityMinor) * 10;
  constexpr int kCompiledFor[] = {__CUDA_ARCH_LIST__};
  return arch >= 900 && std::find(std::begin(kCompiledFor), std::end(kCompiledFor), arch) != std::end(kCompiledFor);
}

// find(kernel, shared_bytes), called once on each GPU: what it asks of the runtime takes about a microsecond and gives
// the same each time.
template <int (*find)(const void* kernel, size_t shared_bytes)>
int once(const void* kernel, size_t shared_bytes) {
  static std::mutex mutex;
  static auto& found = *new std::map<std::tuple<int, const void*, size_t>, int>;  // threads may outlive what is static
  int device = 0;
  check_cuda(cudaGetDevice(&device));
  const std::lock_guard lock(mutex);
  const auto key = std::make_tuple(device, kernel, shared_bytes);
  auto entry = found.find(key);
  if (entry == found.end()) entry = found.emplace(key, find(kernel, shared_bytes)).first;
  return entry->second;
}

inline int find_resident_blocks(const void* kernel, size_t shared_bytes) {
  int of_multiprocessor = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_multiprocessor, kernel, kThreads, shared_bytes));
  return of_multiprocessor * multiprocessor_count();
}

// Blocks of kThreads of this kernel that the current GPU has room for at once.
template <typename... Parameters>
int resident_blocks(void (*kernel)(Parameters...), size_t shared_bytes) {
  return once<find_resident_blocks>(reinterpret_cast<const void*>(kernel), shared_bytes);
}
inline int most_resident_blocks() {
  return device_attribute(cudaDevAttrMaxThreadsPerMultiProcessor) / kThreads * multiprocessor_count();
}

// Sets `bytes` bytes to 0 in the order of the stream; not a kernel.
inline void set_zero(void* p, size_t bytes, Stream stream) {
  check_cuda(cudaMemsetAsync(p, 0, bytes, static_cast<cudaStream_t>(stream)));
}

// Allows the kernel its shared memory.  Returns how many attributes launch() starts it with.
inline int prepare_launch(const void* kernel, size_t shared_bytes) {
  if (shared_bytes > 48 * 1024) {  // beyond 48 KiB a kernel must ask; always for the same: other threads may too
    const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  }
  const char* allowed = std::getenv("GENIMG_FAST_PDL");  // to find out whether a fault, or a loss of speed, is of this
  return kernels_await() && !(allowed != nullptr && std::string(allowed) == "0") ? 1 : 0;
}

inline int set_carveout(const void* kernel, size_t) {
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
  return 0;
}

// Of what shared memory and the L1 cache divide among them, shared memory gets the most that it can have.  Kernels of
// convolutions all want that, however small their tiles: between two that divide it differently, a multiprocessor has
// to run out of blocks.
template <typename... Parameters>
void prefer_shared_memory(void (*kernel)(Parameters...)) {
  once<set_carveout>(reinterpret_cast<const void*>(kernel), 0);
}

template <typename... Parameters, typename... Args>
void launch_with_attributes(int most, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                            Stream stream, Args... args) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &early;
  config.numAttrs = std::min(most, once<prepare_launch>(reinterpret_cast<const void*>(kernel), shared_bytes));
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...));
}

// kernel<<<grid, block, shared_bytes, stream>>>(args...), with the launch's own error turned into an exception.  Where
// kernels wait for the one before them they may start before it has ended (programmatic dependent launch).
template <typename... Parameters, typename... Args>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, Args... args) {
  launch_with_attributes(1, kernel, grid, block, shared_bytes, stream, args...);
}

// The same directly behind set_zero(): a kernel may start before another kernel has ended, but what a captured graph
// makes of that behind a memset CUDA's documentation does not say.
template <typename... Parameters, typename... Args>
void launch_after_memset(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
                         Args... args) {
  launch_with_attributes(0, kernel, grid, block, shared_bytes, stream, args...);
}

}  // namespace genimg_fast::cuda

#endif

namespace genimg_fast::cuda {

// Computation is in float whatever the element type.
__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

GENIMG_FAST_HOST_DEVICE float ChannelVector::operator[](int64_t channel) const {
  if (dtype == DType::float16) return __half2float(static_cast<const __half*>(values)[channel]);
  if (dtype == DType::bfloat16) return __bfloat162float(static_cast<const __nv_bfloat16*>(values)[channel]);
  return static_cast<const float*>(values)[channel];
}

GENIMG_FAST_HOST_DEVICE void MutableChannelVector::store(int64_t channel, float value) const {
  if (!values) return;
  if (dtype == DType::float16)
    static_cast<__half*>(values)[channel] = __float2half_rn(value);
  else if (dtype == DType::bfloat16)
    static_cast<__nv_bfloat16*>(values)[channel] = __float2bfloat16_rn(value);
  else
    static_cast<float*>(values)[channel] = value;
}

GENIMG_FAST_HOST_DEVICE void MutableChannelVector::move_towards(int64_t channel, float value, float momentum) const {
  if (values) store(channel, ChannelVector{values, dtype}[channel] * (1.0f - momentum) + value * momentum);
}

// The values of channels first, first + 1, ...: all loads are under way before the first is waited for.
template <int N>
__device__ __forceinline__ void load_channels(const ChannelVector& vector, int64_t first, float (&values)[N],
                                              float value_if_null = 0.0f) {
  auto load = [&](const auto* from) {
    for (int k = 0; k < N; ++k) values[k] = to_float(from[first + k]);
  };
  if (!vector)
    for (float& value : values) value = value_if_null;
  else if (vector.dtype == DType::float16)
    load(static_cast<const __half*>(vector.values));
  else if (vector.dtype == DType::bfloat16)
    load(static_cast<const __nv_bfloat16*>(vector.values));
  else
    load(static_cast<const float*>(vector.values));
}

// Consecutive elements, moved 16 bytes by an instruction.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T lane[N];
};
template <typename T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

// Two values by one instruction.  Of single conversions to bfloat16 the compiler makes at times one that a
// multiprocessor runs for 16 values a cycle, an eighth of its rate for pairs.
template <typename T>
__device__ __forceinline__ Pack<T, 2> from_floats(float first, float second) {
  return {first, second};
}
template <>
__device__ __forceinline__ Pack<__half, 2> from_floats<__half>(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return {pair.x, pair.y};
}
template <>
__device__ __forceinline__ Pack<__nv_bfloat16, 2> from_floats<__nv_bfloat16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return {pair.x, pair.y};
}

inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Calls body(T{}) with the C++ type of `dtype`.
template <typename Body>
void dispatch(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::float32:
      return body(float{});
    case DType::float16:
      return body(__half{});
    case DType::bfloat16:
      return body(__nv_bfloat16{});
  }
}

inline int blocks_for(int64_t items, int most) {
  const int64_t blocks = (items + kThreads - 1) / kThreads;
  return static_cast<int>(blocks < 1 ? 1 : blocks > most ? most : blocks);
}

// Blocks for `items` units of work, one a thread, but no more than the GPU has room for: after a grid of a few more,
// the last of them would run alone, too few to keep the memory busy.
template <typename... Parameters>
int block_count(void (*kernel)(Parameters...), size_t shared_bytes, int64_t items) {
  return blocks_for(items, resident_blocks(kernel, shared_bytes));
}

// No kernel has more.
inline int most_blocks(int64_t items) { return blocks_for(items, most_resident_blocks()); }

}  // namespace genimg_fast::cuda
