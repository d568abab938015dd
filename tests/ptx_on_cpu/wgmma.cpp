// SPDX-License-Identifier: MIT
// wgmma.  PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
//
// A multiplication is done when it is waited for.  Until then its accumulators are a certain NaN, and neither they nor
// the registers of A may change; what B holds then is what counts.
#include <algorithm>
#include <cstdlib>

#include "ptx_on_cpu/decoder.h"
#include "ptx_on_cpu/matrix.h"

namespace ptx_on_cpu {
namespace {

constexpr uint32_t kUnderWay = 0x7fb0'ac0c;
constexpr int kBfloat16 = 1;  // of Instruction::variant

// "Matrix Descriptor Format".
struct Descriptor {
  uint64_t start, stride;  // bytes; stride: from eight columns of B to the next

  explicit Descriptor(uint64_t bits) : start((bits & 0x3fff) << 4), stride((bits >> 32 & 0x3fff) << 4) {
    if (bits >> 62 != 1) throw std::runtime_error("wgmma: B in another swizzle than that of 128 bytes");
    if (bits >> 49 & 7) throw std::runtime_error("wgmma: a base offset");
    // Without a base offset the pattern of the swizzle begins at multiples of 1024.
    if (start >> 7 & 7) throw std::runtime_error("wgmma: B does not begin where the swizzle does");
    if ((start & 0x7f) + 32 > 128) throw std::runtime_error("wgmma: rows of B beyond 128 bytes");
  }
  // Not transposed, so that k runs along the 128 bytes; the leading dimension's offset is not used.
  uint64_t element(int k, int column) const {
    return swizzled_128(start + column / 8 * stride + column % 8 * 128 + k * 2);
  }
};

using Lanes = Thread* const*;  // of the warpgroup

// acc += A B, [thread][registers]
void multiply(Block& block, const Wgmma& product, std::vector<float>& acc) {
  const Instruction& i = *product.instruction;
  const int columns = static_cast<int>(i.immediate), registers = columns / 2;
  const float* value = i.variant == kBfloat16 ? bfloat16_values() : half_values();
  const Descriptor descriptor(product.b);
  std::vector<float> a(64 * 16), b(16 * columns);
  for (int thread = 0; thread < kWarpgroup; ++thread) {
    const int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
    for (int e = 0; e < 8; ++e) {  // a0, a1, ...: as in mma.m16n8k16, 16 rows a warp
      const uint32_t bits = product.a[thread * 4 + e / 2];
      a[(row + (e / 2 % 2 ? 8 : 0)) * 16 + column + e % 2 + (e < 4 ? 0 : 8)] =
          value[e % 2 ? bits >> 16 : bits & 0xffff];
    }
  }
  for (int k = 0; k < 16; ++k)
    for (int column = 0; column < columns; ++column) {
      uint16_t bits;
      std::memcpy(&bits, block.shared(descriptor.element(k, column), 2), 2);
      b[k * columns + column] = value[bits];
    }
  std::vector<double> sums(columns);
  for (int row = 0; row < 64; ++row) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < columns; ++column)
        sums[column] += static_cast<double>(a[row * 16 + k]) * b[k * columns + column];
    for (int column = 0; column < columns; ++column) {
      // d0, d1 lie in row groupID, d2, d3 eight below, columns 2 threadID_in_group + (i & 1); four more registers for
      // each eight columns.
      const int thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
      const int e = column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
      float& sum = acc[thread * registers + e];
      sum = static_cast<float>((product.adds ? sum : 0.0) + sums[column]);
    }
  }
}

void begin(Lanes lanes, const Instruction& i) {
  Block& block = *lanes[0]->block;
  Warpgroup& group = block.async().warpgroups[lanes[0]->index];
  if (!group.fenced) throw std::runtime_error("wgmma: registers may have been accessed since the last wgmma.fence");
  const size_t registers = i.list.size();
  Wgmma product{&i, lanes[0]->r[i.b], lanes[0]->r[i.c] != 0, {}};
  for (int thread = 0; thread < kWarpgroup; ++thread) {
    if (lanes[thread]->r[i.b] != product.b || (lanes[thread]->r[i.c] != 0) != product.adds)
      throw std::runtime_error("wgmma: the warpgroup disagrees on B or scale-d");
    for (int slot : i.second_list) product.a.push_back(get<uint32_t>(*lanes[thread], slot));
  }
  const Descriptor descriptor(product.b);
  block.races().begin_wgmma(lanes);
  for (int column = 0; column < i.immediate; ++column)
    for (int k = 0; k < 16; k += 8) {  // 16 bytes lie together
      const uint64_t address = descriptor.element(k, column);
      require_proxy_fence(block, address, 16, true, "wgmma");
      block.races().read_by_wgmma(lanes, address, 16);
    }
  auto [entry, begun] = group.accumulators.try_emplace(i.list[0], &i, std::vector<float>());
  if (!begun && entry->second.first->list != i.list)
    throw std::runtime_error("wgmma: accumulators that another one still computes in part");
  for (int thread = 0; begun && thread < kWarpgroup; ++thread)
    for (size_t k = 0; k < registers; ++k) {
      entry->second.second.push_back(get<float>(*lanes[thread], i.list[k]));
      set<uint32_t>(*lanes[thread], i.list[k], kUnderWay);
    }
  group.open.push_back(std::move(product));
}

