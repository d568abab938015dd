// SPDX-License-Identifier: MIT
// Integers, bits, predicates, and moves.  PTX ISA, "Integer Arithmetic", "Logic and Shift", "Comparison and Selection".
#include "ptx_on_cpu/decoder.h"

namespace ptx_on_cpu {
namespace {

// Arithmetic wraps, signed too: it is done in 64 bits without a sign, of which the low ones are kept.
struct Add {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  }
};
struct Sub {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
  }
};
struct MulLo {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
  }
};
struct MulHi {
  template <typename T>
  T operator()(T a, T b) const {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> (8 * sizeof(T)));
  }
};
struct MadLo {
  template <typename T>
  T operator()(T a, T b, T c) const {
    return Add()(MulLo()(a, b), c);
  }
};
struct MadHi {
  template <typename T>
  T operator()(T a, T b, T c) const {
    return Add()(MulHi()(a, b), c);
  }
};
// The result of a division by zero is unspecified; so is that of the one quotient that does not fit.
struct Div {
  template <typename T>
  T operator()(T a, T b) const {
    if (b == 0) return static_cast<T>(-1);
    return std::is_signed_v<T> && b == static_cast<T>(-1) ? Sub()(T{0}, a) : static_cast<T>(a / b);
  }
};
struct Rem {
  template <typename T>
  T operator()(T a, T b) const {
    return Sub()(a, MulLo()(Div()(a, b), b));
  }
};
struct Min {
  template <typename T>
  T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};
struct Max {
  template <typename T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct Neg {
  template <typename T>
  T operator()(T a) const {
    return Sub()(T{0}, a);
  }
};
struct Abs {
  template <typename T>
  T operator()(T a) const {
    return a < 0 ? Sub()(T{0}, a) : a;
  }
};
struct And {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(a & b);
  }
};
struct Or {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(a | b);
  }
};
struct Xor {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(a ^ b);
  }
};
struct Not {
  template <typename T>
  T operator()(T a) const {
    return static_cast<T>(~a);
  }
};

// Two factors of T, and the product (and c) of twice the width.
template <typename T, typename WithC>
struct Wide {
  using Twice = std::conditional_t<sizeof(T) == 4, int64_t, int32_t>;
  using Result = std::conditional_t<std::is_signed_v<T>, Twice, std::make_unsigned_t<Twice>>;

  static void run(Thread& t, const Instruction& i) {
    Result product = MulLo()(static_cast<Result>(get<T>(t, i.a)), static_cast<Result>(get<T>(t, i.b)));
    if (WithC::value) product = Add()(product, get<Result>(t, i.c));
    set<Result>(t, i.d, product);
  }
};

// Shifts of more than the width, too: the count is clamped.
template <typename T, typename Op>
struct Shift {
  static void run(Thread& t, const Instruction& i) {
    const uint32_t count = get<uint32_t>(t, i.b);
    const T a = get<T>(t, i.a);
    constexpr uint32_t kBits = 8 * sizeof(T);
    if (Op::value)
      set<T>(t, i.d, count >= kBits ? T{0} : static_cast<T>(static_cast<uint64_t>(a) << count));
    else
      set<T>(t, i.d, static_cast<T>(a >> (count >= kBits ? kBits - 1 : count) >> (count >= kBits ? 1 : 0)));
  }
};

void three_operands(Decoder& d, Run (*handler)(const Decoder&, Type)) {
  const Type type = d.type();
  d.operands(3);
  d.made.run = handler(d, type);
}

void multiply(Decoder& d, int part, bool with_c) {
  const Type type = d.type();
  d.operands(with_c ? 4 : 3);
  if (part == 2)
    d.made.run = type.bits == 64 ? nullptr
                 : with_c        ? integer_handler<Wide, std::true_type>(d, type)
                                 : integer_handler<Wide, std::false_type>(d, type);
  else if (with_c)
    d.made.run = part == 0 ? integer_handler<Ternary, MadLo>(d, type) : integer_handler<Ternary, MadHi>(d, type);
  else
    d.made.run = part == 0 ? integer_handler<Binary, MulLo>(d, type) : integer_handler<Binary, MulHi>(d, type);
}

// and, or, xor, not: of predicates too, which are 0 or 1.
struct NotPredicate {
  uint16_t operator()(uint16_t a) const { return a == 0; }
};
template <typename Op>
void logic(Decoder& d) {
  const Type type = d.type();
  d.operands(3);
  d.made.run = type.kind == 'p' ? Binary<uint16_t, Op>::run : integer_handler<Binary, Op>(d, type);
}

// ---- Comparisons.

enum Comparison { kEq, kNe, kLt, kLe, kGt, kGe, kLo, kLs, kHi, kHs, kEqu, kNeu, kLtu, kLeu, kGtu, kGeu, kNum, kNan };

