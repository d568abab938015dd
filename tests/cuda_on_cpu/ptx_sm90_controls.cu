// SPDX-License-Identifier: MIT
// Kernels that test the functions of cuda/ptx_sm90.cuh.  nvcc compiles this file too (see ptx_controls.cu).
#include "cuda/ptx_sm90.cuh"

namespace genimg_fast::cuda {
namespace {

// What a kernel leaves out, to see that the shim notices.
enum class Fault { none = 0, wait = 1, fence = 2, barrier = 3 };

#ifdef GENIMG_FAST_SM90A
__device__ __forceinline__ unsigned char* aligned(unsigned char* shared) {
  return shared + (kSwizzleBytes - shared_address(shared) % kSwizzleBytes) % kSwizzleBytes;
}
#endif

// out = the bytes of a box in shared memory, in the order in which they lie there.
__global__ void box_kernel(const GENIMG_FAST_GRID_CONSTANT TensorMap map, int c0, int c1, int c2, int c3, int bytes,
                           int announced, bool waits, unsigned char* out) {
#ifdef GENIMG_FAST_SM90A
  await_previous_kernel();
  GENIMG_FAST_SHARED(unsigned char, unaligned);
  unsigned char* box = aligned(unaligned);
  uint64_t* barrier = reinterpret_cast<uint64_t*>(box + bytes);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_publish();
    mbarrier_arrive_expect(barrier, announced);
    tma_load(box, map, c0, c1, c2, c3, barrier);
  }
  __syncthreads();
  if (waits) mbarrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < bytes; i += 32) out[i] = box[i];
  __syncthreads();
  if (!waits) mbarrier_wait(barrier, 0);
#endif
}

// sums[thread][kN / 2] += the product of a[thread][4], fragments, and b[kN][64]: columns 16 depth to 16 depth + 15.
template <typename T, int kN>
__global__ void wgmma_kernel(const GENIMG_FAST_GRID_CONSTANT TensorMap b, const uint32_t* a, float* sums, int depth,
                             Fault fault) {
#ifdef GENIMG_FAST_SM90A
  await_previous_kernel();
  GENIMG_FAST_SHARED(unsigned char, unaligned);
  unsigned char* matrix = aligned(unaligned);
  uint64_t* barrier = reinterpret_cast<uint64_t*>(matrix + kN * kSwizzledRow);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_publish();
    mbarrier_arrive_expect(barrier, kN * kSwizzledRow);
    tma_load(matrix, b, 0, 0, 0, 0, barrier);
  }
  __syncthreads();
  float acc[1][kN / 8][4];
  uint32_t fragment[4];
  for (int i = 0; i < 4; ++i) fragment[i] = a[threadIdx.x * 4 + i];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) acc[0][i / 4][i % 4] = sums[threadIdx.x * (kN / 2) + i];
  mbarrier_wait(barrier, 0);
  if (fault != Fault::fence) wgmma_fence();
  wgmma<T>(acc[0], fragment, swizzled_descriptor(shared_address(matrix)) + 2 * depth);
  wgmma_commit();
#ifdef GENIMG_FAST_CUDA_ON_CPU
  const bool waits = fault != Fault::wait;
#else  // no compiler takes such a kernel as it is
  constexpr bool waits = true;
#endif
  if (waits) wgmma_wait_all(acc);
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) sums[threadIdx.x * (kN / 2) + i] = acc[0][i / 4][i % 4];
  if (!waits) wgmma_wait_all(acc);
#endif
}

