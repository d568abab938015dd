// SPDX-License-Identifier: MIT
// The functions of cuda/ptx_sm90.cuh on the host; what they promise is written there.
//
// Whatever is asynchronous happens as late as it may.  A copy lands when a thread waits at its barrier, and its
// destination is NaN until then.  A wgmma reads its operands, registers too, when it is waited for, and its
// accumulators are NaN until then.  So a kernel that does not wait, or that writes what is still to be read, computes
// NaN or something else that is wrong.
#pragma once
#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "cuda_on_cpu.h"
#include "ptx_on_cpu.h"
#include "tensor_map.h"

namespace cuda_on_cpu {

// Shared addresses: the block's dynamic shared memory begins at 16, so that no kernel takes a coarser alignment for
// granted.
constexpr uint32_t kFirstSharedAddress = 16;

inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - shared_memory) + kFirstSharedAddress;
}
inline unsigned char* at_shared_address(uint32_t address) { return shared_memory + (address - kFirstSharedAddress); }
// Where the 128-byte swizzle puts the byte that would be at `address`.
inline unsigned char* at_swizzled(uint32_t address) { return at_shared_address(address ^ (address >> 7 & 7) << 4); }

// A copy of a box, begun and not landed.
struct BoxCopy {
  genimg_fast::cuda::TensorBox tensor;
  const unsigned char* base;
  std::array<int, 4> first;
  uint32_t to;

  int bytes() const { return tensor.box[0] * tensor.box[1] * tensor.box[2] * tensor.box[3] * 2; }

  // f(element of the array or null beyond it, its place in shared memory)
  template <typename F>
  void for_each_element(const F& f) const {
    uint32_t place = to;
    std::array<int, 4> at;
    for (at[3] = 0; at[3] < tensor.box[3]; ++at[3])
      for (at[2] = 0; at[2] < tensor.box[2]; ++at[2])
        for (at[1] = 0; at[1] < tensor.box[1]; ++at[1])
          for (at[0] = 0; at[0] < tensor.box[0]; ++at[0], place += 2) {
            const unsigned char* from = base;
            for (int d = 0; d < 4; ++d) {
              const int64_t i = first[d] + static_cast<int64_t>(at[d]) * tensor.step[d];
              if (from) from = i < 0 || i >= tensor.size[d] ? nullptr : from + i * (d ? tensor.stride_bytes[d - 1] : 2);
            }
            f(from, at_swizzled(place));
          }
  }
};

struct Barrier {
  int arrivals, missing;  // of a phase; of the present one
  int64_t missing_bytes = 0;
  unsigned parity = 0;  // of the present phase
  std::vector<BoxCopy> copies;

  void land() {
    for (const BoxCopy& copy : copies) {
      copy.for_each_element([](const unsigned char* from, unsigned char* to) {
        from ? std::memcpy(to, from, 2) : std::memset(to, 0, 2);
      });
      missing_bytes -= copy.bytes();
    }
    copies.clear();
    end_phase_if_complete();
  }
  void end_phase_if_complete() {
    if (missing > 0 || missing_bytes != 0) return;
    missing = arrivals;
    parity ^= 1;
  }
};

// One wgmma, begun and not waited for: the pointers of each thread of the warpgroup, and the descriptor of B.
struct Wgmma {
  float* acc[kWarpgroup];
  const uint32_t* a[kWarpgroup];
  uint64_t b;
  int columns;
  float (*to_float)(uint16_t);

