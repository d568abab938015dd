// SPDX-License-Identifier: MIT
// The two half types, from and to double, by integer arithmetic alone: a second opinion on cuda_on_cpu/half_types.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

namespace ptx_on_cpu {

// A value of so many bits of exponent and mantissa.
template <int kExponent, int kMantissa>
double small_float_value(uint16_t bits) {
  const int exponent = bits >> kMantissa & ((1 << kExponent) - 1), mantissa = bits & ((1 << kMantissa) - 1);
  constexpr int kBias = (1 << (kExponent - 1)) - 1;
  double value;
  if (exponent == (1 << kExponent) - 1)
    value = mantissa ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  else if (exponent == 0)
    value = std::ldexp(mantissa, 1 - kBias - kMantissa);
  else
    value = std::ldexp((1 << kMantissa) + mantissa, exponent - kBias - kMantissa);
  return bits >> 15 ? -value : value;
}

// The nearest, ties to even; NaN is 0x7fff.
template <int kExponent, int kMantissa>
uint16_t small_float_bits(double value) {
  if (value != value) return 0x7fff;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  constexpr int kBias = (1 << (kExponent - 1)) - 1;
  constexpr uint16_t kInfinity = ((1 << kExponent) - 1) << kMantissa;
  value = std::fabs(value);
  if (std::isinf(value)) return sign | kInfinity;
  if (value == 0) return sign;
  int exponent = std::ilogb(value);
  if (exponent < 1 - kBias) exponent = 1 - kBias;  // subnormal
  const int64_t steps = static_cast<int64_t>(std::nearbyint(std::ldexp(value, kMantissa - exponent)));
  // A carry into the next power of two is one into the exponent, of the largest into infinity.
  const int64_t bits = (static_cast<int64_t>(exponent + kBias - 1) << kMantissa) + steps;
  return sign | static_cast<uint16_t>(bits > kInfinity ? kInfinity : bits);
}

inline double half_value(uint16_t bits) { return small_float_value<5, 10>(bits); }
inline double bfloat16_value(uint16_t bits) { return small_float_value<8, 7>(bits); }
inline uint16_t half_bits(double value) { return small_float_bits<5, 10>(value); }
inline uint16_t bfloat16_bits(double value) { return small_float_bits<8, 7>(value); }

}  // namespace ptx_on_cpu