// out[step] = row `step` of an array [steps][64] of half values, through a ring of two buffers.
__global__ void ring_kernel(const GENIMG_FAST_GRID_CONSTANT TensorMap map, int steps, Fault fault, uint16_t* out) {
#ifdef GENIMG_FAST_SM90A
  await_previous_kernel();
  GENIMG_FAST_SHARED(unsigned char, unaligned);
  unsigned char* ring = aligned(unaligned);  // [2][kSwizzleBytes], of which one row is used
  uint64_t* filled = reinterpret_cast<uint64_t*>(ring + 2 * kSwizzleBytes);  // [2]
  uint64_t* read = filled + 2;                                               // [2]
  if (threadIdx.x == 0) {
    for (int i = 0; i < 4; ++i) mbarrier_init(filled + i, i < 2 ? 1 : 32);
    mbarrier_publish();
  }
  __syncthreads();
  if (threadIdx.x == 32) {
    for (int step = 0; step < steps; ++step) {
      const int stage = step % 2;
      if (fault != Fault::wait) mbarrier_wait(read + stage, step / 2 % 2 ^ 1);
      if (fault != Fault::barrier) mbarrier_arrive_expect(filled + stage, kSwizzledRow);
      tma_load(ring + stage * kSwizzleBytes, map, 0, step, 0, 0, filled + stage);
    }
  } else if (threadIdx.x < 32) {
    for (int step = 0; step < steps; ++step) {
      const int stage = step % 2;
      mbarrier_wait(filled + stage, step / 2 % 2);
      const uint16_t* row = reinterpret_cast<const uint16_t*>(ring + stage * kSwizzleBytes);
      for (int i = 0; i < 2; ++i) out[step * 64 + threadIdx.x + i * 32] = row[threadIdx.x + i * 32];
      if (fault != Fault::fence) fence_proxy_async();
      mbarrier_arrive(read + stage);
    }
  }
#endif
}

// Of a row-major array of half values, rows of 64 and a fourth dimension that is not there.
TensorMap rows_of_64(const void* array, int rows, int box_rows) {
  return make_tensor_map(DType::float16, array,
                         {{64, rows, 1, 1}, {128, 128 * rows, 128 * rows}, {64, box_rows, 1, 1}, {1, 1, 1, 1}});
}

}  // namespace

// numbers: sizes[4], box[4], steps[4], first[4] of a dense array of half values, fastest first
void tma_box(const void* array, const int64_t* numbers, bool waits, int announced, unsigned char* out) {
  TensorBox tensor{};
  int64_t stride = 2, bytes = 2;
  for (int d = 0; d < 4; ++d) {
    if (d > 0) tensor.stride_bytes[d - 1] = stride;
    tensor.size[d] = numbers[d];
    tensor.box[d] = static_cast<int>(numbers[4 + d]);
    tensor.step[d] = static_cast<int>(numbers[8 + d]);
    stride *= tensor.size[d];
    bytes *= tensor.box[d];
  }
  auto first = [&](int d) { return static_cast<int>(numbers[12 + d]); };
  launch(box_kernel, dim3(1), dim3(32), static_cast<size_t>(kSwizzleBytes + bytes + 8), nullptr,
         make_tensor_map(DType::float16, array, tensor), first(0), first(1), first(2), first(3),
         static_cast<int>(bytes), announced, waits, out);
}

void wgmma_product(DType dtype, int columns, const void* b, const uint32_t* a, float* sums, int depth, Fault fault) {
  const auto kernel = dtype == DType::float16
                          ? (columns == 64 ? wgmma_kernel<__half, 64> : wgmma_kernel<__half, 128>)
                          : (columns == 64 ? wgmma_kernel<__nv_bfloat16, 64> : wgmma_kernel<__nv_bfloat16, 128>);
  launch(kernel, dim3(1), dim3(128), static_cast<size_t>(kSwizzleBytes + columns * kSwizzledRow + 8), nullptr,
         rows_of_64(b, columns, columns), a, sums, depth, fault);
}

void tma_ring(const void* array, int steps, Fault fault, uint16_t* out) {
  launch(ring_kernel, dim3(1), dim3(64), 3 * kSwizzleBytes + 32, nullptr, rows_of_64(array, steps, 1), steps, fault,
         out);
}

}  // namespace genimg_fast::cuda

#ifdef GENIMG_FAST_CUDA_ON_CPU
#include "binding.h"

CUDA_ON_CPU_BINDINGS {
  using namespace genimg_fast::cuda;
  cuda_on_cpu::bind("tma_box", &tma_box);
  cuda_on_cpu::bind("wgmma_product", &wgmma_product);
  cuda_on_cpu::bind("tma_ring", &tma_ring);
  cuda_on_cpu::bind("swizzled_descriptor", [](int64_t address) {
    return static_cast<int64_t>(swizzled_descriptor(static_cast<uint32_t>(address)));
  });
}
#endif