template <typename T>
bool compare(int comparison, T a, T b) {
  const bool unordered = a != a || b != b;
  switch (comparison) {
    case kEq:
      return a == b;
    case kNe:
      return !unordered && a != b;
    case kLt:
    case kLo:
      return a < b;
    case kLe:
    case kLs:
      return a <= b;
    case kGt:
    case kHi:
      return a > b;
    case kGe:
    case kHs:
      return a >= b;
    case kEqu:
      return unordered || a == b;
    case kNeu:
      return a != b;
    case kLtu:
      return unordered || a < b;
    case kLeu:
      return unordered || a <= b;
    case kGtu:
      return unordered || a > b;
    case kGeu:
      return unordered || a >= b;
    case kNum:
      return !unordered;
    default:
      return unordered;
  }
}

template <typename T, typename>
struct Setp {  // d|e = comparison(a, b), combined with the predicate c
  static void run(Thread& t, const Instruction& i) {
    const int comparison = static_cast<int>(i.immediate & 0xff),
              combination = static_cast<int>(i.immediate >> 8 & 0xff);
    const bool met = compare<T>(comparison, get<T>(t, i.a), get<T>(t, i.b));
    bool yes = met, no = !met;
    if (combination > 0) {
      const bool c = (t.r[i.c] != 0) != static_cast<bool>(i.immediate >> 16);
      auto combine = [&](bool p) { return combination == 1 ? p && c : combination == 2 ? p || c : p != c; };
      yes = combine(met), no = combine(!met);
    }
    set<uint64_t>(t, i.d, yes);
    set<uint64_t>(t, i.e, no);
  }
};

void setp(Decoder& d) {
  const int comparison = d.choose({"eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu",
                                   "leu", "gtu", "geu", "num", "nan"});
  int combination = 0;
  if (d.operand_count() == 4) combination = d.choose({"and", "or", "xor"}) + 1;
  if (d.take("ftz")) d.fail("flush to zero of a comparison");
  const Type type = d.type();
  d.made.d = d.operand(0).slot;
  d.made.e = d.operand(0).predicate;
  d.made.a = d.slot(1);
  d.made.b = d.slot(2);
  bool negated = false;
  if (combination > 0) {
    d.made.c = d.operand(3).slot;
    negated = d.operand(3).negated;
  }
  d.made.immediate = comparison | combination << 8 | (negated ? 1 << 16 : 0);
  if (type.kind == 'f')
    d.made.run = type.bits == 32 ? Setp<float, void>::run : type.bits == 64 ? Setp<double, void>::run : nullptr;
  else if (comparison >= kEqu || (type.kind == 'b' && comparison > kNe))
    d.fail("no such comparison of integers");
  else
    d.made.run = integer_handler<Setp, void>(d, type);
}

void selp(Decoder& d) {
  d.type();
  d.operands(4);
  d.made.run = [](Thread& t, const Instruction& i) { t.r[i.d] = t.r[t.r[i.c] ? i.a : i.b]; };
}

// ---- Moves.

void mov(Decoder& d) {
  const Type type = d.type();
  const Operand &to = d.operand(0), &from = d.operand(1);
  if (to.kind == Operand::Kind::vector) {  // the parts of a, lowest first
    d.made.list = to.slots;
    d.made.a = d.slot(1);
    d.made.immediate = type.bits / static_cast<int>(to.slots.size());
    d.made.run = [](Thread& t, const Instruction& i) {
      const uint64_t a = t.r[i.a], mask = (uint64_t{1} << i.immediate) - 1;
      for (size_t k = 0; k < i.list.size(); ++k) set<uint64_t>(t, i.list[k], a >> (k * i.immediate) & mask);
    };
  } else if (from.kind == Operand::Kind::vector) {
    d.made.d = d.slot(0);
    d.made.list = from.slots;
    d.made.immediate = type.bits / static_cast<int>(from.slots.size());
    d.made.run = [](Thread& t, const Instruction& i) {
      uint64_t value = 0;
      const uint64_t mask = (uint64_t{1} << i.immediate) - 1;
      for (size_t k = 0; k < i.list.size(); ++k) value |= (t.r[i.list[k]] & mask) << (k * i.immediate);
      t.r[i.d] = value;
    };
  } else {
    d.operands(2);
    if (type.bits == 64 || type.bits == 1)
      d.made.run = [](Thread& t, const Instruction& i) { t.r[i.d] = t.r[i.a]; };
    else if (type.bits == 32)
      d.made.run = [](Thread& t, const Instruction& i) { t.r[i.d] = static_cast<uint32_t>(t.r[i.a]); };
    else
      d.made.run = [](Thread& t, const Instruction& i) { t.r[i.d] = static_cast<uint16_t>(t.r[i.a]); };
  }
}

// ---- Bits.

void bfi(Decoder& d) {  // d = b with the low bits of a at place c, as many as e says
  d.type();
  d.operands(5);
  if (d.bits_of(d.made.d) != 32) d.fail("of 64 bits");
  d.made.run = [](Thread& t, const Instruction& i) {
    const uint32_t place = get<uint8_t>(t, i.c), length = get<uint8_t>(t, i.e);
    uint64_t mask = ((uint64_t{1} << (length > 32 ? 32 : length)) - 1) << (place > 32 ? 32 : place);
    mask &= 0xffffffff;
    const uint64_t inserted = place > 31 ? 0 : static_cast<uint64_t>(get<uint32_t>(t, i.a)) << place;
    set<uint32_t>(t, i.d, static_cast<uint32_t>((get<uint32_t>(t, i.b) & ~mask) | (inserted & mask)));
  };
}

