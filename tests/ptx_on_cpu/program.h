// SPDX-License-Identifier: MIT
// PTX as it is parsed: modules, entries, and statements whose operands are slots of a thread's register file.
//
// Everything that an operand can name has a slot: registers, and also literals, special registers such as %tid.x and
// addresses of variables, whose slots are filled when a thread starts.  So an instruction reads all of them alike.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx_on_cpu {

struct Thread;
struct Instruction;
using Run = void (*)(Thread&, const Instruction&);

constexpr int kNoSlot = -1;

// What a slot holds when a thread starts.
struct Slot {
  enum class Kind { register_, constant, special, param, shared, local };

  Kind kind;
  std::string name;
  int bits = 64;       // of a register; 1: a predicate
  uint64_t value = 0;  // a constant, or the offset of a variable in its state space
};

// An operand as it is written: a, {a, b}, [a + offset], [a, {b, c}], a|b, !a, or the name of a label.
struct Operand {
  enum class Kind { slot, vector, address, label };

  Kind kind = Kind::slot;
  int slot = kNoSlot;       // the base of an address; kNoSlot: _
  int predicate = kNoSlot;  // b of a|b
  bool negated = false;     // !a
  int64_t offset = 0;
  std::vector<int> slots;  // {a, b}
  std::string text;
};

struct Statement {
  int guard = kNoSlot;
  bool unless = false;  // @!p
  std::string opcode;   // with its modifiers
  std::vector<Operand> operands;
  int line = 0;  // of the file
};

// A type as memory and conversions see it: its width, whether it has a sign, and the width of the register that holds
// it.
struct Layout {
  int bits = 0;
  bool is_signed = false;
  int register_bits = 64;
};

// A statement with its meaning.  Which fields are used depends on `run`.
struct Instruction {
  Run run = nullptr;
  int guard = kNoSlot;
  bool unless = false;
  bool ftz = false, sat = false;
  int variant = 0;  // which of several forms of an instruction
  int d = kNoSlot, a = kNoSlot, b = kNoSlot, c = kNoSlot;
  int e = kNoSlot;
  int64_t immediate = 0;  // an offset, a target, a mask
  Layout from, to;
  std::vector<int> list, second_list;
  const Statement* statement = nullptr;
};

struct Parameter {
  std::string name;
  size_t offset, bytes, alignment;
};

struct Entry {
  std::string name, file;
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0, local_bytes = 0;
  int most_threads = 0;  // .maxntid
  std::vector<Slot> slots;
  std::vector<Statement> statements;
  std::map<std::string, int> labels;  // the statement that follows
  std::string source;                 // to compare with an entry of the same name

  // Made at the first launch.
  std::vector<Instruction> code;
  bool uses_async_proxy = false;
};

struct Module {
  std::string target;  // sm_90a
  std::vector<std::unique_ptr<Entry>> entries;
};

// Throws std::runtime_error where the text is none that the parser knows.
Module parse(const std::string& text, const std::string& file);

// Throws std::runtime_error for an instruction or a modifier that has no meaning here.
void decode(Entry& entry);

}  // namespace ptx_on_cpu
