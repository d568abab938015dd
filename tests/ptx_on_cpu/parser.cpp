// SPDX-License-Identifier: MIT
// PTX text to entries of statements.  What nvcc writes is understood, not every text that PTX allows: functions other
// than kernels, and variables outside kernels that are not dynamic shared memory, are errors.
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "ptx_on_cpu/program.h"

namespace ptx_on_cpu {
namespace {

struct Token {
  std::string text;
  int line;
  size_t at;  // in the file
};

// Words (names, literals, opcodes with their modifiers) and single other characters; comments are dropped.
std::vector<Token> tokenize(const std::string& text) {
  std::vector<Token> tokens;
  int line = 1;
  auto is_word = [&](size_t i) {
    return i < text.size() && (std::isalnum(static_cast<unsigned char>(text[i])) || std::strchr("_.$%", text[i]));
  };
  for (size_t i = 0; i < text.size();) {
    if (text[i] == '\n') ++line;
    if (std::isspace(static_cast<unsigned char>(text[i]))) {
      ++i;
    } else if (text.compare(i, 2, "//") == 0) {
      while (i < text.size() && text[i] != '\n') ++i;
    } else if (text[i] == '"') {
      const size_t end = text.find('"', i + 1);
      tokens.push_back({text.substr(i, end + 1 - i), line, i});
      i = end + 1;
    } else if (is_word(i)) {
      const size_t begin = i;
      while (is_word(i) || (text.compare(i, 2, "::") == 0 && is_word(i + 2))) i += text[i] == ':' ? 2 : 1;
      tokens.push_back({text.substr(begin, i - begin), line, begin});
    } else {
      tokens.push_back({std::string(1, text[i]), line, i});
      ++i;
    }
  }
  return tokens;
}

int bits_of_type(const std::string& type) {
  if (type == ".pred") return 1;
  return std::atoi(type.c_str() + 2);  // .u32
}

class Parser {
 public:
  Parser(const std::string& text, const std::string& file) : text_(text), file_(file), tokens_(tokenize(text)) {}

  Module parse() {
    Module module;
    while (!at_end()) {
      const std::string word = next();
      if (word == ".version" || word == ".address_size")
        next();
      else if (word == ".target")
        module.target = next();
      else if (word == ".extern" || word == ".shared")
        dynamic_shared_memory();
      else if (word == ".visible" || word == ".weak")
        ;  // before .entry
      else if (word == ".entry")
        module.entries.push_back(entry());
      else
        fail("unknown directive " + word);
    }
    return module;
  }

 private:
  // ---- Tokens.

  bool at_end() const { return place_ == tokens_.size(); }
  const std::string& peek() const {
    if (at_end()) throw std::runtime_error(file_ + ": ends too early");
    return tokens_[place_].text;
  }
  std::string next() {
    std::string word = peek();
    ++place_;
    return word;
  }
  bool take(const std::string& word) {
    if (at_end() || peek() != word) return false;
    ++place_;
    return true;
  }
  void expect(const std::string& word) {
    if (!take(word)) fail("expected '" + word + "', not '" + peek() + "'");
  }
  int64_t integer() {
    const bool negative = take("-");
    const int64_t value = static_cast<int64_t>(std::strtoull(next().c_str(), nullptr, 0));
    return negative ? -value : value;
  }
  [[noreturn]] void fail(const std::string& what) const {
    const size_t at = place_ < tokens_.size() ? place_ : tokens_.size() - 1;
    throw std::runtime_error(file_ + ":" + std::to_string(tokens_[at].line) + ": " + what);
  }

  // ---- Directives.

  void dynamic_shared_memory() {
    if (tokens_[place_ - 1].text == ".extern") expect(".shared");
    if (take(".align")) integer();
    next();  // the type
    const std::string name = next();
    expect("[");
    if (!take("]")) fail("shared memory of a fixed size: kernels use dynamic shared memory only");
    expect(";");
    shared_.push_back(name);
  }

  std::unique_ptr<Entry> entry() {
    auto made = std::make_unique<Entry>();
    entry_ = made.get();
    const size_t begin = place_;
    entry_->name = next();
    entry_->file = file_;
    scopes_.assign(1, {});
    for (const std::string& name : shared_) add_slot({Slot::Kind::shared, name}, name);
    if (take("(")) parameters();
    for (;;) {
      if (take(".maxntid") || take(".reqntid")) {
        entry_->most_threads = 1;
        do entry_->most_threads *= static_cast<int>(integer());
        while (take(","));
      } else if (take(".minnctapersm") || take(".maxnreg")) {
        integer();
      } else {
        break;
      }
    }
    expect("{");
    block();
    entry_->source = text_.substr(tokens_[begin].at, tokens_[place_ - 1].at - tokens_[begin].at);
    return made;
  }

