// SPDX-License-Identifier: MIT
// The threads of a block while their kernel is interpreted, and the memory that they reach.
//
// The scheduler is that of tests/cuda_on_cpu/fibers.h: depth-first, so that under the forward schedule warp 0 goes as
// far as it can before warp 1 starts.  Here threads need no stacks of their own: a thread is its registers and the
// number of its next instruction.
#pragma once
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fibers.h"
#include "ptx_on_cpu/program.h"
#include "ptx_on_cpu/races.h"

namespace ptx_on_cpu {

constexpr int kWarp = 32;
constexpr int kWarpgroup = 128;

// Dynamic shared memory begins here: no kernel may take a coarser alignment than it declares, 16, for granted.
constexpr uint64_t kFirstSharedAddress = 16;

class Block;

// A copy that cp.async has begun: `bytes` are written, of which the first `from_global` come from there.
struct AsyncCopy {
  unsigned char* shared;
  const unsigned char* global;
  int bytes, from_global;
};

struct Thread {
  enum class State { ready, at_block_barrier, at_warp_operation, at_warpgroup_operation, polling, returned };

  uint64_t* r = nullptr;  // its registers
  Block* block = nullptr;
  int index = 0;
  int pc = 0;
  State state = State::ready;
  const Instruction* at = nullptr;  // what it waits at, with the other threads
  uint32_t mask = 0;

  bool awaited = false;       // the kernel before this one
  unsigned proxy_fences = 0;  // fence.proxy.async, counted
  unsigned char* local = nullptr;
  std::vector<AsyncCopy> open_group;                    // cp.async not yet committed
  std::deque<std::vector<AsyncCopy>> committed_groups;  // oldest first
};

template <typename T>
T get(const Thread& t, int slot) {
  T value;
  std::memcpy(&value, t.r + slot, sizeof(T));
  return value;
}
template <typename T>
void set(Thread& t, int slot, T value) {
  if (slot == kNoSlot) return;
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  t.r[slot] = bits;
}

// What a kernel is started with.
struct Launch {
  const Entry* entry;
  uint3 grid, block;
  size_t shared_bytes;
  const unsigned char* parameters;
  std::vector<std::pair<uint64_t, uint64_t>> arrays;  // begin and end of each that the kernel may touch
  bool waits;  // whether threads must wait for the kernel before, which older GPUs cannot
};

struct AsyncState;  // of TMA, barriers in shared memory and wgmma: async.cpp

class Block {
 public:
  explicit Block(const Launch& launch);
  // Runs one block of the grid after the other.  Registers keep what an earlier one left in them: to the kernel they
  // are undefined.
  void run(uint3 block_index);

  const Launch& launch;
  uint3 index{};
  const bool tracks_proxies;  // whether accesses to shared memory are noted, for copies of the accelerator

  // ---- Memory: where `bytes` bytes at an address of a state space lie.  Throws if a thread may not access them.

  unsigned char* shared(uint64_t address, uint64_t bytes) {
    if (address < kFirstSharedAddress || address + bytes > kFirstSharedAddress + launch.shared_bytes)
      beyond("shared memory", address, bytes);
    require_aligned(address, bytes);
    return shared_window_ + address;
  }
  unsigned char* global(const Thread& t, uint64_t address, uint64_t bytes, bool writes) {
    require_global(t, address, bytes);
    races_.access_global(t, address, bytes, writes);
    return reinterpret_cast<unsigned char*>(address);
  }
  // The same for atom, which races with no other.
  unsigned char* global_atomic(const Thread& t, uint64_t address, uint64_t bytes) {
    require_global(t, address, bytes);
    return reinterpret_cast<unsigned char*>(address);
  }
  const unsigned char* parameter(uint64_t address, uint64_t bytes) const {
    const uint64_t begin = reinterpret_cast<uint64_t>(launch.parameters);
    if (address < begin || address + bytes > begin + launch.entry->parameter_bytes)
      beyond("parameters", address - begin, bytes);
    require_aligned(address, bytes);
    return reinterpret_cast<const unsigned char*>(address);
  }
  unsigned char* local(const Thread& t, uint64_t address, uint64_t bytes) const {
    const uint64_t begin = reinterpret_cast<uint64_t>(t.local);
    if (address < begin || address + bytes > begin + launch.entry->local_bytes)
      beyond("local memory", address - begin, bytes);
    require_aligned(address, bytes);
    return reinterpret_cast<unsigned char*>(address);
  }
  // Generic addresses are addresses of the host; shared memory's window begins here.
  uint64_t shared_window() const { return reinterpret_cast<uint64_t>(shared_window_); }
  bool is_shared(uint64_t generic) const {
    return generic >= shared_window() + kFirstSharedAddress &&
           generic <= shared_window() + kFirstSharedAddress + launch.shared_bytes;
  }

