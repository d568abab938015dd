// SPDX-License-Identifier: MIT
#include "ptx_on_cpu/races.h"

#include <algorithm>

#include "ptx_on_cpu/machine.h"

namespace ptx_on_cpu {
namespace {

constexpr uint64_t kPage = 4096;  // cells

void join_into(uint32_t* into, const uint32_t* from, int agents) {
  for (int a = 0; a < agents; ++a) into[a] = into[a] < from[a] ? from[a] : into[a];
}

int line_of(const Thread& t) {
  const Statement* statement = t.block->launch.entry->code[t.pc - 1].statement;
  return statement ? statement->line : 0;
}

}  // namespace

Races::Races(int threads)
    : threads_(threads),
      agents_(2 * threads + (threads + 31) / 32 + kMostBarriers),
      clocks_(static_cast<size_t>(threads) * agents_),
      open_copies_(threads),
      copies_begun_(kMostBarriers),
      wgmma_begun_((threads + 31) / 32),
      foreign_(threads),
      fenced_(threads),
      seen_(threads),
      fenced_clock_(threads) {}

void Races::begin_block() {
  ++block_;
  std::fill(clocks_.begin(), clocks_.end(), 0);
  for (int t = 0; t < threads_; ++t) clock(t)[t] = 1;
  std::fill(open_copies_.begin(), open_copies_.end(), 1);
  std::fill(copies_begun_.begin(), copies_begun_.end(), 0);
  std::fill(wgmma_begun_.begin(), wgmma_begun_.end(), 0);
  arrived_.assign(kMostBarriers, {});
  completed_.assign(kMostBarriers, {});
  for (auto* of_threads : {&foreign_, &fenced_, &seen_}) std::fill(of_threads->begin(), of_threads->end(), nullptr);
  std::fill(fenced_clock_.begin(), fenced_clock_.end(), Clock());
}

Races::Epoch Races::now(const Thread& t) { return {t.index, clock(t.index)[t.index], line_of(t)}; }

// ---- Shared memory.

Races::SharedCell& Races::shared_cell(uint64_t cell) {
  if (cell >= shared_.size()) shared_.resize(cell + 4096);
  SharedCell& found = shared_[cell];
  if (found.block != block_) {
    found.block = block_;
    found.write = {};
    found.reads.clear();
  }
  return found;
}

void Races::access_shared(const Thread& t, uint64_t address, uint64_t bytes, bool writes) {
  const Epoch access = now(t);
  if (writes) return write_shared(t, address, bytes, access);
  for (uint64_t c = address / kCell; c <= (address + bytes - 1) / kCell; ++c) {
    SharedCell& cell = shared_cell(c);
    if (cell.write.agent < 0) throw std::runtime_error("shared memory is read that nothing has written");
    if (!knows(t.index, cell.write)) fail(t, "reads", "shared memory", c * kCell, cell.write, "wrote", block_);
    auto own = std::find_if(cell.reads.begin(), cell.reads.end(), [&](const Epoch& r) { return r.agent == t.index; });
    if (own == cell.reads.end())
      cell.reads.push_back(access);
    else
      *own = access;
  }
}

void Races::write_shared(const Thread& t, uint64_t address, uint64_t bytes, const Epoch& write) {
  for (uint64_t c = address / kCell; c <= (address + bytes - 1) / kCell; ++c)
    write_cell(t, shared_cell(c), c * kCell, write);
}

void Races::write_cell(const Thread& t, SharedCell& cell, uint64_t address, const Epoch& write) {
  if (!knows(t.index, cell.write)) fail(t, "writes", "shared memory", address, cell.write, "wrote", block_);
  for (const Epoch& read : cell.reads)
    if (!knows(t.index, read)) fail(t, "writes", "shared memory", address, read, "read", block_);
  cell.write = write;
  cell.reads.clear();
}

void Races::begin_copy(const Thread& t, uint64_t address, uint64_t bytes) {
  write_shared(t, address, bytes, {copies_of(t.index), open_copies_[t.index], line_of(t)});
}
void Races::commit_copies(const Thread& t) { ++open_copies_[t.index]; }
void Races::end_copies(const Thread& t, size_t pending_groups) {
  const uint32_t over = open_copies_[t.index] - 1 - static_cast<uint32_t>(pending_groups);
  uint32_t& known = clock(t.index)[copies_of(t.index)];
  known = std::max(known, over);
}

void Races::begin_bulk_copy(const Thread& t, int barrier, uint64_t address, uint64_t bytes) {
  if (barrier >= kMostBarriers) throw std::runtime_error("more barriers than are looked after");
  write_shared(t, address, bytes, {copies_on(barrier), ++copies_begun_[barrier], line_of(t)});
}

void Races::begin_wgmma(Thread* const* warpgroup) {
  // What is before it is before it in all its threads.
  wgmma_clock_.assign(agents_, ~uint32_t{0});
  for (int k = 0; k < kWarpgroup; ++k)
    for (int a = 0; a < agents_; ++a) wgmma_clock_[a] = std::min(wgmma_clock_[a], clock(warpgroup[k]->index)[a]);
  for (int warp = 0; warp < kWarpgroup / kWarp; ++warp) ++wgmma_begun_[warpgroup[warp * kWarp]->index / kWarp];
}
void Races::read_by_wgmma(Thread* const* warpgroup, uint64_t address, uint64_t bytes) {
  for (uint64_t c = address / kCell; c <= (address + bytes - 1) / kCell; ++c) {
    SharedCell& cell = shared_cell(c);
    if (cell.write.agent < 0) throw std::runtime_error("shared memory is read that nothing has written");
    if (wgmma_clock_[cell.write.agent] < cell.write.time)
      fail(*warpgroup[0], "reads", "shared memory", c * kCell, cell.write, "wrote", block_);
    for (int warp = 0; warp < kWarpgroup / kWarp; ++warp) {
      const int thread = warpgroup[warp * kWarp]->index, agent = wgmma_of(thread);
      const Epoch access{agent, wgmma_begun_[thread / kWarp], line_of(*warpgroup[0])};
      auto own = std::find_if(cell.reads.begin(), cell.reads.end(), [&](const Epoch& r) { return r.agent == agent; });
      if (own == cell.reads.end())
        cell.reads.push_back(access);
      else
        *own = access;
    }
  }
}
void Races::end_wgmma(Thread* const* warpgroup, bool all) {
  if (!all) return;  // the latest groups may still read
  for (int k = 0; k < kWarpgroup; ++k) {
    const int thread = warpgroup[k]->index;
    clock(thread)[wgmma_of(thread)] = wgmma_begun_[thread / kWarp];
  }
}

// ---- Global memory.

bool Races::knows_block(int thread, int block, const Epoch& epoch) {
  if (!foreign_[thread]) return false;
  const auto found = foreign_[thread]->find(block);
  return found != foreign_[thread]->end() && found->second[epoch.agent] >= epoch.time;
}

void Races::access_global(const Thread& t, uint64_t address, uint64_t bytes, bool writes) {
  const Epoch access = now(t);
  auto is_before = [&](const Epoch& epoch, int block) {
    return block < 0 || (block == block_ ? knows(t.index, epoch) : knows_block(t.index, block, epoch));
  };
  uint64_t page = ~uint64_t{0};
  std::vector<GlobalCell>* cells = nullptr;
  for (uint64_t c = address / kCell; c <= (address + bytes - 1) / kCell; ++c) {
    if (c / kPage != page) {
      page = c / kPage;
      cells = &global_[page];
      if (cells->empty()) cells->resize(kPage);
    }
    GlobalCell& cell = (*cells)[c % kPage];
    if (!is_before(cell.write, cell.write_block))
      fail(t, writes ? "writes" : "reads", "global memory", c * kCell - address, cell.write, "wrote", cell.write_block);
    if (writes && !is_before(cell.read, cell.read_block))
      fail(t, "writes", "global memory", c * kCell - address, cell.read, "read", cell.read_block);
    (writes ? cell.write : cell.read) = access;
    (writes ? cell.write_block : cell.read_block) = block_;
  }
}

// ---- Synchronisation.

void Races::join(Clock& into, const uint32_t* from) { join_into(into.data(), from, static_cast<int>(into.size())); }

void Races::meet_block() {
  // All know what any knew.
  Clock all(agents_);
  std::shared_ptr<Foreign> foreign;
  for (int t = 0; t < threads_; ++t) {
    join(all, clock(t));
    if (foreign_[t]) foreign = foreign_[t];  // of one thread: kernels have one that takes a ticket
  }
  for (int t = 0; t < threads_; ++t) {
    std::copy(all.begin(), all.end(), clock(t));
    ++clock(t)[t];
    if (foreign) foreign_[t] = foreign;
  }
}

void Races::meet(Thread* const* lanes, int count) {
  Clock all(agents_);
  for (int k = 0; k < count; ++k)
    if (lanes[k]) join(all, clock(lanes[k]->index));
  for (int k = 0; k < count; ++k) {
    if (!lanes[k]) continue;
    const int t = lanes[k]->index;
    std::copy(all.begin(), all.end(), clock(t));
    ++clock(t)[t];
  }
}

void Races::arrive(const Thread& t, int barrier) {
  if (arrived_[barrier].empty()) arrived_[barrier].resize(agents_);
  join(arrived_[barrier], clock(t.index));
  ++clock(t.index)[t.index];
}
void Races::end_phase(int barrier) {
  if (arrived_[barrier].empty()) arrived_[barrier].resize(agents_);
  arrived_[barrier][copies_on(barrier)] = copies_begun_[barrier];
  completed_[barrier] = arrived_[barrier];
}
void Races::wait(const Thread& t, int barrier) {
  if (!completed_[barrier].empty()) join_into(clock(t.index), completed_[barrier].data(), agents_);
}

// PTX ISA, "Release and Acquire Patterns": a fence and then a relaxed write release, a relaxed read and then a fence
// acquire.
void Races::fence(const Thread& t) {
  const int i = t.index;
  if (seen_[i]) {  // what atomics told
    auto known = std::make_shared<Foreign>(foreign_[i] ? *foreign_[i] : Foreign());
    for (const auto& [block, from] : *seen_[i])
      if (block == block_)
        join_into(clock(i), from.data(), agents_);
      else
        (*known)[block] = from;
    foreign_[i] = known;
  }
  fenced_clock_[i].assign(clock(i), clock(i) + agents_);
  fenced_[i] = foreign_[i];
  ++clock(i)[i];
}

void Races::atomic(const Thread& t, uint64_t address) {
  const int i = t.index;
  Foreign& released = released_[address];
  seen_[i] = std::make_shared<Foreign>(released);
  if (fenced_clock_[i].empty()) return;  // nothing was fenced before it
  if (fenced_[i])
    for (const auto& [block, from] : *fenced_[i]) released[block] = from;
  Clock& own = released[block_];
  if (own.empty()) own.resize(agents_);
  join(own, fenced_clock_[i].data());
}

void Races::fail(const Thread& t, const char* what, const char* memory, uint64_t address, const Epoch& earlier,
                 const char* did, int block) const {
  std::string who = "thread " + std::to_string(earlier.agent);
  if (earlier.agent >= copies_on(0))
    who = "a copy that completes on barrier " + std::to_string(earlier.agent - copies_on(0));
  else if (earlier.agent >= wgmma_of(0))
    who = "the wgmma of warp " + std::to_string(earlier.agent - wgmma_of(0));
  else if (earlier.agent >= copies_of(0))
    who = "the cp.async of thread " + std::to_string(earlier.agent - copies_of(0));
  if (block != block_) who += " of another block";
  throw std::runtime_error("race: thread " + std::to_string(t.index) + " " + what + " " + memory + " (byte " +
                           std::to_string(address) + ") that " + who + " " + did + " in line " +
                           std::to_string(earlier.line) + ", and nothing orders the two");
}

}  // namespace ptx_on_cpu
