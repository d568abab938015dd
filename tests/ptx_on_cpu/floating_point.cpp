// SPDX-License-Identifier: MIT
// Floating-point arithmetic.  PTX ISA, "Floating Point Instructions".
//
// What the ISA calls approximate is computed as exactly as the type allows: a GPU's errors, of some units in the last
// place, are not shown.
#include <cfenv>
#include <cmath>
#include <limits>

#include "ptx_on_cpu/decoder.h"

namespace ptx_on_cpu {

// integer.cpp
Run integer_arithmetic(const Decoder& d, const std::string& name, Type type);
void integer_multiplication(Decoder& d, int part);

namespace {

float flush(float v) { return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0f, v) : v; }
double flush(double v) { return v; }

template <typename T>
T operand(const Thread& t, const Instruction& i, int slot) {
  const T v = get<T>(t, slot);
  return i.ftz ? flush(v) : v;
}
template <typename T>
void result(Thread& t, const Instruction& i, T v) {
  if (i.ftz) v = flush(v);
  if (i.sat) v = v >= T{1} ? T{1} : v > T{0} ? v : T{0};  // and NaN becomes 0
  if (v != v) v = sizeof(T) == 4 ? __builtin_bit_cast(float, 0x7fffffff) : std::numeric_limits<T>::quiet_NaN();
  set<T>(t, i.d, v);
}

// compute() in the rounding mode of the instruction.  volatile: so that it stays between the changes of the mode.
template <typename T, typename Compute>
T rounded(int mode, const Compute& compute) {
  if (mode == FE_TONEAREST) return compute();
  std::fesetround(mode);
  volatile T value = compute();
  std::fesetround(FE_TONEAREST);
  return value;
}

template <typename T>
struct Opaque {  // whose operands the compiler cannot combine before the mode is set
  volatile T value;
  operator T() const { return value; }
};

template <typename T, typename Op>
struct FloatUnary {
  static void run(Thread& t, const Instruction& i) { result<T>(t, i, Op()(operand<T>(t, i, i.a))); }
};
template <typename T, typename Op>
struct FloatBinary {
  static void run(Thread& t, const Instruction& i) {
    const int mode = static_cast<int>(i.immediate);
    if (mode == FE_TONEAREST) return result<T>(t, i, Op()(operand<T>(t, i, i.a), operand<T>(t, i, i.b)));
    const Opaque<T> a{operand<T>(t, i, i.a)}, b{operand<T>(t, i, i.b)};
    result<T>(t, i, rounded<T>(mode, [&] { return Op()(T(a), T(b)); }));
  }
};
template <typename T, typename>
struct Fma {
  static void run(Thread& t, const Instruction& i) {
    const T a = operand<T>(t, i, i.a), b = operand<T>(t, i, i.b), c = operand<T>(t, i, i.c);
    result<T>(t, i, rounded<T>(static_cast<int>(i.immediate), [&] { return std::fma(a, b, c); }));
  }
};

struct Add {
  template <typename T>
  T operator()(T a, T b) const {
    return a + b;
  }
};
struct Sub {
  template <typename T>
  T operator()(T a, T b) const {
    return a - b;
  }
};
struct Mul {
  template <typename T>
  T operator()(T a, T b) const {
    return a * b;
  }
};
struct Div {
  template <typename T>
  T operator()(T a, T b) const {
    return a / b;
  }
};
// Of a NaN and a number the number; -0 is less than +0.
struct Min {
  template <typename T>
  T operator()(T a, T b) const {
    return a == b ? (std::signbit(a) ? a : b) : a < b || b != b ? a : b;
  }
};
struct Max {
  template <typename T>
  T operator()(T a, T b) const {
    return a == b ? (std::signbit(a) ? b : a) : a > b || b != b ? a : b;
  }
};
struct MinNan {
  template <typename T>
  T operator()(T a, T b) const {
    return a != a || b != b ? a + b : Min()(a, b);
  }
};
struct MaxNan {
  template <typename T>
  T operator()(T a, T b) const {
    return a != a || b != b ? a + b : Max()(a, b);
  }
};
struct CopySign {  // b with the sign of a
  template <typename T>
  T operator()(T a, T b) const {
    return std::copysign(b, a);
  }
};
struct Neg {
  template <typename T>
  T operator()(T a) const {
    return -a;
  }
};
struct Abs {
  template <typename T>
  T operator()(T a) const {
    return std::fabs(a);
  }
};
struct Rcp {
  template <typename T>
  T operator()(T a) const {
    return 1 / a;
  }
};
struct Sqrt {
  template <typename T>
  T operator()(T a) const {
    return std::sqrt(a);
  }
};
// In double, and rounded once.
struct Rsqrt {
  float operator()(float a) const { return static_cast<float>(1 / std::sqrt(static_cast<double>(a))); }
};
struct Ex2 {
  float operator()(float a) const { return static_cast<float>(std::exp2(static_cast<double>(a))); }
};
struct Lg2 {
  float operator()(float a) const { return static_cast<float>(std::log2(static_cast<double>(a))); }
};
struct Sin {
  float operator()(float a) const { return static_cast<float>(std::sin(static_cast<double>(a))); }
};
struct Cos {
  float operator()(float a) const { return static_cast<float>(std::cos(static_cast<double>(a))); }
};
struct Tanh {
  float operator()(float a) const { return static_cast<float>(std::tanh(static_cast<double>(a))); }
};

template <template <typename, typename> class Handler, typename Op>
Run float_handler(Type type) {
  if (!(type.kind == 'f')) return nullptr;
  return type.bits == 32 ? Handler<float, Op>::run : type.bits == 64 ? Handler<double, Op>::run : nullptr;
}

// {.rn, .rz, .rm, .rp}{.ftz}{.sat}
void rounding(Decoder& d) {
  d.made.immediate = d.take("rz")   ? FE_TOWARDZERO
                     : d.take("rm") ? FE_DOWNWARD
                     : d.take("rp") ? FE_UPWARD
                                    : (d.take("rn"), FE_TONEAREST);
  d.made.ftz = d.take("ftz");
  d.made.sat = d.take("sat");
}

// add, sub, min, max: of floats, else of integers.
template <typename Op>
void binary(Decoder& d) {
  rounding(d);
  const bool with_modifiers = d.made.ftz || d.made.sat || d.made.immediate != FE_TONEAREST;
  const Type type = d.type();
  d.operands(3);
  d.made.run = float_handler<FloatBinary, Op>(type);
  if (d.made.run || with_modifiers) return;
  d.made.run = integer_arithmetic(d, d.statement.opcode.substr(0, 3), type);
}

template <typename Op>
void unary(Decoder& d) {
  d.made.ftz = d.take("ftz");
  const Type type = d.type();
  d.operands(2);
  d.made.run = float_handler<FloatUnary, Op>(type);
  if (!d.made.run && !d.made.ftz) d.made.run = integer_arithmetic(d, d.statement.opcode.substr(0, 3), type);
}

template <typename Op, typename OpNan>
void extremum(Decoder& d) {
  d.made.ftz = d.take("ftz");
  const bool nan = d.take("NaN");
  const Type type = d.type();
  d.operands(3);
  d.made.immediate = FE_TONEAREST;
  d.made.run = nan ? float_handler<FloatBinary, OpNan>(type) : float_handler<FloatBinary, Op>(type);
  if (!d.made.run && !nan && !d.made.ftz) {
    d.made.immediate = 0;
    d.made.run = integer_arithmetic(d, d.statement.opcode.substr(0, 3), type);
  }
}

// rcp, sqrt: .rn or .approx
template <typename Op>
void exact_or_approximate(Decoder& d) {
  d.choose({"rn", "approx"});
  d.made.ftz = d.take("ftz");
  const Type type = d.type();
  d.operands(2);
  d.made.run = float_handler<FloatUnary, Op>(type);
}

template <typename Op>
void approximate(Decoder& d) {
  d.expect("approx");
  d.made.ftz = d.take("ftz");
  d.expect("f32");
  d.operands(2);
  d.made.run = FloatUnary<float, Op>::run;
}

}  // namespace

