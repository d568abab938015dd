// SPDX-License-Identifier: MIT
// The PTX instructions of sm_90a, each behind one function, as in ptx.cuh: copies by the tensor memory accelerator
// (TMA), barriers in shared memory that count the bytes of such copies, and the multiplication of a warpgroup (wgmma).
// Kernels that use them have a body only where GENIMG_FAST_SM90A is defined, and the library has them only if it is
// built for sm_90a (setup.py).  Under GENIMG_FAST_CUDA_ON_CPU the same functions come from
// tests/cuda_on_cpu/ptx_sm90_on_cpu.h.
//
// Matrices lie in shared memory as TMA and wgmma agree on: rows of 128 bytes one after the other, from a multiple of
// 1024, the eight chunks of 16 bytes of a row exchanged by the number of the row (the 128-byte swizzle).
#pragma once
#include "cuda/ptx.cuh"

namespace genimg_fast::cuda {

constexpr int kSwizzledRow = 128;    // bytes
constexpr int kSwizzleBytes = 1024;  // after which the exchange of chunks begins anew

// Where byte `column` of row `row` of such a matrix lies, from its begin.
GENIMG_FAST_HOST_DEVICE unsigned swizzled_128(unsigned row, unsigned column) {
  return row * kSwizzledRow + (column ^ (row % 8 * 16));
}

// Four dimensions of an array of half values in global memory, fastest first, and the box of it that one copy takes.
struct TensorBox {
  int64_t size[4];
  int64_t stride_bytes[3];  // of the last three: multiples of 16
  int box[4];               // elements, the first at most 64; of the last three
  int step[4];              // every step-th element of the array is one of them, 1 to 8; along the first, every one
};

// The descriptor of a matrix from `shared_address` on, as wgmma takes it; + 2 for each 16 values further along its
// rows.  PTX ISA, "Matrix Descriptor Format": the address, 1024 bytes from eight rows to the next eight, 128-byte
// swizzle.
GENIMG_FAST_HOST_DEVICE uint64_t swizzled_descriptor(uint32_t shared_address) {
  return uint64_t{1} << 62 | uint64_t{kSwizzleBytes / 16} << 32 | uint64_t{1} << 16 | (shared_address & 0x3ffff) / 16;
}

}  // namespace genimg_fast::cuda

// ---- Tensor maps.

#ifdef GENIMG_FAST_CUDA_ON_CPU
#include "tensor_map.h"

namespace genimg_fast::cuda {
inline auto tensor_map_encoder() { return &cuTensorMapEncodeTiled; }
}  // namespace genimg_fast::cuda
#else
#include <cuda.h>

namespace genimg_fast::cuda {

// The driver's function is asked for at run time: the library links no driver.
inline auto tensor_map_encoder() {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess)
      throw std::runtime_error("genimg_fast: CUDA: the driver has no tensor maps (CUDA 12 or newer does)");
    return reinterpret_cast<Encode>(function);
  }();
  // A thread that has launched nothing yet has no context, without which the driver's function fails.
  int device = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaSetDevice(device));
  return encode;
}

}  // namespace genimg_fast::cuda
#endif

namespace genimg_fast::cuda {

using TensorMap = CUtensorMap;

// `base` must be a multiple of 16.
inline TensorMap make_tensor_map(DType dtype, const void* base, const TensorBox& tensor) {
  cuuint64_t sizes[4], strides[3];
  cuuint32_t box[4], steps[4];
  for (int i = 0; i < 4; ++i) {
    sizes[i] = static_cast<cuuint64_t>(tensor.size[i]);
    if (i > 0) strides[i - 1] = static_cast<cuuint64_t>(tensor.stride_bytes[i - 1]);
    box[i] = static_cast<cuuint32_t>(tensor.box[i] * tensor.step[i]);  // it counts what lies between them too
    steps[i] = static_cast<cuuint32_t>(tensor.step[i]);
  }
  TensorMap map;
  const CUresult result = tensor_map_encoder()(
      &map, dtype == DType::float16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4,
      const_cast<void*>(base), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw std::runtime_error("genimg_fast: CUDA: cuTensorMapEncodeTiled: error " + std::to_string(result));
  return map;
}

}  // namespace genimg_fast::cuda

#ifdef GENIMG_FAST_CUDA_ON_CPU
#define GENIMG_FAST_SM90A
#include "ptx_sm90_on_cpu.h"
#else

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define GENIMG_FAST_SM90A
#endif

namespace genimg_fast::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// ---- Barriers.  A phase ends when `arrivals` threads have arrived and all bytes that were announced have landed; the
// phases of a barrier have parity 0, 1, 0, ...

__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Shows the barriers that this thread initialised to the tensor memory accelerator.  Other threads need a barrier of
// the block too.
__device__ __forceinline__ void mbarrier_publish() {
  asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory");
}

// Orders what this thread read and wrote in shared memory before what the tensor memory accelerator does there.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(shared_address(barrier))
               : "memory");
}

