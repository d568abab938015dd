// SPDX-License-Identifier: MIT
// ldmatrix and mma.sync.  PTX ISA, "Warp Level Matrix Load Instruction" and "Matrix Fragments for mma".
//
// Below, an element of a fragment is numbered as the ISA does, a0, a1, ..., two to a register where they have 16 bits,
// the first in its low half.  Sums are exact and rounded once; a GPU cuts the addends.
#include "ptx_on_cpu/decoder.h"
#include "ptx_on_cpu/matrix.h"

namespace ptx_on_cpu {
namespace {

void require_whole_warp(Thread* const* lanes) {
  for (int lane = 0; lane < kWarp; ++lane)
    if (!lanes[lane]) throw std::runtime_error("a tensor-core instruction needs a warp of 32 threads");
}

// ---- ldmatrix

// .x4: thread 8 i + r gives the address of row r of matrix i.  Thread 4 r + c receives, in register i, elements 2 c and
// 2 c + 1 of row r of matrix i; with .trans of its column r.
template <bool kTransposed>
void load_matrices(Thread* const* lanes, const Instruction& i) {
  require_whole_warp(lanes);
  const int matrices = static_cast<int>(i.list.size());
  uint16_t rows[32][8];
  for (int lane = 0; lane < 8 * matrices; ++lane)
    std::memcpy(rows[lane], lanes[lane]->block->shared(static_cast<uint32_t>(lanes[lane]->r[i.a] + i.immediate), 16),
                16);
  for (int lane = 0; lane < kWarp; ++lane)
    for (int m = 0; m < matrices; ++m) {
      const int r = lane / 4, c = lane % 4 * 2;
      const uint16_t low = kTransposed ? rows[8 * m + c][r] : rows[8 * m + r][c];
      const uint16_t high = kTransposed ? rows[8 * m + c + 1][r] : rows[8 * m + r][c + 1];
      set<uint32_t>(*lanes[lane], i.list[m], low | static_cast<uint32_t>(high) << 16);
    }
}

template <bool kTransposed>
void run_ldmatrix(Thread& t, const Instruction& i) {
  const int lane = t.index % kWarp;
  if (lane < 8 * static_cast<int>(i.list.size())) {
    touch_shared(t, static_cast<uint32_t>(t.r[i.a] + i.immediate), 16, false);
  }
  t.block->meet_warp(t, i, 0xffffffff, load_matrices<kTransposed>);
}

void ldmatrix(Decoder& d) {
  for (const char* modifier : {"sync", "aligned", "m8n8"}) d.expect(modifier);
  const int matrices = 1 << d.choose({"x1", "x2", "x4"});
  const bool transposed = d.take("trans");
  d.choose({"shared", "shared::cta"});
  d.expect("b16");
  d.made.list = d.vector(0);
  if (static_cast<int>(d.made.list.size()) != matrices) d.fail("a vector of another length");
  d.address(1);
  d.made.run = transposed ? run_ldmatrix<true> : run_ldmatrix<false>;
}

// ---- mma.sync

// m16n8k16 of 16-bit elements.  a0, a1, a4, a5 lie in row groupID, the others in groupID + 8; a0 to a3 in columns
// 2 threadID_in_group + (i & 1), the others 8 further.  b0, b1 in rows 2 threadID_in_group + (i & 1), b2, b3 8 further,
// column groupID.
struct M16n8k16 {
  static constexpr int kDepth = 16, kRegistersA = 4, kRegistersB = 2;

