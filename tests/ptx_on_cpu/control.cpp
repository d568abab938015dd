// SPDX-License-Identifier: MIT
// Branches, barriers, shuffles, and the wait for the kernel before.  PTX ISA, "Control Flow" and "Parallel
// Synchronization and Communication Instructions".
#include "ptx_on_cpu/decoder.h"

namespace ptx_on_cpu {
namespace {

void bra(Decoder& d) {
  d.take("uni");  // a hint
  d.made.immediate = d.target(0);
  d.made.run = [](Thread& t, const Instruction& i) { t.pc = static_cast<int>(i.immediate); };
}

void ret(Decoder& d) {
  d.operands(0);
  d.made.run = [](Thread& t, const Instruction&) { t.block->end(t); };
}

void bar(Decoder& d) {
  if (d.take("warp")) {
    d.expect("sync");
    if (d.operand_count() != 1) d.fail("expected 1 operand");
    d.made.a = d.slot(0);
    d.made.run = [](Thread& t, const Instruction& i) {
      t.block->meet_warp(t, i, get<uint32_t>(t, i.a), [](Thread* const* lanes, const Instruction&) {
        for (int k = 0; k < kWarp; ++k)
          if (lanes[k]) return lanes[k]->block->races().meet(lanes, kWarp);
      });
    };
    return;
  }
  d.expect("sync");
  if (d.operand_count() != 1 || d.constant(0) != 0) d.fail("another barrier than that of the whole block");
  d.made.run = [](Thread& t, const Instruction& i) { t.block->meet_block(t, i); };
}

// The lane that each lane reads from.  PTX ISA, shfl.sync: c holds the clamp in bits 0 to 4 and the segment in 8 to 12.
enum ShuffleMode { kUp, kDown, kBfly, kIdx };
template <ShuffleMode mode>
void shuffle(Thread* const* lanes, const Instruction& i) {
  uint32_t values[kWarp] = {};
  bool inside[kWarp] = {};
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!lanes[lane]) continue;
    const uint32_t b = get<uint32_t>(*lanes[lane], i.b), c = get<uint32_t>(*lanes[lane], i.c);
    const int count = b & 0x1f, clamp = c & 0x1f, segment = c >> 8 & 0x1f;
    const int most = (lane & segment) | (clamp & ~segment), least = lane & segment;
    int from = mode == kUp     ? lane - count
               : mode == kDown ? lane + count
               : mode == kBfly ? lane ^ count
                               : least | (count & ~segment);
    inside[lane] = mode == kUp ? from >= most : from <= most;
    if (!inside[lane]) from = lane;
    // Of a lane that takes no part the value is undefined.
    values[lane] = lanes[from] ? get<uint32_t>(*lanes[from], i.a) : 0xffffffff;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!lanes[lane]) continue;
    set<uint32_t>(*lanes[lane], i.d, values[lane]);
    set<uint64_t>(*lanes[lane], static_cast<int>(i.immediate), inside[lane]);
  }
}
template <ShuffleMode mode>
void run_shuffle(Thread& t, const Instruction& i) {
  t.block->meet_warp(t, i, get<uint32_t>(t, i.e), shuffle<mode>);
}

void shfl(Decoder& d) {
  d.expect("sync");
  const int mode = d.choose({"up", "down", "bfly", "idx"});
  d.expect("b32");
  if (d.operand_count() != 5) d.fail("expected 5 operands");
  d.made.d = d.operand(0).slot;
  d.made.immediate = d.operand(0).predicate;
  d.made.a = d.slot(1);
  d.made.b = d.slot(2);
  d.made.c = d.slot(3);
  d.made.e = d.slot(4);
  d.made.run = mode == kUp     ? run_shuffle<kUp>
               : mode == kDown ? run_shuffle<kDown>
               : mode == kBfly ? run_shuffle<kBfly>
                               : run_shuffle<kIdx>;
}

void griddepcontrol(Decoder& d) {
  const bool waits = d.choose({"launch_dependents", "wait"}) == 1;
  d.operands(0);
  d.made.run = waits ? [](Thread& t, const Instruction&) { t.awaited = true; } : [](Thread&, const Instruction&) {};
}

}  // namespace

void add_control(DecodeTable& table) {
  table["bra"] = bra;
  table["ret"] = ret;
  table["exit"] = ret;
  table["bar"] = bar;
  table["shfl"] = shfl;
  table["griddepcontrol"] = griddepcontrol;
  table["trap"] = [](Decoder& d) {
    d.operands(0);
    d.made.run = [](Thread&, const Instruction&) { throw std::runtime_error("trap"); };
  };
}

}  // namespace ptx_on_cpu
