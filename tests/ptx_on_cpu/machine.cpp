// SPDX-License-Identifier: MIT
#include "ptx_on_cpu/machine.h"

#include <algorithm>
#include <numeric>

namespace ptx_on_cpu {
namespace {

using cuda_on_cpu::Schedule, cuda_on_cpu::schedule, cuda_on_cpu::schedule_random;

constexpr int64_t kMostInstructions = 100'000'000;  // of a thread, between two waits: more is a loop without an end
constexpr size_t kIdlePolls = 64;                   // a thread: so many that under the random schedule none is left out

// The value of %tid.x and so on; what is the same for all threads of a grid ignores the rest.
uint64_t special_register(const std::string& name, const Launch& launch, uint3 block, int thread) {
  auto axis = [&](const uint3& v) { return name.back() == 'x' ? v.x : name.back() == 'y' ? v.y : v.z; };
  const uint3& size = launch.block;
  const std::string what = name.substr(0, name.find('.'));
  if (what == "%tid") return axis({thread % size.x, thread / size.x % size.y, thread / (size.x * size.y)});
  if (what == "%ntid") return axis(size);
  if (what == "%ctaid") return axis(block);
  if (what == "%nctaid") return axis(launch.grid);
  if (name == "%laneid") return thread % kWarp;
  throw std::runtime_error("unknown special register " + name);
}

}  // namespace

Block::Block(const Launch& launch)
    : launch(launch),
      tracks_proxies(launch.entry->uses_async_proxy),
      threads_(static_cast<size_t>(launch.block.x) * launch.block.y * launch.block.z),
      all_(threads_.size()),
      registers_(threads_.size() * launch.entry->slots.size()),
      shared_(launch.shared_bytes + 1024 + kFirstSharedAddress),
      async_(make_async_state()),
      races_(static_cast<int>(threads_.size())) {
  const uint64_t storage = reinterpret_cast<uint64_t>(shared_.data());
  shared_window_ = shared_.data() + ((storage + 1023) / 1024 * 1024 - storage);
  const std::vector<Slot>& slots = launch.entry->slots;
  const size_t local_bytes = (launch.entry->local_bytes + 15) / 16 * 16;
  local_.resize(threads_.size() * local_bytes + 16);
  const uint64_t local = (reinterpret_cast<uint64_t>(local_.data()) + 15) / 16 * 16;
  std::iota(all_.begin(), all_.end(), 0);
  for (int t : all_) {
    Thread& thread = threads_[t];
    thread.block = this;
    thread.index = t;
    thread.r = registers_.data() + t * slots.size();
    thread.local = reinterpret_cast<unsigned char*>(local + t * local_bytes);
    for (size_t s = 0; s < slots.size(); ++s) {
      const Slot& slot = slots[s];
      switch (slot.kind) {
        case Slot::Kind::register_:  // NaN in every floating-point type, until something is written
          thread.r[s] = slot.bits == 1 ? 0 : slot.bits == 64 ? ~uint64_t{0} : (uint64_t{1} << slot.bits) - 1;
          break;
        case Slot::Kind::constant:
          thread.r[s] = slot.value;
          break;
        case Slot::Kind::special:
          thread.r[s] = special_register(slot.name, launch, {}, t);
          break;
        case Slot::Kind::param:
          thread.r[s] = reinterpret_cast<uint64_t>(launch.parameters) + slot.value;
          break;
        case Slot::Kind::shared:
          thread.r[s] = kFirstSharedAddress;
          break;
        case Slot::Kind::local:
          thread.r[s] = reinterpret_cast<uint64_t>(thread.local) + slot.value;
          break;
      }
    }
  }
}

void Block::begin(uint3 block_index) {
  index = block_index;
  async_ = make_async_state();
  std::fill(shared_.begin(), shared_.end(), 0xff);  // NaN again
  races_.begin_block();
  const std::vector<Slot>& slots = launch.entry->slots;
  for (size_t s = 0; s < slots.size(); ++s)
    if (slots[s].kind == Slot::Kind::special && slots[s].name.compare(0, 6, "%ctaid") == 0)
      for (Thread& thread : threads_) thread.r[s] = special_register(slots[s].name, launch, index, thread.index);
  for (Thread& thread : threads_) {
    thread.pc = 0;
    thread.awaited = false;
    thread.open_group.clear();
    thread.committed_groups.clear();
  }
  make_ready(all_);
}

void Block::run(uint3 block_index) {
  begin(block_index);
  for (size_t returned = 0; returned < threads_.size();) {
    if (ready_.empty()) throw std::runtime_error("divergent barrier, the block cannot go on: " + describe_waiting());
    if (schedule == Schedule::random) std::swap(ready_[schedule_random() % ready_.size()], ready_.back());
    Thread& t = threads_[ready_.back()];
    ready_.pop_back();
    t.state = Thread::State::ready;
    resume(t);
    returned += t.state == Thread::State::returned;
  }
  for (const Thread& t : threads_)
    if (launch.waits && !t.awaited) throw std::runtime_error("a thread did not wait for the kernel before its own");
  check_at_end_of_block(*async_, *this);
}

void Block::resume(Thread& t) {
  const Instruction* code = launch.entry->code.data();
  try {
    running_ = true;
    for (int64_t n = 0; running_; ++n) {
      const Instruction& i = code[t.pc++];
      if (i.guard != kNoSlot && (t.r[i.guard] != 0) == i.unless) continue;
      i.run(t, i);
      if (n == kMostInstructions) throw std::runtime_error("a loop that does not end");
    }
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(std::string(error.what()) + "; " + describe(code[t.pc - 1]) + ", thread " +
                             std::to_string(t.index) + " of block (" + std::to_string(index.x) + "," +
                             std::to_string(index.y) + "," + std::to_string(index.z) + ")");
  }
}

// ---- Memory.

void Block::beyond(const char* what, uint64_t address, uint64_t bytes) {
  throw std::runtime_error("beyond " + std::string(what) + ": " + std::to_string(bytes) + " bytes at " +
                           std::to_string(static_cast<int64_t>(address)));
}

void Block::find_array(uint64_t address, uint64_t bytes) {
  for (size_t a = 0; a < launch.arrays.size(); ++a) {
    const auto& [begin, end] = launch.arrays[a];
    if (address < begin || address + bytes > end) continue;
    last_array_ = a;
    return;
  }
  throw std::runtime_error("beyond global memory: " + std::to_string(bytes) + " bytes in none of the arrays");
}

// ---- Threads that wait.

void Block::meet_block(Thread& t, const Instruction& i) {
  wait_at(t, Thread::State::at_block_barrier, i);
  if (++at_block_barrier_ < thread_count()) return;
  for (const Thread& other : threads_)
    if (other.at != &i)
      throw std::runtime_error("divergent barrier, the block meets at different places: " + describe_waiting());
  at_block_barrier_ = 0;
  races_.meet_block();
  make_ready(all_);
}

void Block::meet_warp(Thread& t, const Instruction& i, uint32_t mask, Combine combine) {
  const int warp = t.index / kWarp * kWarp;
  wait_at(t, Thread::State::at_warp_operation, i);
  t.mask = mask;
  if (!(mask >> (t.index - warp) & 1)) throw std::runtime_error("a lane is not in its own mask: " + describe_waiting());
  Thread* lanes[kWarp] = {};
  for (int lane = 0; lane < kWarp && warp + lane < thread_count(); ++lane) {
    if (!(mask >> lane & 1)) continue;
    Thread& other = threads_[warp + lane];
    if (other.state != Thread::State::at_warp_operation || other.at != &i || other.mask != mask) return;
    lanes[lane] = &other;
  }
  if (combine) combine(lanes, i);
  std::vector<int> members;
  for (const Thread* lane : lanes)
    if (lane) members.push_back(lane->index);
  make_ready(members);
}

void Block::meet_warpgroup(Thread& t, const Instruction& i, Combine combine) {
  wait_at(t, Thread::State::at_warpgroup_operation, i);
  const int first = t.index / kWarpgroup * kWarpgroup;
  if (first + kWarpgroup > thread_count()) throw std::runtime_error("needs a warpgroup of 128 threads");
  Thread* members[kWarpgroup];
  for (int k = 0; k < kWarpgroup; ++k) {
    members[k] = &threads_[first + k];
    if (members[k]->state != Thread::State::at_warpgroup_operation || members[k]->at != &i) return;
  }
  if (combine) combine(members, i);
  make_ready(std::vector<int>(all_.begin() + first, all_.begin() + first + kWarpgroup));
}

void Block::poll(Thread& t, const Instruction& i) {
  wait_at(t, Thread::State::polling, i);
  ready_.insert(ready_.begin(), t.index);
  auto is_polling = [&](int other) { return threads_[other].state == Thread::State::polling; };
  if (++idle_polls_ > kIdlePolls * threads_.size() && std::all_of(ready_.begin(), ready_.end(), is_polling))
    throw std::runtime_error("the block cannot go on: " + describe_waiting());
}

void Block::make_ready(const std::vector<int>& threads) {
  progress();
  for (int t : threads) threads_[t].state = Thread::State::ready;
  if (schedule == Schedule::reverse)
    ready_.insert(ready_.end(), threads.begin(), threads.end());
  else
    ready_.insert(ready_.end(), threads.rbegin(), threads.rend());
}

std::string Block::describe(const Instruction& i) const {
  if (!i.statement) return "the end of the kernel";
  const std::string& file = launch.entry->file;
  return i.statement->opcode + " (" + file.substr(file.find_last_of('/') + 1) + ":" +
         std::to_string(i.statement->line) + ")";
}

std::string Block::describe_waiting() const {
  std::map<std::string, int> groups;
  for (const Thread& t : threads_)
    if (t.state != Thread::State::ready)
      ++groups[t.state == Thread::State::returned ? "returned" : "at " + describe(*t.at)];
  std::string text;
  for (const auto& [where, count] : groups)
    text += (text.empty() ? "" : ", ") + std::to_string(count) + (count == 1 ? " thread " : " threads ") + where;
  return text + "; block (" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) +
         ") of " + std::to_string(threads_.size()) + " threads";
}

void run_grid(const Launch& launch) {
  std::vector<size_t> order(static_cast<size_t>(launch.grid.x) * launch.grid.y * launch.grid.z);
  std::iota(order.begin(), order.end(), size_t{0});
  if (schedule == Schedule::reverse) std::reverse(order.begin(), order.end());
  if (schedule == Schedule::random) std::shuffle(order.begin(), order.end(), schedule_random);
  const uint3& grid = launch.grid;
  Block block(launch);
  for (size_t b : order)
    block.run({static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
               static_cast<unsigned>(b / grid.x / grid.y)});
}

}  // namespace ptx_on_cpu
