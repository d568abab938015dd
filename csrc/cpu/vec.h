// SPDX-License-Identifier: MIT
// Vectors of float or double in one register, in the compiler's portable vector notation: + - * / < ?: work as on
// scalars, a comparison gives a lane mask, and a*b+c contracts to FMA where there is one.  Included once per
// instruction set by foreach_isa.h, hence no include guard.
//
// The float functions are polynomials fitted here at Chebyshev nodes.  Largest error against double over every 61st
// float of the normal range, on each instruction set, in ulp of the result: exp 1.1, log 0.8, log1p 1.9, tanh 1.4,
// sigmoid 2.3 (tests/test_vector_math.py).  The double ones call libm lane by lane: float64 serves gradient checks, not
// speed.

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

#define GF_INLINE inline __attribute__((always_inline))

template <typename T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(GENIMG_FAST_VECTOR_BYTES)));
  typedef int32_t mask __attribute__((vector_size(GENIMG_FAST_VECTOR_BYTES)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(GENIMG_FAST_VECTOR_BYTES)));
  typedef long long mask __attribute__((vector_size(GENIMG_FAST_VECTOR_BYTES)));
};
template <typename T>
using Vec = typename VecOf<T>::type;
template <typename T>
using Mask = typename VecOf<T>::mask;
template <typename T>
constexpr int kLanes = GENIMG_FAST_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <typename T>
GF_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};  // "- 0" and not "+ 0": keeps the sign of -0
}

// A loop over elements ends in a part of a vector.  Bodies take the count as a type, so the full case costs nothing.
struct Full {};
struct Tail {
  int count;
};
GF_INLINE int lanes_in(Full, int lanes) { return lanes; }
GF_INLINE int lanes_in(Tail tail, int) { return tail.count; }

// All bits set in the first lanes.
template <typename T>
GF_INLINE Mask<T> lanes_before(int count) {
  Mask<T> lane;
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
  return lane < count;
}

template <typename T>
GF_INLINE Vec<T> load(const T* p, Full = {}) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
// Lanes beyond the tail are 0.  Lane by lane it would take as long as tens of full vectors.
template <typename T>
GF_INLINE Vec<T> load(const T* p, Tail tail) {
#if GENIMG_FAST_X86_BODIES && GENIMG_FAST_VECTOR_BYTES == 64
  const int mask = (1 << tail.count) - 1;
  if constexpr (sizeof(T) == 4) return __builtin_ia32_loadups512_mask(p, Vec<T>{}, mask);
  if constexpr (sizeof(T) == 8) return __builtin_ia32_loadupd512_mask(p, Vec<T>{}, mask);
#elif GENIMG_FAST_X86_BODIES && GENIMG_FAST_VECTOR_BYTES == 32
  const auto v = reinterpret_cast<const Vec<T>*>(p);
  if constexpr (sizeof(T) == 4) return __builtin_ia32_maskloadps256(v, lanes_before<T>(tail.count));
  if constexpr (sizeof(T) == 8) return __builtin_ia32_maskloadpd256(v, lanes_before<T>(tail.count));
#else
  Vec<T> v{};
  for (int i = 0; i < tail.count; ++i) v[i] = p[i];
  return v;
#endif
}
template <typename T>
GF_INLINE void store(T* p, Vec<T> v, Full = {}) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <typename T>
GF_INLINE void store(T* p, Vec<T> v, Tail tail) {
#if GENIMG_FAST_X86_BODIES && GENIMG_FAST_VECTOR_BYTES == 64
  const int mask = (1 << tail.count) - 1;
  if constexpr (sizeof(T) == 4) __builtin_ia32_storeups512_mask(p, v, mask);
  if constexpr (sizeof(T) == 8) __builtin_ia32_storeupd512_mask(p, v, mask);
#elif GENIMG_FAST_X86_BODIES && GENIMG_FAST_VECTOR_BYTES == 32
  const auto to = reinterpret_cast<Vec<T>*>(p);
  if constexpr (sizeof(T) == 4) __builtin_ia32_maskstoreps256(to, lanes_before<T>(tail.count), v);
  if constexpr (sizeof(T) == 8) __builtin_ia32_maskstorepd256(to, lanes_before<T>(tail.count), v);
#else
  for (int i = 0; i < tail.count; ++i) p[i] = v[i];
#endif
}
// Stores past the caches, for what is too large for them: half the traffic, since nothing is read first.  `p` is
// aligned to the vector.  stream_fence() before anyone else reads it.
template <typename T>
GF_INLINE void stream(T* p, Vec<T> v) {
#if GENIMG_FAST_X86_BODIES && defined(__clang__)
  __builtin_nontemporal_store(v, reinterpret_cast<Vec<T>*>(p));
#elif GENIMG_FAST_X86_BODIES && GENIMG_FAST_VECTOR_BYTES == 64
  __builtin_ia32_movntps512(reinterpret_cast<float*>(p), reinterpret_cast<Vec<float>>(v));
#elif GENIMG_FAST_X86_BODIES && GENIMG_FAST_VECTOR_BYTES == 32
  __builtin_ia32_movntps256(reinterpret_cast<float*>(p), reinterpret_cast<Vec<float>>(v));
#else
  store(p, v);
#endif
}
GF_INLINE void stream_fence() {
#if GENIMG_FAST_X86_BODIES
  __builtin_ia32_sfence();
#endif
}