  template <typename Value>
  static void read(Thread* const* lanes, const Instruction& i, const Value& value, double (&a)[16][16],
                   double (&b)[16][8]) {
    for (int lane = 0; lane < kWarp; ++lane) {
      const int group = lane >> 2, in_group = lane % 4;
      for (int e = 0; e < 8; ++e) {
        const bool upper = e == 0 || e == 1 || e == 4 || e == 5;
        const int row = upper ? group : group + 8, column = in_group * 2 + (e & 1) + (e < 4 ? 0 : 8);
        const uint32_t bits = get<uint32_t>(*lanes[lane], i.list[e / 2]);
        a[row][column] = value(static_cast<uint16_t>(e & 1 ? bits >> 16 : bits));
      }
      for (int e = 0; e < 4; ++e) {
        const int row = in_group * 2 + (e & 1) + (e < 2 ? 0 : 8);
        const uint32_t bits = get<uint32_t>(*lanes[lane], i.list[4 + e / 2]);
        b[row][group] = value(static_cast<uint16_t>(e & 1 ? bits >> 16 : bits));
      }
    }
  }
};

// m16n8k8 of tf32: a0, a2 in row groupID, a1, a3 in groupID + 8; a0, a1 in column threadID_in_group, a2, a3 4 further.
// b0 in row threadID_in_group, b1 4 further, column groupID.  The low 13 bits of an operand are none of a tf32 value.
struct M16n8k8Tf32 {
  static constexpr int kDepth = 8, kRegistersA = 4, kRegistersB = 2;

  static double value(uint32_t bits) { return __builtin_bit_cast(float, bits & ~0x1fffu); }
  template <typename Value>
  static void read(Thread* const* lanes, const Instruction& i, const Value&, double (&a)[16][16], double (&b)[16][8]) {
    for (int lane = 0; lane < kWarp; ++lane) {
      const int group = lane >> 2, in_group = lane % 4;
      for (int e = 0; e < 4; ++e)
        a[e == 0 || e == 2 ? group : group + 8][e < 2 ? in_group : in_group + 4] =
            value(get<uint32_t>(*lanes[lane], i.list[e]));
      for (int e = 0; e < 2; ++e) b[in_group + 4 * e][group] = value(get<uint32_t>(*lanes[lane], i.list[4 + e]));
    }
  }
};

// d0, d1 in row groupID, d2, d3 in groupID + 8; columns 2 threadID_in_group + (i & 1).
template <typename Shape, const float* (*table)()>
void multiply(Thread* const* lanes, const Instruction& i) {
  require_whole_warp(lanes);
  const float* values = table();
  double a[16][16], b[16][8];
  Shape::read(lanes, i, [&](uint16_t bits) { return values[bits]; }, a, b);
  double sums[16][8] = {};
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < Shape::kDepth; ++k)
      for (int column = 0; column < 8; ++column) sums[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < kWarp; ++lane)
    for (int e = 0; e < 4; ++e) {
      const int row = (lane >> 2) + (e < 2 ? 0 : 8), column = lane % 4 * 2 + (e & 1);
      const double c = get<float>(*lanes[lane], i.second_list[4 + e]);
      set<float>(*lanes[lane], i.second_list[e], static_cast<float>(sums[row][column] + c));
    }
}

template <typename Shape, const float* (*table)()>
void run_mma(Thread& t, const Instruction& i) {
  t.block->meet_warp(t, i, 0xffffffff, multiply<Shape, table>);
}

void mma(Decoder& d) {
  for (const char* modifier : {"sync", "aligned"}) d.expect(modifier);
  const bool deep = d.choose({"m16n8k8", "m16n8k16"}) == 1;
  for (const char* modifier : {"row", "col", "f32"}) d.expect(modifier);
  const int type = d.choose({"f16", "bf16", "tf32"});
  d.expect(type == 0 ? "f16" : type == 1 ? "bf16" : "tf32");
  d.expect("f32");
  if (deep != (type < 2)) d.fail("no such shape of this type here");
  const std::vector<int> to = d.vector(0), a = d.vector(1), b = d.vector(2), c = d.vector(3);
  if (to.size() != 4 || a.size() != 4 || b.size() != 2 || c.size() != 4) d.fail("fragments of another size");
  d.made.list = a;
  d.made.list.insert(d.made.list.end(), b.begin(), b.end());
  d.made.second_list = to;
  d.made.second_list.insert(d.made.second_list.end(), c.begin(), c.end());
  d.made.run = type == 0   ? run_mma<M16n8k16, half_values>
               : type == 1 ? run_mma<M16n8k16, bfloat16_values>
                           : run_mma<M16n8k8Tf32, half_values>;
}

}  // namespace

void add_matrix(DecodeTable& table) {
  table["ldmatrix"] = ldmatrix;
  table["mma"] = mma;
}

}  // namespace ptx_on_cpu
