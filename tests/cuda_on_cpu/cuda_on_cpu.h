// SPDX-License-Identifier: MIT
// The part of CUDA that csrc/cuda uses, on the host: one fiber a thread, one block after the other.
//
// Stricter than a GPU on purpose.  Dynamic shared memory is NaN when a block starts, is aligned to 16 bytes and no
// more, and lies between guard zones that must be unchanged when the block ends.  A barrier must be reached by every
// thread of the block at the same place, a warp operation by every lane of its mask, and every thread must wait for the
// kernel before its own; otherwise the launch throws.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda/dtype.h"
#include "earlier_results.h"
#include "fibers.h"
#include "half_types.h"
#include "launches.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define GENIMG_FAST_GRID_CONSTANT
// No __shared__: kernels use dynamic shared memory only (see cuda/platform.cuh).
#define GENIMG_FAST_SHARED(T, name) T* name = reinterpret_cast<T*>(::cuda_on_cpu::shared_memory)

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace cuda_on_cpu {

constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 227 * 1024;  // sm_90
constexpr size_t kGuardBytes = 4096;
constexpr uint16_t kGuard = 0x7ffd;  // NaN as half, bfloat16, float and double

inline int resident_blocks = 8;  // so few that small arrays take several rounds of a grid

inline unsigned char* shared_memory = nullptr;  // of the running block

// The shared memory of one block: [guard][bytes][guard].
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : bytes_(bytes), storage_(new unsigned char[2 * kGuardBytes + bytes + 64]) {
    const uintptr_t first = reinterpret_cast<uintptr_t>(storage_.get()) + kGuardBytes;
    shared_memory = reinterpret_cast<unsigned char*>((first + 31) / 32 * 32 + 16);
    std::memset(shared_memory, 0xff, bytes_);  // NaN in every floating-point type
    for (size_t i = 0; i < kGuardBytes; ++i) before()[i] = after()[i] = guard_byte(i);
    set_guards_accessible(false);
  }
  ~SharedMemory() {
    set_guards_accessible(true);
    shared_memory = nullptr;
  }
  SharedMemory(const SharedMemory&) = delete;

  void check_guards() {
    set_guards_accessible(true);
    for (size_t i = 0; i < kGuardBytes; ++i) {
      if (before()[i] != guard_byte(i)) fail(-static_cast<long>(kGuardBytes - i));
      if (after()[i] != guard_byte(i)) fail(static_cast<long>(bytes_ + i));
    }
  }

 private:
  unsigned char* before() const { return shared_memory - kGuardBytes; }
  unsigned char* after() const { return shared_memory + bytes_; }
  static unsigned char guard_byte(size_t i) { return i % 2 ? kGuard >> 8 : kGuard & 0xff; }

  [[noreturn]] void fail(long offset) const {
    throw std::runtime_error("a kernel wrote at byte " + std::to_string(offset) + " of its " + std::to_string(bytes_) +
                             " bytes of shared memory, in block (" + std::to_string(blockIdx.x) + "," +
                             std::to_string(blockIdx.y) + "," + std::to_string(blockIdx.z) + ")");
  }

  void set_guards_accessible([[maybe_unused]] bool accessible) const {
#ifdef __SANITIZE_ADDRESS__  // which then names the line that reads or writes there
    for (unsigned char* guard : {before(), after()})
      accessible ? __asan_unpoison_memory_region(guard, kGuardBytes) : __asan_poison_memory_region(guard, kGuardBytes);
#endif
  }

  size_t bytes_;
  std::unique_ptr<unsigned char[]> storage_;
};

inline void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  const size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
  const size_t blocks = static_cast<size_t>(grid.x) * grid.y * grid.z;
  if (threads == 0 || threads > kMaxThreads || blocks == 0 || grid.y > 65535 || grid.z > 65535 ||
      shared_bytes > kMaxSharedBytes)
    throw std::runtime_error("invalid launch: grid (" + std::to_string(grid.x) + "," + std::to_string(grid.y) + "," +
                             std::to_string(grid.z) + "), " + std::to_string(threads) + " threads a block, " +
                             std::to_string(shared_bytes) + " bytes of shared memory");
  blockDim = block;
  gridDim = grid;
  EarlierResults results;
  earlier_results = &results;
  std::vector<size_t> order(blocks);
  std::iota(order.begin(), order.end(), size_t{0});
  if (schedule == Schedule::reverse) std::reverse(order.begin(), order.end());
  if (schedule == Schedule::random) std::shuffle(order.begin(), order.end(), schedule_random);
  for (size_t b : order) {
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    SharedMemory memory(shared_bytes);
    Block running(block, body);
    running.run();
    memory.check_guards();
    if (!running.all_awaited()) throw std::runtime_error("a thread did not wait for the kernel before its own");
  }
}