// Arrives, and announces bytes that copies will bring in this phase.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// Waits for the end of the phase of that parity.  Before the first phase has ended, the one of parity 1 counts as over.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, unsigned parity) {
  uint32_t over;
  do {
    asm volatile(
        "{ .reg .pred over; mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2; selp.b32 %0, 1, 0, over; }"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!over);
}

// ---- Copies.

// Brings a descriptor closer, for the first copy by it.
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Begins to copy the box whose first element is at these coordinates, fastest first, to `shared`, a multiple of 1024:
// swizzled, and zeros where it lies beyond the array.  What landed is told to the barrier.  By one thread.
__device__ __forceinline__ void tma_load(void* shared, const TensorMap& map, int c0, int c1, int c2, int c3,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(shared_address(barrier))
      : "memory");
}

// ---- Multiplication.  Four warps, the first a multiple of four, execute each of these together.

// Before the first wgmma, and whenever registers that one will read were written.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes a group: the wgmma begun since the last commit.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending of the latest groups are under way.  What the others read may then be written again.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Waits for all groups; `acc` may be read afterwards.  Naming it keeps the compiler from reading it before.
template <int kFragmentsM, int kFragmentsN>
__device__ __forceinline__ void wgmma_wait_all(float (&acc)[kFragmentsM][kFragmentsN][4]) {
  wgmma_wait<0>();
#pragma unroll
  for (int m = 0; m < kFragmentsM; ++m)
#pragma unroll
    for (int n = 0; n < kFragmentsN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(acc[m][n][i])::"memory");
}

// Begins acc += A * B, 64 x N x 16 with N = 8 * kFragmentsN, elements of type T (__half or __nv_bfloat16), accumulated
// in float.  Each warp gives 16 rows of A in registers, acc and a as in mma_m16n8k16 (ptx.cuh); B is [N][16] in shared
// memory.  Until it is waited for, acc must not be touched and a and B not be written.
template <typename T, int kFragmentsN>
__device__ __forceinline__ void wgmma(float (&acc)[kFragmentsN][4], const uint32_t (&a)[4], uint64_t b);

#define GENIMG_FAST_ACC1(n) "+f"(acc[n][0]), "+f"(acc[n][1]), "+f"(acc[n][2]), "+f"(acc[n][3])
#define GENIMG_FAST_ACC4(n) \
  GENIMG_FAST_ACC1(n), GENIMG_FAST_ACC1(n + 1), GENIMG_FAST_ACC1(n + 2), GENIMG_FAST_ACC1(n + 3)
#define GENIMG_FAST_WGMMA(T, type)                                                                              \
  template <>                                                                                                   \
  __device__ __forceinline__ void wgmma<T, 8>(float (&acc)[8][4], const uint32_t (&a)[4], uint64_t b) {         \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                    \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
                 "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, 1, "  \
                 "1, 1, 0;"                                                                                     \
                 : GENIMG_FAST_ACC4(0), GENIMG_FAST_ACC4(4)                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                         \
  }                                                                                                             \
  template <>                                                                                                   \
  __device__ __forceinline__ void wgmma<T, 16>(float (&acc)[16][4], const uint32_t (&a)[4], uint64_t b) {       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                   \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
                 "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "   \
                 "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "   \
                 "%56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"              \
                 : GENIMG_FAST_ACC4(0), GENIMG_FAST_ACC4(4), GENIMG_FAST_ACC4(8), GENIMG_FAST_ACC4(12)          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                         \
  }
GENIMG_FAST_WGMMA(__half, "f16")
GENIMG_FAST_WGMMA(__nv_bfloat16, "bf16")
#undef GENIMG_FAST_WGMMA
#undef GENIMG_FAST_ACC4
#undef GENIMG_FAST_ACC1

}  // namespace genimg_fast::cuda

#endif
