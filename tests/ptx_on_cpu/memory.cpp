// SPDX-License-Identifier: MIT
// Loads, stores, addresses, atomics, and cp.async.  PTX ISA, "Data Movement and Conversion Instructions".
//
// A copy of cp.async lands when its thread waits for its group, and its destination is NaN until then: no copy may be
// relied on earlier, nor its destination be read.
#include "ptx_on_cpu/async.h"
#include "ptx_on_cpu/decoder.h"

namespace ptx_on_cpu {
namespace {

enum class Space { generic, global, shared, local, param };

// `list`: the registers, each of `to`.
template <Space space>
unsigned char* place(Thread& t, const Instruction& i, bool writes) {
  const uint64_t bytes = static_cast<uint64_t>(i.to.bits) / 8 * i.list.size();
  const uint64_t address = (i.a == kNoSlot ? 0 : t.r[i.a]) + i.immediate;
  Block& block = *t.block;
  if (space == Space::generic && block.is_shared(address))
    return touch_shared(t, address - block.shared_window(), bytes, writes);
  if (space == Space::shared) return touch_shared(t, static_cast<uint32_t>(address), bytes, writes);
  if (space == Space::local) return block.local(t, address, bytes);
  if (space == Space::param) return const_cast<unsigned char*>(block.parameter(address, bytes));
  if (space == Space::generic && address - reinterpret_cast<uint64_t>(t.local) < block.launch.entry->local_bytes)
    return block.local(t, address, bytes);
  if (space == Space::generic && !writes &&
      address - reinterpret_cast<uint64_t>(block.launch.parameters) < block.launch.entry->parameter_bytes)
    return const_cast<unsigned char*>(block.parameter(address, bytes));
  return block.global(t, address, bytes, writes);
}

template <Space space>
void load(Thread& t, const Instruction& i) {
  const unsigned char* from = place<space>(t, i, false);
  const int bytes = i.to.bits / 8;
  for (int slot : i.list) {
    uint64_t value = 0;
    std::memcpy(&value, from, bytes);
    if (slot != kNoSlot) t.r[slot] = extended(value, i.to);
    from += bytes;
  }
}

template <Space space>
void store(Thread& t, const Instruction& i) {
  unsigned char* to = place<space>(t, i, true);
  const int bytes = i.to.bits / 8;
  for (int slot : i.list) {
    std::memcpy(to, t.r + slot, bytes);
    to += bytes;
  }
}

Space space_of(Decoder& d) {
  if (d.take("global")) return Space::global;
  if (d.take("shared") || d.take("shared::cta")) return Space::shared;
  if (d.take("local")) return Space::local;
  if (d.take("param")) return Space::param;
  return Space::generic;
}

void load_or_store(Decoder& d, bool loads) {
  const Space space = space_of(d);
  if (loads && space == Space::global) d.take("nc");
  if (space == Space::param && !loads) d.fail("a store to parameters");
  const int count = d.take("v2") ? 2 : d.take("v4") ? 4 : 1;
  const Type type = d.type();
  d.address(loads ? 1 : 0);
  d.made.list = d.vector(loads ? 0 : 1);
  if (static_cast<int>(d.made.list.size()) != count) d.fail("a vector of another length");
  d.made.to = {type.bits, type.kind == 's', d.bits_of(d.made.list[0])};
  switch (space) {
    case Space::generic:
      d.made.run = loads ? load<Space::generic> : store<Space::generic>;
      break;
    case Space::global:
      d.made.run = loads ? load<Space::global> : store<Space::global>;
      break;
    case Space::shared:
      d.made.run = loads ? load<Space::shared> : store<Space::shared>;
      break;
    case Space::local:
      d.made.run = loads ? load<Space::local> : store<Space::local>;
      break;
    case Space::param:
      d.made.run = load<Space::param>;
      break;
  }
}

// Generic addresses are the host's, and so are those of all spaces but shared memory.
void cvta(Decoder& d) {
  const bool to = d.take("to");
  const Space space = space_of(d);
  d.expect("u64");
  d.operands(2);
  if (space == Space::generic) d.fail("a state space is missing");
  if (space != Space::shared)
    d.made.run = [](Thread& t, const Instruction& i) { t.r[i.d] = t.r[i.a]; };
  else if (to)
    d.made.run = [](Thread& t, const Instruction& i) { t.r[i.d] = t.r[i.a] - t.block->shared_window(); };
  else
    d.made.run = [](Thread& t, const Instruction& i) { t.r[i.d] = t.r[i.a] + t.block->shared_window(); };
}

void atom(Decoder& d) {
  d.expect("global");
  d.expect("add");
  d.choose({"u32", "s32"});
  if (d.operand_count() != 3) d.fail("expected 3 operands");
  d.made.d = d.slot(0);
  d.address(1);
  d.made.b = d.slot(2);
  d.made.run = [](Thread& t, const Instruction& i) {
    const uint64_t address = t.r[i.a] + i.immediate;
    unsigned char* to = t.block->global_atomic(t, address, 4);
    t.block->races().atomic(t, address);
    uint32_t before;
    std::memcpy(&before, to, 4);
    const uint32_t after = before + get<uint32_t>(t, i.b);
    std::memcpy(to, &after, 4);
    set<uint32_t>(t, i.d, before);
  };
}

// ---- cp.async

void copy_async(Thread& t, const Instruction& i) {  // [d], [a + immediate], cp-size, src-size c
  const int bytes = i.variant;
  const int from_global = i.c == kNoSlot ? bytes : get<int32_t>(t, i.c);
  if (from_global < 0 || from_global > bytes) throw std::runtime_error("cp.async: src-size is larger than cp-size");
  const uint64_t to = static_cast<uint32_t>(t.r[i.d]), from = t.r[i.a] + i.immediate;
  if (from % bytes != 0)
    throw std::runtime_error("cp.async: global address is not " + std::to_string(bytes) + "-byte aligned");
  note_proxy(t, to, bytes, true);
  unsigned char* shared = t.block->shared(to, bytes);
  t.block->races().begin_copy(t, to, bytes);
  const unsigned char* global = from_global > 0 ? t.block->global(t, from, from_global, false) : nullptr;
  std::memset(shared, 0xff, bytes);
  t.open_group.push_back({shared, global, bytes, from_global});
}

void commit_group(Thread& t, const Instruction&) {
  t.committed_groups.push_back(std::move(t.open_group));
  t.open_group.clear();
  t.block->races().commit_copies(t);
}

void land(const std::vector<AsyncCopy>& group) {
  for (const AsyncCopy& copy : group) {
    if (copy.from_global > 0) std::memcpy(copy.shared, copy.global, copy.from_global);
    std::memset(copy.shared + copy.from_global, 0, copy.bytes - copy.from_global);
  }
}

void wait_group(Thread& t, const Instruction& i) {
  for (; t.committed_groups.size() > static_cast<size_t>(i.immediate); t.committed_groups.pop_front())
    land(t.committed_groups.front());
  t.block->races().end_copies(t, t.committed_groups.size());
}

void cp(Decoder& d) {
  d.expect("async");
  if (d.take("bulk")) return decode_bulk_copy(d);
  if (d.take("commit_group")) {
    d.operands(0);
    d.made.run = commit_group;
  } else if (d.take("wait_group")) {
    d.made.immediate = d.constant(0);
    d.made.run = wait_group;
  } else {
    const bool past_l1 = d.choose({"ca", "cg"}) == 1;
    d.choose({"shared", "shared::cta"});
    d.expect("global");
    d.address(0);
    d.made.d = d.made.a;
    if (d.made.immediate != 0) d.fail("an offset");
    d.address(1);
    const int64_t bytes = d.constant(2);
    if (past_l1 ? bytes != 16 : bytes != 4 && bytes != 8 && bytes != 16) d.fail("no such cp-size");
    if (d.operand_count() == 4) d.made.c = d.slot(3);
    d.made.variant = static_cast<int>(bytes);
    d.made.run = copy_async;
  }
}

}  // namespace

void add_memory(DecodeTable& table) {
  table["ld"] = [](Decoder& d) { load_or_store(d, true); };
  table["st"] = [](Decoder& d) { load_or_store(d, false); };
  table["cvta"] = cvta;
  table["atom"] = atom;
  table["cp"] = cp;
  table["membar"] = [](Decoder& d) {
    d.choose({"gl", "sys"});
    d.made.run = [](Thread& t, const Instruction&) { t.block->races().fence(t); };
  };
}

}  // namespace ptx_on_cpu
