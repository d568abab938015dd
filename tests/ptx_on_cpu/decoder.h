// SPDX-License-Identifier: MIT
// From a statement to an instruction: its modifiers, each of which must be asked for, and its operands.
#pragma once
#include <initializer_list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "ptx_on_cpu/machine.h"

namespace ptx_on_cpu {

// An operand type: .u32 is {'u', 32}.
struct Type {
  char kind;  // u, s, b, f, and p for .pred
  int bits;

  int bytes() const { return bits / 8; }
  bool operator==(const Type& other) const { return kind == other.kind && bits == other.bits; }
};

class Decoder {
 public:
  Decoder(const Entry& entry, const Statement& statement);

  const Entry& entry;
  const Statement& statement;
  Instruction made;

  // ---- Modifiers, in the order in which they are written.

  // Whether the next modifier is this one, and if so goes past it.
  bool take(const std::string& modifier);
  // Goes past the next one, which must be one of these; returns which.
  int choose(std::initializer_list<const char*> modifiers);
  void expect(const std::string& modifier) { choose({modifier.c_str()}); }
  Type type();         // .u32 and so on, .pred
  std::string next();  // any
  bool at_end() const { return place_ == modifiers_.size(); }

  // ---- Operands.

  size_t operand_count() const { return statement.operands.size(); }
  const Operand& operand(size_t i) const;
  int slot(size_t i) const;                 // of an operand that is one
  std::vector<int> vector(size_t i) const;  // of {a, b}, or of one slot
  void address(size_t i);                   // to made.a and made.immediate
  int64_t constant(size_t i) const;         // of a literal
  int bits_of(int slot) const { return slot == kNoSlot ? 64 : entry.slots[slot].bits; }
  int target(size_t i) const;  // of a label

  // d, a, b, c of so many slot operands.
  void operands(size_t count);

  [[noreturn]] void fail(const std::string& what) const;

 private:
  std::vector<std::string> modifiers_;  // .a.b of the opcode as a, b
  size_t place_ = 0;
};

// What decodes an opcode, by its first word.
using DecodeTable = std::map<std::string, void (*)(Decoder&)>;

void add_integer(DecodeTable& table);
void add_floating_point(DecodeTable& table);
void add_conversions(DecodeTable& table);
void add_memory(DecodeTable& table);
void add_control(DecodeTable& table);
void add_matrix(DecodeTable& table);
void add_async(DecodeTable& table);

// The low bits of a value as the register of that layout holds them: extended by their sign, if they have one.
inline uint64_t extended(uint64_t value, const Layout& layout) {
  const int bits = layout.bits;
  if (bits < 64) {
    value &= (uint64_t{1} << bits) - 1;
    if (layout.is_signed && value >> (bits - 1)) value |= ~uint64_t{0} << bits;
  }
  return layout.register_bits < 64 ? value & ((uint64_t{1} << layout.register_bits) - 1) : value;
}

// run<T> for the integer type of that kind and width; `Op` is a struct with operator().
template <template <typename, typename> class Handler, typename Op>
Run integer_handler(const Decoder& decoder, Type type) {
  const bool is_signed = type.kind == 's';
  if (type.bits == 16) return is_signed ? Handler<int16_t, Op>::run : Handler<uint16_t, Op>::run;
  if (type.bits == 32) return is_signed ? Handler<int32_t, Op>::run : Handler<uint32_t, Op>::run;
  if (type.bits == 64) return is_signed ? Handler<int64_t, Op>::run : Handler<uint64_t, Op>::run;
  decoder.fail("an integer type that is unknown here");
}

template <typename T, typename Op>
struct Unary {
  static void run(Thread& t, const Instruction& i) { set<T>(t, i.d, Op()(get<T>(t, i.a))); }
};
template <typename T, typename Op>
struct Binary {
  static void run(Thread& t, const Instruction& i) { set<T>(t, i.d, Op()(get<T>(t, i.a), get<T>(t, i.b))); }
};
template <typename T, typename Op>
struct Ternary {
  static void run(Thread& t, const Instruction& i) {
    set<T>(t, i.d, Op()(get<T>(t, i.a), get<T>(t, i.b), get<T>(t, i.c)));
  }
};

}  // namespace ptx_on_cpu
