// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

namespace genimg_fast::cpu {

// from [batch][rows][columns] -> to [batch][columns][rows].  With channels for rows and pixels for columns that is NCHW
// to channels_last; the other way round, the way back.
template <typename T>
void transpose_each(const T* from, int64_t batch, int64_t rows, int64_t columns, T* to);

}  // namespace genimg_fast::cpu
