// SPDX-License-Identifier: MIT
// ChannelSums of one vector of channels; for files compiled through foreach_isa.h, hence no include guard.
#include "cpu/channel_sums.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// Lanes add up in T; save() folds them into the doubles of ChannelSums.  Call it every hundred values or so.
//
// The origin is the first value, then the mean of the first few, and whenever there are twice as many the mean so far:
// about an outlier that happens to come first all other squares would be as large as its own, and in T lose the digits
// of their sum.
template <typename T>
struct LaneSums {
  static constexpr int64_t kFew = 8;
  Vec<T> origin{}, sum{}, sum_of_squares{};
  int64_t count = 0;
  int64_t next_origin = 0;  // the count at which it moves

  // Goes on from what channels [0, lanes) of `from` hold.
  GF_INLINE LaneSums(const ChannelSums<T>* from, int lanes) {
    if (lanes == 0 || from[0].count == 0) return;
    T origins[kLanes<T>] = {};
    for (int i = 0; i < lanes; ++i) origins[i] = from[i].origin;
    start_at(load(origins));
  }
  GF_INLINE void start_at(Vec<T> value) {
    origin = value;
    next_origin = -1;
  }
  GF_INLINE void add(Vec<T> value) {
    if (count == next_origin) move_origin(value);
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
    const bool twice_as_many = lanes > 0 && ((to[0].count ^ (to[0].count + count)) > to[0].count);
    for (int i = 0; i < lanes; ++i) {
      to[i].origin = values[0][i];
      to[i].sum += values[1][i];
      to[i].sum_of_squares += values[2][i];
      to[i].count += count;
      if (twice_as_many) to[i].move_origin();
    }
  }

 private:
  GF_INLINE void move_origin(Vec<T> value) {
    if (count == 0) {
      origin = value;
      next_origin = kFew;
      return;
    }
    const Vec<T> mean = origin + sum * (T(1) / T(kFew));
    const Vec<T> moved_to = mean - mean == 0 ? mean : origin, d = moved_to - origin;
    sum_of_squares -= d * (sum + (sum - T(kFew) * d));
    sum -= T(kFew) * d;
    start_at(moved_to);
  }
};

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA
