// SPDX-License-Identifier: MIT
// __half and __nv_bfloat16, with the conversions that csrc/cuda uses.  As in csrc/cuda there is no implicit conversion.
#pragma once
#include <cstdint>

struct __half {
  _Float16 value;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __half2float(__half v) { return static_cast<float>(v.value); }
inline __half __float2half_rn(float v) { return {static_cast<_Float16>(v)}; }

inline float __bfloat162float(__nv_bfloat16 v) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(v.bits) << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, v);
  if (v != v) return {0x7fff};  // CUDA's NaN; rounding could carry a NaN's bits into infinity
  const uint32_t round_half_to_even = 0x7fff + (bits >> 16 & 1);
  return {static_cast<uint16_t>((bits + round_half_to_even) >> 16)};
}

struct __half2 {
  __half x, y;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