  // The value of B at (k, column), [columns][16] in rows of 128 bytes, eight of them 1024 from the next eight.
  float b_at(int k, int column) const {
    uint16_t bits;
    const uint32_t start = (b & 0x3fff) * 16, eight_rows = (b >> 32 & 0x3fff) * 16;
    std::memcpy(&bits, at_swizzled(start + column / 8 * eight_rows + column % 8 * 128 + k * 2), 2);
    return to_float(bits);
  }
  float a_at(int row, int k) const {  // as mma.m16n8k16, 16 rows a warp
    const int lane = row / 16 * kWarp + row % 8 * 4 + k % 8 / 2, reg = row % 16 / 8 + 2 * (k / 8);
    return to_float(static_cast<uint16_t>(a[lane][reg] >> 16 * (k % 2)));
  }
  void multiply(std::map<float*, std::vector<float>>& values) const {
    std::vector<float> right(16 * columns);
    for (int k = 0; k < 16; ++k)
      for (int c = 0; c < columns; ++c) right[k * columns + c] = b_at(k, c);
    std::vector<double> sums(columns);
    for (int row = 0; row < 64; ++row) {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int k = 0; k < 16; ++k) {
        const double left = a_at(row, k);
        for (int c = 0; c < columns; ++c) sums[c] += left * right[k * columns + c];
      }
      for (int c = 0; c < columns; ++c) {
        const int lane = row / 16 * kWarp + row % 8 * 4 + c % 8 / 2, i = row % 16 / 8 * 2 + c % 2;
        float& sum = values.at(acc[lane])[c / 8 * 4 + i];
        sum = static_cast<float>(sum + sums[c]);
      }
    }
  }
};

struct Warpgroup {
  bool fenced = false;  // since registers may have been written
  std::vector<Wgmma> open;
  std::deque<std::vector<Wgmma>> committed;           // oldest first
  std::map<float*, std::vector<float>> accumulators;  // those under way
};

struct BlockState {
  std::map<const uint64_t*, Barrier> barriers;
  std::map<int, Warpgroup> warpgroups;  // by their first thread
};

constexpr uint64_t kBarrierInMemory = 0x7ff1'7ff1'7ff1'7ff1;  // where one lies: NaN, and no guard

// That of the running block, which is complete when nothing is under way any more.
inline BlockState& block_state() {
  static BlockState state;
  if (!at_end_of_block) {
    state = {};
    at_end_of_block = [] {
      for (const auto& [address, barrier] : state.barriers)
        if (*address != kBarrierInMemory) throw std::runtime_error("mbarrier: overwritten");
      for (const auto& [address, barrier] : state.barriers)
        if (!barrier.copies.empty()) throw std::runtime_error("a block ended before a copy to it had landed");
      for (const auto& [first, group] : state.warpgroups)
        if (!group.open.empty() || !group.committed.empty())
          throw std::runtime_error("a block ended while a wgmma was under way");
    };
  }
  return state;
}

inline Barrier& barrier_at(const uint64_t* address) {
  auto found = block_state().barriers.find(address);
  if (found == block_state().barriers.end()) throw std::runtime_error("mbarrier: not initialised");
  if (*address != kBarrierInMemory) throw std::runtime_error("mbarrier: overwritten");
  return found->second;
}

inline void arrive(uint64_t* address, int bytes) {
  Barrier& barrier = barrier_at(address);
  barrier.missing_bytes += bytes;
  if (--barrier.missing < 0) throw std::runtime_error("mbarrier: more arrivals in a phase than it was made for");
  barrier.end_phase_if_complete();
  running_block->progress();
}

}  // namespace cuda_on_cpu