void commit(Lanes lanes, const Instruction&) {
  Warpgroup& group = lanes[0]->block->async().warpgroups[lanes[0]->index];
  group.committed.push_back(std::move(group.open));
  group.open.clear();
}

void finish(Lanes lanes, Warpgroup& group, const Wgmma& product) {
  const Instruction& i = *product.instruction;
  for (int thread = 0; thread < kWarpgroup; ++thread)
    for (int k = 0; k < 4; ++k)
      if (get<uint32_t>(*lanes[thread], i.second_list[k]) != product.a[thread * 4 + k])
        throw std::runtime_error("wgmma: registers of A were written before it was waited for");
  multiply(*lanes[0]->block, product, group.accumulators.at(i.list[0]).second);
}

void wait(Lanes lanes, const Instruction& i) {
  Warpgroup& group = lanes[0]->block->async().warpgroups[lanes[0]->index];
  group.fenced = false;
  for (; group.committed.size() > static_cast<size_t>(i.immediate); group.committed.pop_front())
    for (const Wgmma& product : group.committed.front()) finish(lanes, group, product);
  lanes[0]->block->races().end_wgmma(lanes, group.committed.empty() && group.open.empty());
  if (!group.committed.empty() || !group.open.empty()) return;
  for (const auto& [first, accumulators] : group.accumulators) {
    const std::vector<int>& registers = accumulators.first->list;
    for (int thread = 0; thread < kWarpgroup; ++thread)
      for (size_t k = 0; k < registers.size(); ++k) {
        if (get<uint32_t>(*lanes[thread], registers[k]) != kUnderWay)
          throw std::runtime_error("wgmma: accumulators were written before it was waited for");
        set<float>(*lanes[thread], registers[k], accumulators.second[thread * registers.size() + k]);
      }
  }
  group.accumulators.clear();
}

// wgmma.fence orders accesses to registers; those that are written after the last one are not ready.  Seen in the text:
// nvcc leaves nothing between the two but other multiplications and addresses.
void require_no_writes_since_fence(Decoder& d) {
  const Statement* s = &d.statement;
  auto is_used = [&](int slot) {
    auto in = [&](const std::vector<int>& list) { return std::find(list.begin(), list.end(), slot) != list.end(); };
    return in(d.made.list) || in(d.made.second_list);
  };
  for (; s >= d.entry.statements.data() && s->opcode.compare(0, 11, "wgmma.fence") != 0; --s) {
    if (s->opcode.compare(0, 5, "wgmma") == 0 || s->operands.empty()) continue;
    const Operand& to = s->operands[0];
    bool writes = to.kind == Operand::Kind::slot && is_used(to.slot);
    if (to.kind == Operand::Kind::vector)
      for (int slot : to.slots) writes = writes || is_used(slot);
    if (writes) d.fail("a register of it is written between wgmma.fence and it, in line " + std::to_string(s->line));
  }
}

void decode_multiplication(Decoder& d) {
  for (const char* modifier : {"sync", "aligned"}) d.expect(modifier);
  const std::string shape = d.next();
  const int columns = std::atoi(shape.c_str() + 4);
  if (shape != "m64n" + std::to_string(columns) + "k16" || columns % 8 != 0 || columns < 8 || columns > 256)
    d.fail("an unknown shape");
  d.expect("f32");
  const int type = d.choose({"f16", "bf16"});
  d.expect(type ? "bf16" : "f16");
  d.made.immediate = columns;
  d.made.variant = type;
  d.made.list = d.vector(0);
  d.made.second_list = d.vector(1);
  d.made.b = d.slot(2);
  d.made.c = d.slot(3);  // scale-d
  if (static_cast<int>(d.made.list.size()) != columns / 2 || d.made.second_list.size() != 4)
    d.fail("fragments of another size");
  if (d.operand_count() != 7) d.fail("expected 7 operands");
  if (d.constant(4) != 1 || d.constant(5) != 1) d.fail("a factor other than 1");
  if (d.constant(6) != 0) d.fail("B transposed");
  require_no_writes_since_fence(d);
  d.made.run = [](Thread& t, const Instruction& i) { t.block->meet_warpgroup(t, i, begin); };
}

}  // namespace

void decode_wgmma(Decoder& d) {
  const int operation = d.choose({"mma_async", "fence", "commit_group", "wait_group"});
  if (operation == 0) return decode_multiplication(d);
  for (const char* modifier : {"sync", "aligned"}) d.expect(modifier);
  if (operation == 3) {
    if (d.operand_count() != 1) d.fail("expected 1 operand");
    d.made.immediate = d.constant(0);
    d.made.run = [](Thread& t, const Instruction& i) { t.block->meet_warpgroup(t, i, wait); };
    return;
  }
  d.operands(0);
  if (operation == 1)
    d.made.run = [](Thread& t, const Instruction& i) {
      t.block->meet_warpgroup(t, i, [](Thread* const* lanes, const Instruction&) {
        lanes[0]->block->async().warpgroups[lanes[0]->index].fenced = true;
      });
    };
  else
    d.made.run = [](Thread& t, const Instruction& i) { t.block->meet_warpgroup(t, i, commit); };
}

}  // namespace ptx_on_cpu