template <bool kSigned>
void bfe_32(Thread& t, const Instruction& i) {  // the bits of a from b on, as many as c says
  const uint32_t a = get<uint32_t>(t, i.a), place = get<uint8_t>(t, i.b), length = get<uint8_t>(t, i.c);
  uint32_t sign = 0;
  if (kSigned && length > 0) sign = a >> (place + length - 1 > 31 ? 31 : place + length - 1) & 1;
  uint32_t out = 0;
  for (uint32_t k = 0; k < 32; ++k)
    out |= (k < length && place + k <= 31 ? a >> (place + k) & 1 : kSigned ? sign : 0) << k;
  set<uint32_t>(t, i.d, out);
}

void prmt(Decoder& d) {  // each byte of d one of the eight of {b, a}, or its sign eight times
  d.expect("b32");
  d.operands(4);
  d.made.run = [](Thread& t, const Instruction& i) {
    const uint64_t bytes = get<uint32_t>(t, i.a) | static_cast<uint64_t>(get<uint32_t>(t, i.b)) << 32;
    uint32_t out = 0;
    for (int k = 0; k < 4; ++k) {
      const uint32_t selector = get<uint32_t>(t, i.c) >> (4 * k) & 0xf;
      uint32_t byte = bytes >> (8 * (selector & 7)) & 0xff;
      if (selector & 8) byte = byte & 0x80 ? 0xff : 0;
      out |= byte << (8 * k);
    }
    set<uint32_t>(t, i.d, out);
  };
}

// The high (left) or low (right) half of {b, a} shifted by c.
template <bool kLeft, bool kWrap>
void shf(Thread& t, const Instruction& i) {
  const uint64_t both = get<uint32_t>(t, i.a) | static_cast<uint64_t>(get<uint32_t>(t, i.b)) << 32;
  uint32_t count = get<uint32_t>(t, i.c);
  count = kWrap ? count & 31 : count > 32 ? 32 : count;
  set<uint32_t>(t, i.d, static_cast<uint32_t>(kLeft ? both << count >> 32 : both >> count));
}

}  // namespace

void add_integer(DecodeTable& table) {
  // add, sub, mul, div, min, max, neg and abs: floating_point.cpp, which hands on those of integers.
  table["mad"] = [](Decoder& d) { multiply(d, d.choose({"lo", "hi", "wide"}), true); };
  table["rem"] = [](Decoder& d) { three_operands(d, integer_handler<Binary, Rem>); };
  table["and"] = logic<And>;
  table["or"] = logic<Or>;
  table["xor"] = logic<Xor>;
  table["not"] = [](Decoder& d) {
    const Type type = d.type();
    d.operands(2);
    d.made.run = type.kind == 'p' ? Unary<uint16_t, NotPredicate>::run : integer_handler<Unary, Not>(d, type);
  };
  table["shl"] = [](Decoder& d) { three_operands(d, integer_handler<Shift, std::true_type>); };
  table["shr"] = [](Decoder& d) { three_operands(d, integer_handler<Shift, std::false_type>); };
  table["setp"] = setp;
  table["selp"] = selp;
  table["mov"] = mov;
  table["bfi"] = bfi;
  table["bfe"] = [](Decoder& d) {
    const Type type = d.type();
    d.operands(4);
    d.made.run = type.bits != 32 ? nullptr : type.kind == 's' ? bfe_32<true> : bfe_32<false>;
  };
  table["prmt"] = prmt;
  table["shf"] = [](Decoder& d) {
    const bool left = d.choose({"l", "r"}) == 0, wrap = d.choose({"wrap", "clamp"}) == 0;
    d.expect("b32");
    d.operands(4);
    d.made.run = left ? (wrap ? shf<true, true> : shf<true, false>) : wrap ? shf<false, true> : shf<false, false>;
  };
  table["popc"] = [](Decoder& d) {
    const Type type = d.type();
    d.operands(2);
    d.made.immediate = type.bits;
    d.made.run = [](Thread& t, const Instruction& i) {
      const uint64_t a = i.immediate == 64 ? t.r[i.a] : static_cast<uint32_t>(t.r[i.a]);
      set<uint32_t>(t, i.d, static_cast<uint32_t>(__builtin_popcountll(a)));
    };
  };
}

void integer_multiplication(Decoder& d, int part) { multiply(d, part, false); }

Run integer_arithmetic(const Decoder& d, const std::string& name, Type type) {
  if (name == "add") return integer_handler<Binary, Add>(d, type);
  if (name == "sub") return integer_handler<Binary, Sub>(d, type);
  if (name == "div") return integer_handler<Binary, Div>(d, type);
  if (name == "min") return integer_handler<Binary, Min>(d, type);
  if (name == "max") return integer_handler<Binary, Max>(d, type);
  if (name == "neg") return integer_handler<Unary, Neg>(d, type);
  if (name == "abs") return integer_handler<Unary, Abs>(d, type);
  return nullptr;
}

}  // namespace ptx_on_cpu