// Of the values of a and then of b, those whose numbers are Order::of<T>(lane).
template <typename T, typename Order, int... lane>
GF_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, std::integer_sequence<int, lane...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, Order::template of<T>(lane)...);
#else
  return __builtin_shuffle(a, b, Mask<T>{Order::template of<T>(lane)...});
#endif
}
template <typename T, typename Order>
GF_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b) {
  return shuffle<T, Order>(a, b, std::make_integer_sequence<int, kLanes<T>>{});
}

struct InterleaveLow {  // a0 b0 a1 b1 ... of the lower half of the lanes
  template <typename T>
  static constexpr int of(int lane) {
    return lane / 2 + lane % 2 * kLanes<T>;
  }
};
struct InterleaveHigh {  // and of the upper half
  template <typename T>
  static constexpr int of(int lane) {
    return InterleaveLow::of<T>(lane) + kLanes<T> / 2;
  }
};

// v[i][j] -> v[j][i]
template <typename T>
GF_INLINE void transpose(Vec<T>* v) {
  constexpr int n = kLanes<T>;
#pragma GCC unroll 4
  for (int step = 1; step < n; step *= 2) {  // a perfect shuffle of all values, log2(n) times
    Vec<T> next[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = shuffle<T, InterleaveLow>(v[i], v[i + n / 2]);
      next[2 * i + 1] = shuffle<T, InterleaveHigh>(v[i], v[i + n / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) v[i] = next[i];
  }
}

// Zero in the lanes that lie past the end: what a sum may add.
template <typename T>
GF_INLINE Vec<T> keep(Vec<T> v, Full) {
  return v;
}
template <typename T>
GF_INLINE Vec<T> keep(Vec<T> v, Tail tail) {
  return lanes_before<T>(tail.count) ? v : Vec<T>{};
}

// body(offset, Full{}) for whole vectors, then body(offset, Tail{n}) for what is left.
template <typename T, typename Body>
GF_INLINE void for_each_vector(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + kLanes<T> <= end; i += kLanes<T>) body(i, Full{});
  if (i < end) body(i, Tail{static_cast<int>(end - i)});
}

template <typename T>
GF_INLINE double sum(Vec<T> v) {
  double total = 0;
  for (int i = 0; i < kLanes<T>; ++i) total += v[i];
  return total;
}

// The sum of the terms for which loop(first, last, add) calls add(term, count), over a range.  Lanes add up 32 terms in
// T, then fold into a double: the error stays below one rounding of the result however long the range is.
template <typename T, typename Loop>
GF_INLINE double sum_over_loop(int64_t begin, int64_t end, const Loop& loop) {
  const int64_t block = 32 * kLanes<T>;
  double total = 0;
  for (int64_t first = begin; first < end; first += block) {
    Vec<T> lanes{};
    loop(first, first + block < end ? first + block : end,
         [&](Vec<T> term, auto count) { lanes += keep<T>(term, count); });
    total += sum<T>(lanes);
  }
  return total;
}

// The sum of term(offset, count) over a range.
template <typename T, typename Term>
GF_INLINE double sum_over(int64_t begin, int64_t end, const Term& term) {
  return sum_over_loop<T>(begin, end, [&](int64_t first, int64_t last, const auto& add) {
    for_each_vector<T>(first, last, [&](int64_t i, auto count) { add(term(i, count), count); });
  });
}

// NaN in the first operand travels: NaN compares false with everything.
template <typename T>
GF_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
  return a < b ? b : a;
}
template <typename T>
GF_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {
  return a > b ? b : a;
}
template <typename T>
GF_INLINE Vec<T> abs(Vec<T> v) {
  return v < 0 ? -v : v;
}

#define GF_BY_LANE(name, std_name)                                  \
  GF_INLINE Vec<double> name(Vec<double> x) {                       \
    for (int i = 0; i < kLanes<double>; ++i) x[i] = std_name(x[i]); \
    return x;                                                       \
  }
GF_BY_LANE(exp, ::exp)
GF_BY_LANE(log, ::log)
GF_BY_LANE(log1p, ::log1p)
GF_BY_LANE(tanh, ::tanh)
#undef GF_BY_LANE

// For arithmetic on the bits of any float, of a NaN too, that must not overflow.
typedef uint32_t Bits __attribute__((vector_size(GENIMG_FAST_VECTOR_BYTES)));

