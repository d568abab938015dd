// SPDX-License-Identifier: MIT
// What happens beside the threads of a block: copies of the tensor memory accelerator, the barriers in shared memory
// that they complete, and the multiplications of warpgroups.
#pragma once
#include "ptx_on_cpu/machine.h"

namespace ptx_on_cpu {

class Decoder;

// A thread accesses shared memory through the generic proxy.
void note_shared_access(Thread& t, uint64_t address, uint64_t bytes, bool writes);
inline void note_proxy(Thread& t, uint64_t address, uint64_t bytes, bool writes) {
  if (t.block->tracks_proxies) note_shared_access(t, address, bytes, writes);
}
// And where it does.
inline unsigned char* touch_shared(Thread& t, uint64_t address, uint64_t bytes, bool writes) {
  unsigned char* place = t.block->shared(address, bytes);
  note_proxy(t, address, bytes, writes);
  t.block->races().access_shared(t, address, bytes, writes);
  return place;
}

void decode_bulk_copy(Decoder& d);  // cp.async.bulk
void decode_wgmma(Decoder& d);      // wgmma.cpp

// The 128-byte swizzle: bits 4 to 6 of an address of shared memory are exchanged by bits 7 to 9.
inline uint64_t swizzled_128(uint64_t address) { return address ^ (address >> 7 & 7) << 4; }

// One cp.async.bulk.tensor, begun and not landed.
struct BoxCopy {
  const void* map;
  int first[4];
  uint64_t to;
};

struct Barrier {
  int number = 0;
  uint32_t expected = 0, pending = 0;  // arrivals of a phase; those that are missing of the present one
  int64_t tx_count = 0;
  unsigned phase = 0;
  int initialised_by = 0;
  bool published = false;  // to the accelerator
  std::vector<BoxCopy> copies;
};

// A wgmma.mma_async, begun and not waited for.
struct Wgmma {
  const Instruction* instruction;
  uint64_t b;
  bool adds;                // to the accumulators; else they begin at zero
  std::vector<uint32_t> a;  // registers of A when it was begun, [thread][4]
};

struct Warpgroup {
  bool fenced = false;  // since registers may have been accessed
  std::vector<Wgmma> open;
  std::deque<std::vector<Wgmma>> committed;  // oldest first
  // Of accumulators that are under way, by their first register: the values, [thread][register].
  std::map<int, std::pair<const Instruction*, std::vector<float>>> accumulators;
};

// An access through the generic proxy that no fence of the thread has followed yet, if fences is still its count.
struct GenericAccess {
  int thread;
  unsigned fences;
  bool writes;
};

struct AsyncState {
  std::map<uint64_t, Barrier> barriers;              // by their shared address
  std::map<int, Warpgroup> warpgroups;               // by their first thread
  std::vector<std::vector<GenericAccess>> accesses;  // of each 16 bytes of shared memory
};

// Throws where the asynchronous proxy would access `bytes` bytes that a thread accessed through the generic one, and
// has not fenced since.
void require_proxy_fence(Block& block, uint64_t address, uint64_t bytes, bool only_writes, const char* who);

}  // namespace ptx_on_cpu