// The value that each lane gets from lane `source(lane)`.  A lane asking beyond its group of `width` gets its own
// value; one asking a lane that takes no part gets NaN, where CUDA leaves the result undefined.
template <typename T>
T shuffle(const char* name, unsigned mask, T value, int source, cuda_on_cpu::Site site) {
  static_assert(std::is_trivially_copyable_v<T>);
  struct Operand {
    T value;
    int source;
  };
  const Operand operand{value, source};
  T result;
  running_block->warp_operation(name, mask, &operand, &result, site, [](Fiber* const(&lanes)[kWarp]) {
    for (Fiber* lane : lanes) {
      if (!lane) continue;
      const Fiber* from = lanes[static_cast<const Operand*>(lane->operand)->source];
      if (from)
        std::memcpy(lane->result, &static_cast<const Operand*>(from->operand)->value, sizeof(T));
      else
        std::memset(lane->result, 0xff, sizeof(T));
    }
  });
  return result;
}

inline int lane_id() { return running_block->current().thread % kWarp; }

}  // namespace cuda_on_cpu

inline void __syncthreads(cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  cuda_on_cpu::running_block->block_barrier(site);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  cuda_on_cpu::running_block->warp_operation("__syncwarp", mask, nullptr, nullptr, site, [](auto&) {});
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  const int group = cuda_on_cpu::lane_id() & ~(width - 1);
  return cuda_on_cpu::shuffle("__shfl_sync", mask, value, group + (source & (width - 1)), site);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  const int lane = cuda_on_cpu::lane_id(), source = lane ^ lane_mask;
  return cuda_on_cpu::shuffle("__shfl_xor_sync", mask, value, source > (lane | (width - 1)) ? lane : source, site);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, int delta, int width = 32,
                   cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  const int lane = cuda_on_cpu::lane_id(), source = lane + delta;
  return cuda_on_cpu::shuffle("__shfl_down_sync", mask, value, source > (lane | (width - 1)) ? lane : source, site);
}

template <typename T>
T __ldg(const T* p) {
  return *p;
}

// Blocks run one after the other and threads one at a time: nothing comes between, and all sees all.
inline void __threadfence() {}
inline int atomicAdd(int* p, int value) { return std::exchange(*p, *p + value); }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __uint_as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }

namespace genimg_fast::cuda {

// As in cuda/platform.cuh.
inline int multiprocessor_count() { return 132; }
inline int most_resident_blocks() { return cuda_on_cpu::resident_blocks; }
template <typename... Parameters>
int resident_blocks(void (*)(Parameters...), size_t) {
  return most_resident_blocks();
}
template <typename... Parameters>
void prefer_shared_memory(void (*)(Parameters...)) {}
inline void set_zero(void* p, size_t bytes, Stream stream) {
  cuda_on_cpu::take_launch(stream, nullptr, [=] { std::memset(p, 0, bytes); });
}
template <typename... Parameters, typename... Args>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, Args... args) {
  const std::tuple<std::decay_t<Parameters>...> parameters(static_cast<std::decay_t<Parameters>>(args)...);
  cuda_on_cpu::take_launch(stream, reinterpret_cast<const void*>(kernel), [=] {
    auto run = [&](const auto&... parameter) {
      if (cuda_on_cpu::run_instead)
        cuda_on_cpu::run_instead(reinterpret_cast<const void*>(kernel), {grid.x, grid.y, grid.z},
                                 {block.x, block.y, block.z}, shared_bytes, {{&parameter, sizeof(parameter)}...});
      else
        cuda_on_cpu::run_grid(grid, block, shared_bytes, [&] { kernel(parameter...); });
    };
    std::apply(run, parameters);
  });
}

template <typename... Parameters, typename... Args>
void launch_after_memset(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
                         Args... args) {
  launch(kernel, grid, block, shared_bytes, stream, args...);
}

}  // namespace genimg_fast::cuda