namespace genimg_fast::cuda {

// The box of a map, of which the driver's function was told by how much is passed over.
inline TensorBox box_of(const TensorMap& map) {
  TensorBox box{};
  for (int d = 0; d < 4; ++d) {
    box.size[d] = static_cast<int64_t>(map.sizes[d]);
    if (d > 0) box.stride_bytes[d - 1] = static_cast<int64_t>(map.strides[d - 1]);
    box.box[d] = map.count(d);
    box.step[d] = static_cast<int>(map.steps[d]);
  }
  return box;
}

inline uint32_t shared_address(const void* p) { return cuda_on_cpu::shared_address(p); }

inline void mbarrier_init(uint64_t* barrier, int arrivals) {
  require_aligned("mbarrier", barrier, 8);
  *barrier = cuda_on_cpu::kBarrierInMemory;
  cuda_on_cpu::block_state().barriers[barrier] = {arrivals, arrivals, 0, 0, {}};
}
inline void mbarrier_publish() {}
inline void fence_proxy_async() {}
inline void mbarrier_arrive(uint64_t* barrier) { cuda_on_cpu::arrive(barrier, 0); }
inline void mbarrier_arrive_expect(uint64_t* barrier, int bytes) { cuda_on_cpu::arrive(barrier, bytes); }

inline void mbarrier_wait(uint64_t* barrier, unsigned parity, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  cuda_on_cpu::running_block->poll("mbarrier_wait", site, [&] {
    cuda_on_cpu::Barrier& b = cuda_on_cpu::barrier_at(barrier);
    if (b.parity == parity && !b.copies.empty()) b.land();
    return b.parity != parity;
  });
}

inline void prefetch_tensor_map(const TensorMap&) {}

inline void tma_load(void* shared, const TensorMap& map, int c0, int c1, int c2, int c3, uint64_t* barrier) {
  const uint32_t to = shared_address(shared);
  if (to % kSwizzleBytes != 0) throw std::runtime_error("tma_load: shared address is not 1024-byte aligned");
  const cuda_on_cpu::BoxCopy copy{box_of(map), static_cast<const unsigned char*>(map.base), {c0, c1, c2, c3}, to};
  std::memset(shared, 0xff, copy.bytes());
  cuda_on_cpu::barrier_at(barrier).copies.push_back(copy);
}

inline void wgmma_fence(cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  cuda_on_cpu::running_block->warpgroup_operation("wgmma_fence", nullptr, site, [](cuda_on_cpu::Fiber* fibers) {
    cuda_on_cpu::block_state().warpgroups[fibers->thread].fenced = true;
  });
}

inline void wgmma_commit(cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  cuda_on_cpu::running_block->warpgroup_operation("wgmma_commit", nullptr, site, [](cuda_on_cpu::Fiber* fibers) {
    auto& group = cuda_on_cpu::block_state().warpgroups[fibers->thread];
    group.committed.push_back(std::move(group.open));
    group.open.clear();
  });
}

template <int kPending>
void wgmma_wait(cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  cuda_on_cpu::running_block->warpgroup_operation("wgmma_wait", nullptr, site, [](cuda_on_cpu::Fiber* fibers) {
    auto& group = cuda_on_cpu::block_state().warpgroups[fibers->thread];
    group.fenced = false;
    for (; group.committed.size() > kPending; group.committed.pop_front())
      for (const cuda_on_cpu::Wgmma& product : group.committed.front()) product.multiply(group.accumulators);
    if (!group.committed.empty() || !group.open.empty()) return;
    for (const auto& [acc, values] : group.accumulators) std::copy(values.begin(), values.end(), acc);
    group.accumulators.clear();
  });
}

template <int kFragmentsM, int kFragmentsN>
void wgmma_wait_all(float (&)[kFragmentsM][kFragmentsN][4], cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  wgmma_wait<0>(site);
}

template <typename T, int kFragmentsN>
void wgmma(float (&acc)[kFragmentsN][4], const uint32_t (&a)[4], uint64_t b,
           cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  struct Operand {
    float* acc;
    const uint32_t* a;
    uint64_t b;
  };
  const Operand operand{&acc[0][0], a, b};
  cuda_on_cpu::running_block->warpgroup_operation("wgmma", &operand, site, [](cuda_on_cpu::Fiber* fibers) {
    auto& group = cuda_on_cpu::block_state().warpgroups[fibers->thread];
    if (!group.fenced) throw std::runtime_error("wgmma: registers may have been written since the last wgmma_fence");
    cuda_on_cpu::Wgmma product{
        {}, {}, 0, 8 * kFragmentsN, [](uint16_t bits) { return to_float(__builtin_bit_cast(T, bits)); }};
    for (int i = 0; i < cuda_on_cpu::kWarpgroup; ++i) {
      const auto* own = static_cast<const Operand*>(fibers[i].operand);
      if (i > 0 && own->b != product.b) throw std::runtime_error("wgmma: the warpgroup disagrees on where B is");
      product.acc[i] = own->acc, product.a[i] = own->a, product.b = own->b;
      std::vector<float>& values = group.accumulators[own->acc];
      if (!values.empty()) continue;  // already under way
      values.assign(own->acc, own->acc + 4 * kFragmentsN);
      std::memset(own->acc, 0xff, 4 * kFragmentsN * sizeof(float));
    }
    if (product.b >> 62 != 1) throw std::runtime_error("wgmma: B is not in the 128-byte swizzle");
    group.open.push_back(product);
  });
}

}  // namespace genimg_fast::cuda
