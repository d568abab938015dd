// SPDX-License-Identifier: MIT
// Every PTX instruction that the kernels use, but those of sm_90a (ptx_sm90.cuh), each behind one function: the wait
// for the kernel before, wide stores, asynchronous copies to shared memory, and the warp-wide loads and multiplications
// of the tensor cores.  Under GENIMG_FAST_CUDA_ON_CPU the same functions come from tests/cuda_on_cpu/ptx_on_cpu.h.
//
// Fragments are those of the PTX ISA ("Matrix Fragments for mma.m16n8k16" and "... m16n8k8").  With g = lane / 4 and
// t = lane % 4, a lane holds, as (row, column):
//
//   accumulator 16 x 8      acc[0] (g, 2t)     acc[1] (g, 2t+1)     acc[2] (g+8, 2t)     acc[3] (g+8, 2t+1)
//   A 16 x 16, 16-bit       a[0] (g, 2t..2t+1) a[1] (g+8, 2t..2t+1) a[2] (g, 2t+8..2t+9) a[3] (g+8, 2t+8..2t+9)
//   B 16 x 8, 16-bit        b[0] (2t..2t+1, g) b[1] (2t+8..2t+9, g)
//   A 16 x 8, tf32          a[0] (g, t)        a[1] (g+8, t)        a[2] (g, t+4)        a[3] (g+8, t+4)
//   B 8 x 8, tf32           b[0] (t, g)        b[1] (t+4, g)
//
// where of two 16-bit elements the first lies in the low half of the register.
#pragma once
#include "cuda/platform.cuh"

#ifdef GENIMG_FAST_CUDA_ON_CPU
#include "ptx_on_cpu.h"
#else

namespace genimg_fast::cuda {

// What every thread of every kernel does before it touches global memory.  On Hopper and newer a kernel of launch()
// starts when all blocks of the one before it have: the blocks that wait here are in place when the last of those ends,
// where a launch after its end would take a microsecond or two.
__device__ __forceinline__ void await_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents; griddepcontrol.wait;" ::: "memory");
#endif
}

// One store of 16 bytes, aligned to that.  What the compiler makes of an assignment is at times four of 4, and each of
// them then touches every sector that the warp writes.
__device__ __forceinline__ void store_16_bytes(void* global, const void* value) {
  const uint4 v = *static_cast<const uint4*>(value);
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(global)), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}

// Begins to copy kBytes (16 or 4) from global to shared memory, both aligned to that, past the registers.  With
// valid == false it writes zeros and does not read `global`, which may then lead anywhere, but aligned.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 16 || kBytes == 4);
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16)  // past the L1 cache too
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(__cvta_generic_to_global(global)),
                 "r"(valid ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(__cvta_generic_to_global(global)),
                 "r"(valid ? 4 : 0)
                 : "memory");
}

// Closes a group: the copies that this thread began since the last commit.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's latest groups are under way.  Other threads' copies need a barrier too.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Loads four 8 x 8 matrices of 16-bit elements.  Lane l passes the address of row l % 8 of matrix l / 8; each row is 16
// bytes and aligned to that.  out[i] holds elements (lane / 4, 2 * (lane % 4) + 0..1) of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], const void* shared_row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// The same with each matrix transposed: out[i] holds elements (2 * (lane % 4) + 0..1, lane / 4).
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&out)[4], const void* shared_row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// acc += A * B, 16 x 8 x 16, elements of type T (__half or __nv_bfloat16), accumulated in float.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(float (&acc)[4], const uint32_t (&a)[4],
                                                            const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The float nearest to v with tf32's 10 bits of mantissa, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float v) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
}

// acc += A * B, 16 x 8 x 8, elements from to_tf32, accumulated in float.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace genimg_fast::cuda

#endif
