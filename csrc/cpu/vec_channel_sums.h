// SPDX-License-Identifier: MIT
// ChannelSums of one vector of channels; for files compiled through foreach_isa.h, hence no include guard.
#include "cpu/channel_sums.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// Lanes add up in T; save() folds them into the doubles of ChannelSums.  Call it every hundred values or so.
template <typename T>
struct LaneSums {
  Vec<T> origin{}, sum{}, sum_of_squares{};
  int64_t count = 0;
  bool has_origin = false;

  // Goes on from what channels [0, lanes) of `from` hold.
  GF_INLINE LaneSums(const ChannelSums<T>* from, int lanes) {
    T origins[kLanes<T>] = {};
    for (int i = 0; i < lanes; ++i) origins[i] = from[i].origin;
    origin = load(origins);
    has_origin = lanes > 0 && from[0].count > 0;
  }
  GF_INLINE void add(Vec<T> value) {
    if (!has_origin) origin = value;
    has_origin = true;
    const Vec<T> d = value - origin;
    sum += d;
    sum_of_squares += d * d;
    ++count;
  }
  GF_INLINE void save(ChannelSums<T>* to, int lanes) const {
    T values[3][kLanes<T>];
    store(values[0], origin);
    store(values[1], sum);
    store(values[2], sum_of_squares);
    for (int i = 0; i < lanes; ++i) {
      to[i].origin = values[0][i];
      to[i].sum += values[1][i];
      to[i].sum_of_squares += values[2][i];
      to[i].count += count;
    }
  }
};

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA
