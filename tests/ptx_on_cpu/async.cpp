// SPDX-License-Identifier: MIT
// mbarrier, cp.async.bulk.tensor, and fences.  PTX ISA, "mbarrier", "Tensors: Tiled Mode" and "Async proxy".
//
// A copy lands when a thread asks its barrier for the end of the phase, no earlier, and its destination is NaN until
// then.
#include "ptx_on_cpu/async.h"

#include <algorithm>

#include "ptx_on_cpu/decoder.h"
#include "tensor_map.h"

namespace ptx_on_cpu {
namespace {

constexpr uint64_t kInMemory = 0x7ff1'b0b0'7ff1'b0b0;  // where a barrier lies: NaN, and what nobody writes
constexpr int64_t kMostTxCount = (1 << 20) - 1;
constexpr uint64_t kChunk = 16;

// ---- Proxies.

std::vector<GenericAccess>& accesses_of(AsyncState& state, uint64_t chunk) {
  if (chunk >= state.accesses.size()) state.accesses.resize(chunk + 1024);
  return state.accesses[chunk];
}

// ---- Barriers.

Barrier& barrier_at(Block& block, uint64_t address) {
  uint64_t bits = 0;
  std::memcpy(&bits, block.shared(address, 8), 8);
  auto found = block.async().barriers.find(address);
  if (found == block.async().barriers.end()) throw std::runtime_error("mbarrier: not initialised");
  if (bits != kInMemory) throw std::runtime_error("mbarrier: overwritten");
  return found->second;
}

// The same for a thread, which must have been told that it was initialised.
Barrier& barrier_for(Thread& t, uint64_t address) {
  Barrier& barrier = barrier_at(*t.block, address);
  t.block->races().access_shared(t, address, 8, false);
  return barrier;
}

// A phase completes when no arrival and no byte is pending.
void end_phase_if_complete(Block& block, Barrier& barrier) {
  if (barrier.pending > 0 || barrier.tx_count != 0) return;
  barrier.pending = barrier.expected;
  barrier.phase ^= 1;
  block.races().end_phase(barrier.number);
}

void arrive(Thread& t, uint64_t address, int64_t bytes) {
  Barrier& barrier = barrier_for(t, address);
  barrier.tx_count += bytes;
  if (bytes < 0 || barrier.tx_count > kMostTxCount) throw std::runtime_error("mbarrier: tx-count beyond its range");
  if (barrier.pending == 0) throw std::runtime_error("mbarrier: more arrivals in a phase than it was made for");
  --barrier.pending;
  t.block->races().arrive(t, barrier.number);
  end_phase_if_complete(*t.block, barrier);
  t.block->progress();
}

void init(Thread& t, const Instruction& i) {
  const uint64_t address = static_cast<uint32_t>(t.r[i.a] + i.immediate);
  const uint32_t count = get<uint32_t>(t, i.b);
  if (count < 1 || count > kMostTxCount) throw std::runtime_error("mbarrier: count beyond its range");
  std::memcpy(t.block->shared(address, 8), &kInMemory, 8);
  Barrier barrier;
  barrier.expected = barrier.pending = count;
  barrier.initialised_by = t.index;
  barrier.number = static_cast<int>(t.block->async().barriers.size());
  t.block->races().access_shared(t, address, 8, true);
  t.block->async().barriers[address] = barrier;
}

// ---- Copies of boxes.

const CUtensorMap& tensor_map_at(Thread& t, uint64_t generic) {
  const auto* map = reinterpret_cast<const CUtensorMap*>(t.block->parameter(generic, sizeof(CUtensorMap)));
  if (generic % 64 != 0) throw std::runtime_error("a tensor map is not 64-byte aligned");
  if (map->magic != CUtensorMap::kMagic) throw std::runtime_error("there is no tensor map");
  return *map;
}

// The box lies dense, its first dimension innermost, but for the swizzle.
template <typename F>
void for_each_element(const BoxCopy& copy, const F& f) {
  const auto& map = *static_cast<const CUtensorMap*>(copy.map);
  uint64_t place = copy.to;
  for (int w = 0; w < map.count(3); ++w)
    for (int z = 0; z < map.count(2); ++z)
      for (int y = 0; y < map.count(1); ++y)
        for (int x = 0; x < map.count(0); ++x, place += 2) {
          const int at[4] = {x, y, z, w};
          const char* from = static_cast<const char*>(map.base);
          bool inside = true;
          for (int d = 0; d < 4; ++d) {
            const int64_t index = copy.first[d] + int64_t{at[d]} * (d ? map.steps[d] : 1);
            inside = inside && index >= 0 && static_cast<uint64_t>(index) < map.sizes[d];
            from += index * static_cast<int64_t>(d ? map.strides[d - 1] : 2);
          }
          f(inside ? from : nullptr, map.swizzle == CU_TENSOR_MAP_SWIZZLE_128B ? swizzled_128(place) : place);
        }
}

void land(Thread& t, Barrier& barrier) {
  for (const BoxCopy& copy : barrier.copies) {
    for_each_element(copy, [&](const char* from, uint64_t to) {
      unsigned char* shared = t.block->shared(to, 2);
      if (!from) return void(std::memset(shared, 0, 2));
      std::memcpy(shared, t.block->global(t, reinterpret_cast<uint64_t>(from), 2, false), 2);
    });
    barrier.tx_count -= static_cast<const CUtensorMap*>(copy.map)->bytes();
  }
  barrier.copies.clear();
  end_phase_if_complete(*t.block, barrier);
  t.block->progress();
}

// Whether the phase of that parity, the present one or the one before, has completed.
void try_wait(Thread& t, const Instruction& i) {
  Barrier& barrier = barrier_for(t, static_cast<uint32_t>(t.r[i.a] + i.immediate));
  const uint32_t parity = get<uint32_t>(t, i.b);
  if (parity > 1) throw std::runtime_error("mbarrier: a parity is 0 or 1");
  if (barrier.phase == parity && !barrier.copies.empty()) land(t, barrier);
  const bool over = barrier.phase != parity;
  set<uint64_t>(t, i.d, over);
  if (!over) return t.block->poll(t, i);  // false after a while, as it may
  t.block->races().wait(t, barrier.number);
  t.block->progress();
}

void copy_box(Thread& t, const Instruction& i) {
  Block& block = *t.block;
  if (block.launch.waits && !t.awaited)
    throw std::runtime_error("global memory is accessed before the kernel has waited for the one before it");
  BoxCopy copy{};
  const CUtensorMap& map = tensor_map_at(t, t.r[i.a] + i.immediate);
  copy.map = &map;
  copy.to = static_cast<uint32_t>(t.r[i.d]);
  for (int d = 0; d < 4; ++d) copy.first[d] = get<int32_t>(t, i.list[d]);
  if (copy.to % 128 != 0) throw std::runtime_error("cp.async.bulk.tensor: shared address is not 128-byte aligned");
  Barrier& barrier = barrier_for(t, static_cast<uint32_t>(t.r[i.b]));
  if (!barrier.published) throw std::runtime_error("mbarrier: used by a copy, and not fenced since it was initialised");
  require_proxy_fence(block, copy.to, map.bytes(), false, "cp.async.bulk.tensor");
  for (uint64_t chunk = copy.to / kChunk; chunk < (copy.to + map.bytes()) / kChunk; ++chunk)
    accesses_of(block.async(), chunk).clear();
  for_each_element(copy, [&](const char*, uint64_t to) { std::memset(block.shared(to, 2), 0xff, 2); });
  block.races().begin_bulk_copy(t, barrier.number, copy.to, map.bytes());
  barrier.copies.push_back(copy);
}

void mbarrier(Decoder& d) {
  const int operation = d.choose({"init", "arrive", "try_wait"});
  const bool expects = operation == 1 && d.take("expect_tx");
  if (operation == 2) d.expect("parity");
  d.choose({"shared::cta", "shared"});
  d.expect("b64");
  size_t place = 0;
  if (operation > 0)
    d.made.d = d.slot(place++);  // the state of the phase, which nothing here reads, or whether it is over
  d.address(place++);
  if (operation != 1 || expects) d.made.b = d.slot(place++);
  if (d.operand_count() != place) d.fail("expected " + std::to_string(place) + " operands");
  if (operation == 0)
    d.made.run = init;
  else if (operation == 2)
    d.made.run = try_wait;
  else if (expects)
    d.made.run = [](Thread& t, const Instruction& i) {
      arrive(t, static_cast<uint32_t>(t.r[i.a] + i.immediate), get<int32_t>(t, i.b));
    };
  else
    d.made.run = [](Thread& t, const Instruction& i) { arrive(t, static_cast<uint32_t>(t.r[i.a] + i.immediate), 0); };
}

// Either fence shows the barriers that its thread initialised to the accelerator.
void publish_barriers(Thread& t) {
  for (auto& [address, barrier] : t.block->async().barriers)
    barrier.published = barrier.published || barrier.initialised_by == t.index;
}

void fence(Decoder& d) {
  if (d.take("proxy")) {
    d.expect("async");
    d.take("shared::cta");
    d.made.run = [](Thread& t, const Instruction&) {
      ++t.proxy_fences;
      publish_barriers(t);
    };
  } else if (d.take("mbarrier_init")) {
    d.expect("release");
    d.expect("cluster");
    d.made.run = [](Thread& t, const Instruction&) { publish_barriers(t); };
  } else {
    d.choose({"acq_rel", "sc"});
    d.choose({"gpu", "sys"});
    d.made.run = [](Thread& t, const Instruction&) { t.block->races().fence(t); };
  }
  d.operands(0);
}

}  // namespace

void note_shared_access(Thread& t, uint64_t address, uint64_t bytes, bool writes) {
  for (uint64_t chunk = address / kChunk; chunk <= (address + bytes - 1) / kChunk; ++chunk) {
    auto& accesses = accesses_of(t.block->async(), chunk);
    auto own = std::find_if(accesses.begin(), accesses.end(), [&](const auto& a) { return a.thread == t.index; });
    if (own == accesses.end())
      accesses.push_back({t.index, t.proxy_fences, writes});
    else
      *own = {t.index, t.proxy_fences, writes || (own->writes && own->fences == t.proxy_fences)};
  }
}

void require_proxy_fence(Block& block, uint64_t address, uint64_t bytes, bool only_writes, const char* who) {
  for (uint64_t chunk = address / kChunk; chunk <= (address + bytes - 1) / kChunk; ++chunk)
    for (const GenericAccess& access : accesses_of(block.async(), chunk))
      if (block.thread(access.thread).proxy_fences == access.fences && (access.writes || !only_writes))
        throw std::runtime_error(std::string(who) + ": thread " + std::to_string(access.thread) +
                                 " accessed that memory and has not executed fence.proxy.async since");
}

void decode_bulk_copy(Decoder& d) {
  for (const char* modifier : {"tensor", "4d", "shared::cluster", "global", "tile", "mbarrier::complete_tx::bytes"})
    d.expect(modifier);
  if (d.operand_count() != 3) d.fail("expected 3 operands");
  d.address(2);
  if (d.made.immediate != 0) d.fail("an offset");
  d.made.b = d.made.a;
  d.address(0);
  if (d.made.immediate != 0) d.fail("an offset");
  d.made.d = d.made.a;
  d.address(1);
  d.made.list = d.operand(1).slots;
  if (d.made.list.size() != 4) d.fail("expected 4 coordinates");
  d.made.run = copy_box;
}

std::shared_ptr<AsyncState> make_async_state() { return std::make_shared<AsyncState>(); }

void check_at_end_of_block(const AsyncState& state, Block& block) {
  for (const auto& [address, barrier] : state.barriers) {
    barrier_at(block, address);
    if (!barrier.copies.empty()) throw std::runtime_error("a block ended before a copy to it had landed");
  }
  for (const auto& [first, group] : state.warpgroups)
    if (!group.open.empty() || !group.committed.empty())
      throw std::runtime_error("a block ended while a wgmma was under way");
}

void add_async(DecodeTable& table) {
  table["mbarrier"] = mbarrier;
  table["fence"] = fence;
  table["wgmma"] = decode_wgmma;
  table["prefetch"] = [](Decoder& d) {
    d.expect("tensormap");
    d.address(0);
    d.made.run = [](Thread& t, const Instruction& i) { tensor_map_at(t, t.r[i.a] + i.immediate); };
  };
}

}  // namespace ptx_on_cpu
