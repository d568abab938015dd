// SPDX-License-Identifier: MIT
#include "ptx_on_cpu/decoder.h"

#include <cstdlib>

namespace ptx_on_cpu {

Decoder::Decoder(const Entry& entry, const Statement& statement) : entry(entry), statement(statement) {
  made.guard = statement.guard;
  made.unless = statement.unless;
  made.statement = &statement;
  const std::string& opcode = statement.opcode;
  for (size_t dot = opcode.find('.'); dot != std::string::npos;) {
    const size_t end = opcode.find('.', dot + 1);
    modifiers_.push_back(opcode.substr(dot + 1, end == std::string::npos ? end : end - dot - 1));
    dot = end;
  }
}

bool Decoder::take(const std::string& modifier) {
  if (at_end() || modifiers_[place_] != modifier) return false;
  ++place_;
  return true;
}

int Decoder::choose(std::initializer_list<const char*> modifiers) {
  int i = 0;
  for (const char* modifier : modifiers) {
    if (take(modifier)) return i;
    ++i;
  }
  fail(at_end() ? "a modifier is missing" : "modifier ." + modifiers_[place_] + " has no meaning here");
}

std::string Decoder::next() {
  if (at_end()) fail("a modifier is missing");
  return modifiers_[place_++];
}

Type Decoder::type() {
  const std::string name = next();
  if (name == "pred") return {'p', 1};
  const int bits = std::atoi(name.c_str() + 1);
  const bool known = std::string("usbf").find(name[0]) != std::string::npos &&
                     (bits == 8 || bits == 16 || bits == 32 || bits == 64) && name == name[0] + std::to_string(bits);
  if (!known) fail("type ." + name + " has no meaning here");
  return {name[0], bits};
}

const Operand& Decoder::operand(size_t i) const {
  if (i >= operand_count()) fail("an operand is missing");
  return statement.operands[i];
}

int Decoder::slot(size_t i) const {
  const Operand& o = operand(i);
  if (o.kind != Operand::Kind::slot || o.negated || o.predicate != kNoSlot)
    fail("operand " + std::to_string(i) + " is of another kind than expected");
  return o.slot;
}

std::vector<int> Decoder::vector(size_t i) const {
  return operand(i).kind == Operand::Kind::vector ? operand(i).slots : std::vector<int>{slot(i)};
}

void Decoder::address(size_t i) {
  const Operand& o = operand(i);
  if (o.kind != Operand::Kind::address) fail("operand " + std::to_string(i) + " is no address");
  made.a = o.slot;
  made.immediate = o.offset;
}

int64_t Decoder::constant(size_t i) const {
  const int s = slot(i);
  if (s == kNoSlot || entry.slots[s].kind != Slot::Kind::constant)
    fail("operand " + std::to_string(i) + " is no literal");
  return static_cast<int64_t>(entry.slots[s].value);
}

int Decoder::target(size_t i) const {
  const Operand& o = operand(i);
  const auto found = entry.labels.find(o.text);
  if (o.kind != Operand::Kind::label || found == entry.labels.end()) fail("no label " + o.text);
  return found->second;
}

void Decoder::operands(size_t count) {
  if (operand_count() != count) fail("expected " + std::to_string(count) + " operands");
  int* const fields[] = {&made.d, &made.a, &made.b, &made.c, &made.e};
  for (size_t i = 0; i < count; ++i) *fields[i] = slot(i);
}

void Decoder::fail(const std::string& what) const {
  throw std::runtime_error("PTX: " + statement.opcode + ": " + what + "; " + entry.file + ":" +
                           std::to_string(statement.line));
}

void decode(Entry& entry) {
  static const DecodeTable table = [] {
    DecodeTable made;
    for (auto add : {add_integer, add_floating_point, add_conversions, add_memory, add_control, add_matrix, add_async})
      add(made);
    return made;
  }();
  std::vector<Instruction> code;
  code.reserve(entry.statements.size() + 1);
  for (const Statement& statement : entry.statements) {
    Decoder decoder(entry, statement);
    const auto found = table.find(statement.opcode.substr(0, statement.opcode.find('.')));
    if (found == table.end()) decoder.fail("unknown instruction");
    found->second(decoder);
    if (!decoder.at_end()) decoder.fail("modifier ." + decoder.next() + " has no meaning here");
    if (!decoder.made.run) decoder.fail("operand types that have no meaning here");
    entry.uses_async_proxy |= statement.opcode.compare(0, 13, "cp.async.bulk") == 0;
    code.push_back(std::move(decoder.made));
  }
  Instruction end;
  end.run = [](Thread&, const Instruction&) { throw std::runtime_error("a thread ran beyond its kernel"); };
  code.push_back(end);
  entry.code = std::move(code);
}

}  // namespace ptx_on_cpu
