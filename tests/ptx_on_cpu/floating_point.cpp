// SPDX-License-Identifier: MIT
// Floating-point arithmetic.  PTX ISA, "Floating Point Instructions".
//
// What the ISA calls approximate is off by what it allows at most, each time by another part of that: a program that
// asks for more accuracy than that shows.
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

// ---- Approximations: in double, with the largest relative error that the ISA names, 2^-kAccuracy.  (Of the logarithm
// it names an absolute one.)

struct ApproximateRcp {
  static constexpr double kAccuracy = 23;  // one unit in the last place
  double operator()(double a) const { return 1 / a; }
};
struct ApproximateSqrt {
  static constexpr double kAccuracy = 23;
  double operator()(double a) const { return std::sqrt(a); }
};
struct Rsqrt {
  static constexpr double kAccuracy = 22.9;
  double operator()(double a) const { return 1 / std::sqrt(a); }
};
// The ISA says 2^-22, and that 2^0 is 1; but expf, which nvcc makes of it, is documented to be off by one unit in the
// last place, half of which is the rounding's.
struct Ex2 {
  static constexpr double kAccuracy = 24;
  double operator()(double a) const { return std::exp2(a); }
};
struct Lg2 {
  static constexpr double kAccuracy = 22;
  double operator()(double a) const { return std::log2(a); }
};
struct Tanh {
  static constexpr double kAccuracy = 11;
  double operator()(double a) const { return std::tanh(a); }
};

// -1 to 1, of the bits of the operands.
double part_of_error(uint64_t bits) {
  bits = (bits ^ bits >> 31) * 0x9e3779b97f4a7c15;
  return static_cast<double>(static_cast<int64_t>(bits ^ bits >> 29)) * 0x1p-63;
}

template <typename Op>
void approximation(Thread& t, const Instruction& i) {
  const float a = operand<float>(t, i, i.a);
  const double error = a == 0 ? 0 : part_of_error(__builtin_bit_cast(uint32_t, a)) * std::exp2(-Op::kAccuracy);
  result<float>(t, i, static_cast<float>(Op()(a) * (1 + error)));
}

// Off by two units, except by a power of two: whose reciprocal is exact on GPUs, though the ISA does not say so.  The
// gradient of a loss at a logit of infinity, 1 / 1 - 1, needs that to be 0.
void approximate_division(Thread& t, const Instruction& i) {
  const float a = operand<float>(t, i, i.a), b = operand<float>(t, i, i.b);
  int exponent;
  if (std::fabs(std::frexp(b, &exponent)) == 0.5f) return result<float>(t, i, a / b);
  const uint64_t bits = static_cast<uint64_t>(__builtin_bit_cast(uint32_t, a)) << 32 | __builtin_bit_cast(uint32_t, b);
  result<float>(t, i, static_cast<float>(static_cast<double>(a) / b * (1 + part_of_error(bits) * 0x1p-22)));
}

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

template <typename Op>
void approximate(Decoder& d) {
  d.expect("approx");
  d.made.ftz = d.take("ftz");
  d.expect("f32");
  d.operands(2);
  d.made.run = approximation<Op>;
}

// rcp, sqrt: .rn or .approx
template <typename Op, typename Approximate>
void exact_or_approximate(Decoder& d) {
  if (!d.take("rn")) return approximate<Approximate>(d);
  d.made.ftz = d.take("ftz");
  const Type type = d.type();
  d.operands(2);
  d.made.run = float_handler<FloatUnary, Op>(type);
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
    const bool rounded = d.take("rn"), approximate = !rounded && (d.take("approx") || d.take("full"));
    d.made.ftz = d.take("ftz");
    const Type type = d.type();
    d.operands(3);
    if (approximate)
      d.made.run = type == Type{'f', 32} ? approximate_division : nullptr;
    else
      d.made.run = rounded ? float_handler<FloatBinary, Div>(type) : integer_arithmetic(d, "div", type);
  };
  table["copysign"] = [](Decoder& d) {
    const Type type = d.type();
    d.operands(3);
    d.made.run = float_handler<FloatBinary, CopySign>(type);
  };
  table["rcp"] = exact_or_approximate<Rcp, ApproximateRcp>;
  table["sqrt"] = exact_or_approximate<Sqrt, ApproximateSqrt>;
  table["rsqrt"] = approximate<Rsqrt>;
  table["ex2"] = approximate<Ex2>;
  table["lg2"] = approximate<Lg2>;
  table["tanh"] = approximate<Tanh>;
}

}  // namespace ptx_on_cpu