// exp(x) = 2^n exp(r), |r| <= ln(2)/2.  2^n is applied as 2^(n + up) and 2^-up, so that denormals and infinity come out
// right.
GF_INLINE Vec<float> exp_of_clamped(Vec<float> x, Mask<float> up, Vec<float> down) {
  const Vec<float> round_to_int = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves no fraction bits
  const Vec<float> shifted = x * 1.44269504f + round_to_int;
  const Vec<float> n = shifted - round_to_int;
  Vec<float> r = x - n * 0.693359375f;  // ln(2) in two parts, the first exact in a product with n
  r = r + n * 2.12194440e-4f;
  Vec<float> p = broadcast(0.001392617612f);
  p = p * r + 0.008363173075f;
  p = p * r + 0.04166655466f;
  p = p * r + 0.1666657703f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  Bits bits;  // of `shifted`: its low bits are n, and its high ones leave with the shift
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  const Bits exponent = (bits + reinterpret_cast<Bits>(up + 127)) << 23;
  Vec<float> scale;
  __builtin_memcpy(&scale, &exponent, sizeof scale);
  return p * scale * down;  // a NaN travels in p
}
GF_INLINE Vec<float> exp(Vec<float> x) {
  x = x > 89.0f ? broadcast(89.0f) : x;
  x = x < -104.0f ? broadcast(-104.0f) : x;
  const Mask<float> negative = x < 0;
  return exp_of_clamped(x, (negative & 25) - 1, negative ? broadcast(0x1p-24f) : broadcast(0x1p+1f));
}
// exp(x) for x <= 0.
GF_INLINE Vec<float> exp_of_negative(Vec<float> x) {
  x = x < -104.0f ? broadcast(-104.0f) : x;
  return exp_of_clamped(x, Mask<float>{} + 24, broadcast(0x1p-24f));
}
GF_INLINE Vec<double> exp_of_negative(Vec<double> x) { return exp(x); }

// log(2^more_exponent x) = e ln(2) + log(m), m in [sqrt(1/2), sqrt(2)); x positive, finite and not denormal.
GF_INLINE Vec<float> log_of_scaled(Vec<float> x, Vec<float> more_exponent) {
  Bits bits;
  __builtin_memcpy(&bits, &x, sizeof x);
  // Subtracting the bits of sqrt(1/2) first makes the exponent field round at sqrt(1/2) instead of at 1.
  const uint32_t sqrt_half = 0x3f3504f3;
  const Mask<float> exponent = reinterpret_cast<Mask<float>>(bits - sqrt_half) >> 23;
  const Bits mantissa_bits = bits - (reinterpret_cast<Bits>(exponent) << 23);
  Vec<float> m;
  __builtin_memcpy(&m, &mantissa_bits, sizeof m);
  const Vec<float> e = __builtin_convertvector(exponent, Vec<float>) + more_exponent;
  const Vec<float> f = m - 1.0f;
  Vec<float> p = broadcast(0.06971611471f);
  p = p * f - 0.1147973385f;
  p = p * f + 0.1168541992f;
  p = p * f - 0.1242568733f;
  p = p * f + 0.1424905765f;
  p = p * f - 0.1666780232f;
  p = p * f + 0.2000071575f;
  p = p * f - 0.2499999696f;
  p = p * f + 0.3333333118f;
  const Vec<float> f2 = f * f;
  Vec<float> y = p * (f2 * f);
  y = y - e * 2.12194440e-4f;
  y = y - 0.5f * f2;
  y = f + y;
  return y + e * 0.693359375f;
}
GF_INLINE Vec<float> log_of_normal(Vec<float> x) { return log_of_scaled(x, Vec<float>{}); }

// log(1 + x) for 0 <= x <= 1, which is all that softplus needs: x times a polynomial around 1/2.
GF_INLINE Vec<float> log1p(Vec<float> x) {
  const Vec<float> f = x - 0.5f;
  Vec<float> p = broadcast(-0.003176057013f);
  p = p * f + 0.005250270478f;
  p = p * f - 0.006788016763f;
  p = p * f + 0.01157768536f;
  p = p * f - 0.02056318335f;
  p = p * f + 0.03663523495f;
  p = p * f - 0.06768818945f;
  p = p * f + 0.1326090097f;
  p = p * f - 0.2885271013f;
  p = p * f + 0.8109301925f;
  return p * x;
}

GF_INLINE Vec<float> tanh(Vec<float> x) {
  const Vec<float> magnitude = abs<float>(x);
  const Vec<float> u = x * x;
  Vec<float> p = broadcast(-0.006096714166f);
  p = p * u + 0.020997179f;
  p = p * u - 0.05385090958f;
  p = p * u + 0.1333276974f;
  p = p * u - 0.3333332894f;
  const Vec<float> small = x + x * (u * p);
  Vec<float> large = 1.0f - 2.0f / (exp(magnitude + magnitude) + 1.0f);
  large = x < 0 ? -large : large;
  return magnitude < 0.625f ? small : large;
}

// 1 / (1 + exp(-x)), from exp(-|x|) so that it keeps its relative precision for large negative x.
template <typename T>
GF_INLINE Vec<T> sigmoid(Vec<T> x) {
  const Vec<T> e = exp_of_negative(-abs<T>(x));
  return (x < 0 ? e : broadcast(T(1))) / (e + T(1));
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA
