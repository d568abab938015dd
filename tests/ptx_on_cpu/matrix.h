// SPDX-License-Identifier: MIT
// The values of all half and bfloat16 numbers, by their bits.
#pragma once
#include <vector>

#include "ptx_on_cpu/async.h"
#include "ptx_on_cpu/half.h"

namespace ptx_on_cpu {

template <double (*value)(uint16_t)>
const float* values_of_all() {
  static const std::vector<float> table = [] {
    std::vector<float> made(65536);
    for (int bits = 0; bits < 65536; ++bits) made[bits] = static_cast<float>(value(static_cast<uint16_t>(bits)));
    return made;
  }();
  return table.data();
}
inline const float* half_values() { return values_of_all<half_value>(); }
inline const float* bfloat16_values() { return values_of_all<bfloat16_value>(); }

}  // namespace ptx_on_cpu
