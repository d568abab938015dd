// SPDX-License-Identifier: MIT
// ChannelSums of one vector of channels; for files compiled through foreach_isa.h, hence no include guard.
#include "cpu/channel_sums.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// Lanes add up in T; save() folds them into the doubles of ChannelSums.  Call it every hundred values or so.
//
// The origin is the first value, then the mean of the first few, and from one save() to the next the mean so far: about
// an outlier that happens to come first all other squares would be as large as its own, and in T lose the digits of
// their sum.
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
    for (int i = 0; i < lanes; ++i) {
      const T mean = static_cast<T>(from[i].origin + from[i].sum / static_cast<double>(from[i].count));
      origins[i] = mean - mean == 0 ? mean : from[i].origin;  // inf - inf would hide which infinity the mean is
    }
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
    for (int i = 0; i < lanes; ++i) {
      const double moved =
          to[i].count == 0 ? 0.0 : static_cast<double>(to[i].origin) - static_cast<double>(values[0][i]);
      const double earlier = static_cast<double>(to[i].count);
      to[i].sum_of_squares += moved * (2 * to[i].sum + moved * earlier) + values[2][i];
      to[i].sum += moved * earlier + values[1][i];
      to[i].origin = values[0][i];
      to[i].count += count;
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
