// SPDX-License-Identifier: MIT
// Accesses to memory that nothing orders: of two agents, at least one of them a write, and neither happens before the
// other.  They are found whatever values were read, in the order that happened to be run.
//
// Each agent counts its own time, and knows of every other one up to which time it has synchronised with it (a vector
// clock).  Agents are the threads of a block, and what runs beside them: the cp.async of each thread, the wgmma of each
// warp, and the copies that complete on each mbarrier.  What orders, after the PTX ISA's memory consistency model:
//
//   bar.sync, bar.warp.sync          all threads that meet
//   mbarrier.arrive -> try_wait      which saw the end of the phase; the copies that the phase counted too
//   cp.async.wait_group, wgmma.wait_group   the thread and what it began
//   membar; atom -> atom; membar     threads of any blocks
//
// and not: shfl, ldmatrix, mma, volatile, nor the order in which warps of a block seem to run.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace ptx_on_cpu {

struct Thread;

class Races {
 public:
  explicit Races(int threads);
  void begin_block();

  // ---- Accesses.  Throw if something that nothing orders before has accessed the same bytes.

  void access_shared(const Thread& t, uint64_t address, uint64_t bytes, bool writes);
  void access_global(const Thread& t, uint64_t address, uint64_t bytes, bool writes);

  // cp.async and its groups.
  void begin_copy(const Thread& t, uint64_t address, uint64_t bytes);
  void commit_copies(const Thread& t);
  void end_copies(const Thread& t, size_t pending_groups);
  // A copy that completes on a barrier, by its number.
  void begin_bulk_copy(const Thread& t, int barrier, uint64_t address, uint64_t bytes);
  // What wgmma reads of shared memory, of a warpgroup; all that its warps began is over.
  void begin_wgmma(Thread* const* warpgroup);
  void read_by_wgmma(Thread* const* warpgroup, uint64_t address, uint64_t bytes);
  void end_wgmma(Thread* const* warpgroup, bool all);

  // ---- Synchronisation.

  void meet_block();
  void meet(Thread* const* lanes, int count);
  void arrive(const Thread& t, int barrier);
  void end_phase(int barrier);
  void wait(const Thread& t, int barrier);
  void fence(const Thread& t);                     // membar
  void atomic(const Thread& t, uint64_t address);  // relaxed

 private:
  using Clock = std::vector<uint32_t>;
  struct Epoch {
    int agent = -1;
    uint32_t time = 0;
    int line = 0;
  };
  struct SharedCell {
    int block = -1;  // of what an earlier block left there nothing is kept
    Epoch write;
    std::vector<Epoch> reads;
  };
  struct GlobalCell {  // of reads the last alone: input is read by many
    Epoch write, read;
    int write_block = -1, read_block = -1;
  };
  // What a thread knows of the agents of other blocks, by the number of the block.
  using Foreign = std::map<int, Clock>;

  static constexpr int kMostBarriers = 64;
  static constexpr uint64_t kCell = 1;  // bytes

  uint32_t* clock(int thread) { return clocks_.data() + static_cast<size_t>(thread) * agents_; }
  bool knows(int thread, const Epoch& epoch) { return epoch.agent < 0 || clock(thread)[epoch.agent] >= epoch.time; }
  Epoch now(const Thread& t);
  int copies_of(int thread) const { return threads_ + thread; }
  int wgmma_of(int thread) const { return 2 * threads_ + thread / 32; }
  int copies_on(int barrier) const { return 2 * threads_ + (threads_ + 31) / 32 + barrier; }
  static void join(Clock& into, const uint32_t* from);

  SharedCell& shared_cell(uint64_t cell);
  void write_shared(const Thread& t, uint64_t address, uint64_t bytes, const Epoch& write);
  void write_cell(const Thread& t, SharedCell& cell, uint64_t address, const Epoch& write);
  bool knows_block(int thread, int block, const Epoch& epoch);
  [[noreturn]] void fail(const Thread& t, const char* what, const char* memory, uint64_t address, const Epoch& earlier,
                         const char* did, int block) const;

  const int threads_, agents_;
  int block_ = -1;  // the number of the present one, in the order in which they run
  std::vector<uint32_t> clocks_;
  std::vector<SharedCell> shared_;
  std::unordered_map<uint64_t, std::vector<GlobalCell>> global_;  // by page
  std::vector<uint32_t> open_copies_;                             // of each thread: groups that were committed, and one
  std::vector<Clock> arrived_, completed_;                        // of barriers: in this phase, in those before
  std::vector<uint32_t> copies_begun_;                            // on each barrier
  std::vector<uint32_t> wgmma_begun_;                             // of each warp
  Clock wgmma_clock_;                                             // what all threads of the warpgroup know

  std::vector<std::shared_ptr<Foreign>> foreign_, fenced_, seen_;  // of each thread: known, at its last membar, by atom
  std::vector<Clock> fenced_clock_;
  std::map<uint64_t, Foreign> released_;  // by the address of an atomic
};

}  // namespace ptx_on_cpu
