// SPDX-License-Identifier: MIT
// cvt.  PTX ISA, "Data Movement and Conversion Instructions: cvt".
#include <cfenv>
#include <cmath>
#include <limits>

#include "ptx_on_cpu/decoder.h"
#include "ptx_on_cpu/half.h"

namespace ptx_on_cpu {
namespace {

enum Format { kInteger, kF16, kBf16, kF32, kF64 };

struct Named {
  Format format;
  int bits;
  bool is_signed;
};

Named format_of(const std::string& name) {
  if (name == "bf16") return {kBf16, 16, true};
  const int bits = std::atoi(name.c_str() + 1);
  if (name[0] == 'f') return {bits == 16 ? kF16 : bits == 32 ? kF32 : kF64, bits, true};
  return {kInteger, bits, name[0] == 's'};
}

void integer_to_integer(Thread& t, const Instruction& i) { t.r[i.d] = extended(extended(t.r[i.a], i.from), i.to); }

template <typename T>
void integer_to_float(Thread& t, const Instruction& i) {
  const uint64_t value = extended(t.r[i.a], i.from);
  set<T>(t, i.d, i.from.is_signed ? static_cast<T>(static_cast<int64_t>(value)) : static_cast<T>(value));
}

// Rounded as `immediate` says, beyond the range its nearest end, NaN 0.
template <typename T>
void float_to_integer(Thread& t, const Instruction& i) {
  const double a = get<T>(t, i.a);
  const int bits = i.to.bits;
  const bool is_signed = i.to.is_signed;
  const double whole = i.immediate == 0   ? std::nearbyint(a)
                       : i.immediate == 1 ? std::trunc(a)
                       : i.immediate == 2 ? std::floor(a)
                                          : std::ceil(a);
  const double above = std::ldexp(1.0, is_signed ? bits - 1 : bits), below = is_signed ? -above : 0;
  uint64_t value;
  if (whole != whole)
    value = 0;
  else if (whole >= above)
    value = is_signed ? (uint64_t{1} << (bits - 1)) - 1 : ~uint64_t{0};
  else if (whole <= below)
    value = is_signed ? ~uint64_t{0} << (bits - 1) : 0;
  else
    value = is_signed ? static_cast<uint64_t>(static_cast<int64_t>(whole)) : static_cast<uint64_t>(whole);
  t.r[i.d] = extended(value, i.to);
}

double value_of(const Thread& t, int slot, Format format) {
  switch (format) {
    case kF16:
      return half_value(get<uint16_t>(t, slot));
    case kBf16:
      return bfloat16_value(get<uint16_t>(t, slot));
    case kF32:
      return get<float>(t, slot);
    default:
      return get<double>(t, slot);
  }
}

// To the nearest, ties to even.  From a float through double to a half is exact and then rounded once.
void float_to_float(Thread& t, const Instruction& i) {
  const double a = value_of(t, i.a, static_cast<Format>(i.variant));
  switch (i.immediate) {
    case kF16:
      return set<uint16_t>(t, i.d, half_bits(a));
    case kBf16:
      return set<uint16_t>(t, i.d, bfloat16_bits(a));
    case kF32: {
      float v = static_cast<float>(a);
      if (i.sat) v = v >= 1 ? 1.0f : v > 0 ? v : 0.0f;
      return set<float>(t, i.d, v != v ? __builtin_bit_cast(float, 0x7fffffff) : v);
    }
    default:
      return set<double>(t, i.d, a);
  }
}

// Two floats to one register: a above, b below.
template <uint16_t (*kBits)(double)>
void to_pair(Thread& t, const Instruction& i) {
  set<uint32_t>(t, i.d, static_cast<uint32_t>(kBits(get<float>(t, i.a))) << 16 | kBits(get<float>(t, i.b)));
}

// To the nearest of 10 bits of mantissa, ties away from zero.
void to_tf32(Thread& t, const Instruction& i) {
  const uint32_t bits = get<uint32_t>(t, i.a);
  const bool finite = (bits >> 23 & 0xff) != 0xff;
  set<uint32_t>(t, i.d, (finite ? bits + 0x1000 : bits) & ~0x1fffu);
}

void cvt(Decoder& d) {
  if (d.take("rna")) {
    d.expect("tf32");
    d.expect("f32");
    d.operands(2);
    d.made.run = to_tf32;
    return;
  }
  const int integer_rounding = d.take("rni") ? 0 : d.take("rzi") ? 1 : d.take("rmi") ? 2 : d.take("rpi") ? 3 : -1;
  const bool nearest = integer_rounding < 0 && d.take("rn");
  if (d.take("ftz")) d.fail("flush to zero of a conversion");
  d.made.sat = d.take("sat");
  const std::string to_name = d.next(), from_name = d.next();
  if (to_name == "f16x2" || to_name == "bf16x2") {
    if (!nearest || from_name != "f32" || d.made.sat) d.fail("no such conversion");
    d.operands(3);
    d.made.run = to_name == "f16x2" ? to_pair<half_bits> : to_pair<bfloat16_bits>;
    return;
  }
  const Named from = format_of(from_name), to = format_of(to_name);
  d.operands(2);
  if (from.format == kInteger && d.made.sat) d.fail("saturation of integers");
  d.made.from = {from.bits, from.is_signed, 64};
  d.made.to = {to.bits, to.is_signed, d.bits_of(d.made.d)};
  if (from.format == kInteger && to.format == kInteger) {
    d.made.run = integer_to_integer;
  } else if (from.format == kInteger) {
    d.made.run = !nearest            ? nullptr
                 : to.format == kF32 ? integer_to_float<float>
                 : to.format == kF64 ? integer_to_float<double>
                                     : nullptr;
  } else if (to.format == kInteger) {
    d.made.immediate = integer_rounding;
    d.made.run = integer_rounding < 0  ? nullptr
                 : from.format == kF32 ? float_to_integer<float>
                 : from.format == kF64 ? float_to_integer<double>
                                       : nullptr;
  } else {
    if (integer_rounding >= 0) d.fail("rounding to integers");
    const bool narrows = to.bits < from.bits;
    if (narrows != nearest) d.fail("another rounding than .rn");
    d.made.variant = from.format;
    d.made.immediate = to.format;
    if (d.made.sat && to.format != kF32) d.fail("saturation");
    d.made.run = float_to_float;
  }
}

}  // namespace

void add_conversions(DecodeTable& table) { table["cvt"] = cvt; }

}  // namespace ptx_on_cpu