  // ---- Threads that wait for each other.

  // All threads of the block.
  void meet_block(Thread& t, const Instruction& i);
  // The lanes of `mask`, at the same instruction.  The last calls combine(lanes, i); lanes that take no part are null.
  using Combine = void (*)(Thread* const* lanes, const Instruction& i);
  void meet_warp(Thread& t, const Instruction& i, uint32_t mask, Combine combine);
  // The four warps of a warpgroup.
  void meet_warpgroup(Thread& t, const Instruction& i, Combine combine);
  // Lets all others go first.
  void poll(Thread& t, const Instruction& i);
  // What a polling thread waits for may have happened.
  void progress() { idle_polls_ = 0; }
  void end(Thread& t) {
    t.state = Thread::State::returned;
    running_ = false;
  }

  Thread& thread(int index) { return threads_[index]; }
  int thread_count() const { return static_cast<int>(threads_.size()); }

  AsyncState& async() { return *async_; }
  Races& races() { return races_; }

 private:
  static constexpr std::pair<uint64_t, uint64_t> kNoArray{0, 0};

  void require_global(const Thread& t, uint64_t address, uint64_t bytes) {
    if (launch.waits && !t.awaited)
      throw std::runtime_error("global memory is accessed before the kernel has waited for the one before it");
    require_aligned(address, bytes);
    const auto& array = launch.arrays.empty() ? kNoArray : launch.arrays[last_array_];
    if (address < array.first || address + bytes > array.second) find_array(address, bytes);
  }
  static void require_aligned(uint64_t address, uint64_t bytes) {
    // An access of a vector of 16 bytes and so on; cp.async.bulk checks its own.
    if (bytes <= 16 && address % bytes != 0)
      throw std::runtime_error("address is not " + std::to_string(bytes) + "-byte aligned");
  }
  [[noreturn]] static void beyond(const char* what, uint64_t address, uint64_t bytes);
  void find_array(uint64_t address, uint64_t bytes);

  void begin(uint3 block_index);
  void resume(Thread& t);
  void make_ready(const std::vector<int>& threads);
  std::string describe(const Instruction& i) const;
  std::string describe_waiting() const;

  void wait_at(Thread& t, Thread::State state, const Instruction& i) {
    t.state = state;
    t.at = &i;
    running_ = false;
  }

  std::vector<Thread> threads_;
  std::vector<int> all_;  // their numbers
  std::vector<uint64_t> registers_;
  std::vector<unsigned char> shared_, local_;
  unsigned char* shared_window_;  // shared address 0
  size_t last_array_ = 0;
  std::vector<int> ready_;  // a stack: what is pushed last runs first
  bool running_ = false;    // the thread that is resumed
  int at_block_barrier_ = 0;
  size_t idle_polls_ = 0;  // one after the other, since something last happened
  std::shared_ptr<AsyncState> async_;
  Races races_;
};

// async.cpp.  The second, when all threads have returned: throws if something is still under way.
std::shared_ptr<AsyncState> make_async_state();
void check_at_end_of_block(const AsyncState& state, Block& block);

// All blocks of a grid, in the order of the shim's schedule.
void run_grid(const Launch& launch);

}  // namespace ptx_on_cpu
