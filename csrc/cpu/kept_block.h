// SPDX-License-Identifier: MIT
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

#include "cpu/aligned_array.h"

namespace genimg_fast::cpu {

// A block of memory of which the last one freed is kept for the next call.
//
// A training step frees what it wrote and asks for as much again.  The allocator gives a large block back to the system
// and gets new pages, which take longer to fault in than a loss takes to fill them (25 MB: up to 9 ms against 3.5).
// One block is kept in all, and none above kLargest; an atomic pointer rather than a lock, which a fork could leave
// locked in the child.
struct KeptBlock {
  static constexpr int64_t kSmallest = 4 << 20;  // below, the allocator keeps the memory itself
  static constexpr int64_t kLargest = 128 << 20;

  static std::unique_ptr<KeptBlock> take(int64_t bytes) {
    std::unique_ptr<KeptBlock> block(kept.exchange(nullptr));
    // Not much larger than asked for: the last batch of an epoch may be smaller, another model is none of its business.
    if (block && bytes <= block->bytes && block->bytes <= 2 * bytes) return block;
    block.reset();  // before the new one is made
    return std::unique_ptr<KeptBlock>(new KeptBlock{aligned_array<char>(bytes), bytes});
  }

  static void keep(std::unique_ptr<KeptBlock> block) {
    std::unique_ptr<KeptBlock> previous(kept.exchange(block.release()));
  }

  AlignedArray<char> memory;
  int64_t bytes;

 private:
  static std::atomic<KeptBlock*> kept;  // never freed at exit, when tensors may still live
};
inline std::atomic<KeptBlock*> KeptBlock::kept{nullptr};

}  // namespace genimg_fast::cpu