void add_floating_point(DecodeTable& table) {
  table["add"] = binary<Add>;
  table["sub"] = binary<Sub>;
  table["min"] = extremum<Min, MinNan>;
  table["max"] = extremum<Max, MaxNan>;
  table["neg"] = unary<Neg>;
  table["abs"] = unary<Abs>;
  table["mul"] = [](Decoder& d) {
    for (int part = 0; part < 3; ++part)
      if (d.take(part == 0 ? "lo" : part == 1 ? "hi" : "wide")) return integer_multiplication(d, part);
    rounding(d);
    const Type type = d.type();
    d.operands(3);
    d.made.run = float_handler<FloatBinary, Mul>(type);
  };
  table["fma"] = [](Decoder& d) {
    rounding(d);
    const Type type = d.type();
    d.operands(4);
    d.made.run = float_handler<Fma, void>(type);
  };
  table["div"] = [](Decoder& d) {
    const bool floating = d.take("rn") || d.take("approx") || d.take("full");
    d.made.ftz = d.take("ftz");
    const Type type = d.type();
    d.operands(3);
    d.made.run = floating ? float_handler<FloatBinary, Div>(type) : integer_arithmetic(d, "div", type);
  };
  table["copysign"] = [](Decoder& d) {
    const Type type = d.type();
    d.operands(3);
    d.made.run = float_handler<FloatBinary, CopySign>(type);
  };
  table["rcp"] = exact_or_approximate<Rcp>;
  table["sqrt"] = exact_or_approximate<Sqrt>;
  table["rsqrt"] = approximate<Rsqrt>;
  table["ex2"] = approximate<Ex2>;
  table["lg2"] = approximate<Lg2>;
  table["sin"] = approximate<Sin>;
  table["cos"] = approximate<Cos>;
  table["tanh"] = approximate<Tanh>;
}

}  // namespace ptx_on_cpu
