// SPDX-License-Identifier: MIT
// For files compiled through foreach_isa.h, hence no include guard.

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// from [taps][channels] -> to [channels][taps], the order of a weight
template <typename T>
void transpose_taps(const T* from, int64_t taps, int64_t channels, T* to) {
  int64_t c = 0;
  for (; c + kLanes<T> <= channels; c += kLanes<T>)
    for (int64_t tap = 0; tap < taps; tap += kLanes<T>) {
      const int64_t left = taps - tap < kLanes<T> ? taps - tap : kLanes<T>;
      Vec<T> v[kLanes<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) v[i] = i < left ? load(from + (tap + i) * channels + c) : Vec<T>{};
      transpose<T>(v);
      if (left == kLanes<T>)
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<T>; ++i) store(to + (c + i) * taps + tap, v[i]);
      else
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<T>; ++i) store(to + (c + i) * taps + tap, v[i], Tail{static_cast<int>(left)});
    }
  for (; c < channels; ++c)
    for (int64_t tap = 0; tap < taps; ++tap) to[c * taps + tap] = from[tap * channels + c];
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA
