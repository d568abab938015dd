// SPDX-License-Identifier: MIT
// The functions of cuda/ptx.cuh on the host; what they promise is written there.
//
// An asynchronous copy lands when its group is waited for, and its destination is NaN until then.  So a kernel that
// does not wait, or that starts to overwrite a buffer which others still read, computes NaN.
#pragma once

#include "cuda_on_cpu.h"

namespace genimg_fast::cuda {

inline void require_aligned(const char* what, const void* p, int bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0)
    throw std::runtime_error(std::string(what) + " is not " + std::to_string(bytes) + "-byte aligned");
}

inline void await_previous_kernel() {
  cuda_on_cpu::running_block->current().awaited = true;
  cuda_on_cpu::earlier_results->arrive();
}

inline void store_16_bytes(void* global, const void* value) {
  require_aligned("store_16_bytes: global address", global, 16);
  std::memcpy(global, value, 16);
}

template <int kBytes>
void cp_async(void* shared, const void* global, bool valid = true) {
  require_aligned("cp_async: shared address", shared, kBytes);
  require_aligned("cp_async: global address", global, kBytes);
  std::memset(shared, 0xff, kBytes);
  cuda_on_cpu::running_block->current().open_group.push_back({shared, valid ? global : nullptr, kBytes});
}

inline void cp_async_commit() {
  auto& me = cuda_on_cpu::running_block->current();
  me.committed_groups.push_back(std::move(me.open_group));
  me.open_group.clear();
}

template <int kPending>
void cp_async_wait() {
  auto& groups = cuda_on_cpu::running_block->current().committed_groups;
  for (; groups.size() > kPending; groups.erase(groups.begin()))
    for (const cuda_on_cpu::AsyncCopy& copy : groups.front())
      if (copy.global)
        std::memcpy(copy.shared, copy.global, copy.bytes);
      else
        std::memset(copy.shared, 0, copy.bytes);
}

namespace on_cpu {

using Lanes = cuda_on_cpu::Fiber* const (&)[cuda_on_cpu::kWarp];

inline void require_whole_warp(Lanes lanes) {
  if (!lanes[cuda_on_cpu::kWarp - 1]) throw std::runtime_error("a tensor-core instruction needs a warp of 32 threads");
}

inline void ldmatrix_x4(const char* name, uint32_t (&out)[4], const void* shared_row, bool transposed,
                        cuda_on_cpu::Site site) {
  require_aligned("ldmatrix: row address", shared_row, 16);
  struct Operand {
    const void* row;
    bool transposed;
  };
  const Operand operand{shared_row, transposed};
  cuda_on_cpu::running_block->warp_operation(name, 0xffffffffu, &operand, out, site, [](Lanes lanes) {
    require_whole_warp(lanes);
    for (int lane = 0; lane < 32; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix) {
        uint16_t pair[2];
        for (int e = 0; e < 2; ++e) {
          int row = lane / 4, column = 2 * (lane % 4) + e;
          if (static_cast<const Operand*>(lanes[lane]->operand)->transposed) std::swap(row, column);
          const Operand* source = static_cast<const Operand*>(lanes[8 * matrix + row]->operand);
          std::memcpy(&pair[e], static_cast<const uint16_t*>(source->row) + column, 2);
        }
        std::memcpy(static_cast<uint32_t*>(lanes[lane]->result) + matrix, pair, 4);
      }
  });
}

// One mma of a warp.
struct MmaOperand {
  uint32_t a[4], b[2];
};
struct Place {
  int lane, byte;
};

// a_at(row, k) and b_at(k, column) say in which lane, in which of its bytes, an element lies.
template <typename T>
struct M16n8k16 {
  using Element = T;
  static constexpr int kDepth = 16;
  static Place a_at(int row, int k) {
    const int reg = row / 8 + 2 * (k / 8);
    return {row % 8 * 4 + k % 8 / 2, 4 * reg + 2 * (k % 2)};
  }
  static Place b_at(int k, int column) { return {column * 4 + k % 8 / 2, 4 * (k / 8) + 2 * (k % 2)}; }
  static double value(T v) { return to_float(v); }
};
struct M16n8k8Tf32 {
  using Element = uint32_t;
  static constexpr int kDepth = 8;
  static Place a_at(int row, int k) { return {row % 8 * 4 + k % 4, 4 * (row / 8 + 2 * (k / 4))}; }
  static Place b_at(int k, int column) { return {column * 4 + k % 4, 4 * (k / 4)}; }
  static double value(uint32_t bits) {  // the tensor core ignores the low 13 bits
    return __builtin_bit_cast(float, bits & ~0x1fffu);
  }
};

template <typename Shape>
void mma(const char* name, float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], cuda_on_cpu::Site site) {
  const MmaOperand operand{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  cuda_on_cpu::running_block->warp_operation(name, 0xffffffffu, &operand, acc, site, [](Lanes lanes) {
    require_whole_warp(lanes);
    auto element = [&](Place place, size_t fragment) {
      typename Shape::Element value;
      std::memcpy(&value, static_cast<const char*>(lanes[place.lane]->operand) + fragment + place.byte, sizeof(value));
      return Shape::value(value);
    };
    constexpr int kDepth = Shape::kDepth;
    double a[16][kDepth], b[kDepth][8];
    for (int k = 0; k < kDepth; ++k) {
      for (int row = 0; row < 16; ++row) a[row][k] = element(Shape::a_at(row, k), offsetof(MmaOperand, a));
      for (int column = 0; column < 8; ++column)
        b[k][column] = element(Shape::b_at(k, column), offsetof(MmaOperand, b));
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        double sum = static_cast<float*>(lanes[lane]->result)[i];
        for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k][column];
        static_cast<float*>(lanes[lane]->result)[i] = static_cast<float>(sum);
      }
  });
}

}  // namespace on_cpu

inline void ldmatrix_x4(uint32_t (&out)[4], const void* shared_row,
                        cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  on_cpu::ldmatrix_x4("ldmatrix_x4", out, shared_row, false, site);
}
inline void ldmatrix_x4_trans(uint32_t (&out)[4], const void* shared_row,
                              cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  on_cpu::ldmatrix_x4("ldmatrix_x4_trans", out, shared_row, true, site);
}

template <typename T>
void mma_m16n8k16(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  on_cpu::mma<on_cpu::M16n8k16<T>>("mma_m16n8k16", acc, a, b, site);
}

inline uint32_t to_tf32(float v) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, v);
  return std::isfinite(v) ? (bits + 0x1000) & ~0x1fffu : bits;
}

inline void mma_m16n8k8_tf32(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  on_cpu::mma<on_cpu::M16n8k8Tf32>("mma_m16n8k8_tf32", acc, a, b, site);
}

}  // namespace genimg_fast::cuda