  void parameters() {
    while (!take(")")) {
      take(",");
      expect(".param");
      size_t alignment = 0;
      if (take(".align")) alignment = integer();
      size_t bytes = bits_of_type(next()) / 8;
      if (alignment == 0) alignment = bytes;
      const std::string name = next();
      if (take("[")) {
        bytes *= integer();
        expect("]");
      }
      const size_t offset = (entry_->parameter_bytes + alignment - 1) / alignment * alignment;
      entry_->parameters.push_back({name, offset, bytes, alignment});
      entry_->parameter_bytes = offset + bytes;
      add_slot({Slot::Kind::param, name, 64, offset}, name);
    }
  }

  // After its {.
  void block() {
    scopes_.emplace_back();
    while (!take("}")) {
      if (take("{")) {
        block();
      } else if (take(".reg")) {
        registers();
      } else if (take(".local")) {
        local_variable();
      } else if (take(".pragma")) {
        next();
        expect(";");
      } else if (take(".loc")) {
        for (const int line = tokens_[place_ - 1].line; tokens_[place_].line == line;) ++place_;
      } else if (place_ + 1 < tokens_.size() && tokens_[place_ + 1].text == ":") {
        entry_->labels[next()] = static_cast<int>(entry_->statements.size());
        expect(":");
      } else {
        statement();
      }
    }
    scopes_.pop_back();
  }

  void registers() {
    const int bits = bits_of_type(next());
    do {
      const std::string name = next();
      if (take("<")) {
        const int64_t count = integer();
        expect(">");
        for (int64_t i = 0; i < count; ++i) add_register(name + std::to_string(i), bits);
      } else {
        add_register(name, bits);
      }
    } while (take(","));
    expect(";");
  }
  void add_register(const std::string& name, int bits) { add_slot({Slot::Kind::register_, name, bits}, name); }

  void local_variable() {
    size_t alignment = 1;
    if (take(".align")) alignment = integer();
    size_t bytes = bits_of_type(next()) / 8;
    const std::string name = next();
    expect("[");
    bytes *= integer();
    expect("]");
    expect(";");
    const size_t offset = (entry_->local_bytes + alignment - 1) / alignment * alignment;
    add_slot({Slot::Kind::local, name, 64, offset}, name);
    entry_->local_bytes = offset + bytes;
  }

  int add_slot(Slot slot, const std::string& name) {
    entry_->slots.push_back(std::move(slot));
    return scopes_.back()[name] = static_cast<int>(entry_->slots.size()) - 1;
  }

  // ---- Statements.

  void statement() {
    Statement s;
    s.line = tokens_[place_].line;
    if (take("@")) {
      s.unless = take("!");
      s.guard = slot(next());
    }
    s.opcode = next();
    while (!take(";")) {
      if (!s.operands.empty()) expect(",");
      s.operands.push_back(operand());
    }
    entry_->statements.push_back(std::move(s));
  }

  Operand operand() {
    Operand o;
    o.text = peek();
    if (take("{")) {
      o.kind = Operand::Kind::vector;
      o.slots = rest_of_vector();
    } else if (take("[")) {
      o.kind = Operand::Kind::address;
      o.slot = slot(next());
      if (take("+")) o.offset = integer();
      if (take(",")) {
        expect("{");
        o.slots = rest_of_vector();
      }
      expect("]");
    } else if (peek()[0] == '$') {
      o.kind = Operand::Kind::label;
      next();
    } else {
      o.negated = take("!");
      o.slot = slot(take("-") ? "-" + next() : next());
      if (take("|")) o.predicate = slot(next());
    }
    return o;
  }

  std::vector<int> rest_of_vector() {
    std::vector<int> slots;
    do slots.push_back(slot(next()));
    while (take(","));
    expect("}");
    return slots;
  }

  // The slot of a name or a literal; of the innermost scope that has it.
  int slot(const std::string& name) {
    if (name == "_") return kNoSlot;
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (auto found = scope->find(name); found != scope->end()) return found->second;
    Slot made{Slot::Kind::constant, name};
    const char* digits = name.c_str() + (name[0] == '-');
    if (name[0] == '%') {
      made.kind = Slot::Kind::special;
    } else if (digits[0] == '0' && (digits[1] == 'f' || digits[1] == 'd')) {  // the bits of a float or a double
      made.value = std::strtoull(digits + 2, nullptr, 16);
    } else if (std::isdigit(static_cast<unsigned char>(digits[0]))) {
      made.value = std::strtoull(digits, nullptr, 0);
      if (name[0] == '-') made.value = -made.value;
    } else {
      fail("unknown name " + name);
    }
    entry_->slots.push_back(made);
    return scopes_.front()[name] = static_cast<int>(entry_->slots.size()) - 1;
  }

  const std::string& text_;
  const std::string file_;
  const std::vector<Token> tokens_;
  size_t place_ = 0;
  std::vector<std::string> shared_;
  Entry* entry_ = nullptr;
  std::vector<std::unordered_map<std::string, int>> scopes_;  // outermost first
};

}  // namespace

Module parse(const std::string& text, const std::string& file) { return Parser(text, file).parse(); }

}  // namespace ptx_on_cpu
