// SPDX-License-Identifier: MIT
// Toom-Cook products of a polynomial with M coefficients (inputs) and one with two (taps); for files compiled through
// foreach_isa.h, hence no include guard.  Both are evaluated at M + 1 points, the values are multiplied point by point,
// and the M + 1 coefficients of the product are interpolated: M + 1 multiplications where plain sums need 2 M.
//
//     y[0] = x[0] h0,   y[i] = x[i] h0 + x[i-1] h1,   y[M] = x[M-1] h1
//
// M = 2 uses the points 0, -1, inf.  M = 4 uses 0, -1/2, 1, -2, inf, which on non-negative inputs, as a ReLU leaves
// them, err five times less than 0, 1, -1, 2, inf.  Each point may be scaled at will: the scales below make most
// coefficients of input() and output() a power of two or one, and leave the fractions to the weights, which are
// transformed once.
//
// V is any vector of T.

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T, int M>
struct ToomCook;

template <typename T>
struct ToomCook<T, 1> {
  template <typename V>
  static GF_INLINE void input(const V* x, V* v) {
    v[0] = v[1] = x[0];
  }
  template <typename V>
  static GF_INLINE void weight(const V& h0, const V& h1, V* u) {
    u[0] = h0;
    u[1] = h1;
  }
  template <typename V>
  static GF_INLINE void output(const V* p, V* y) {
    y[0] = p[0];
    y[1] = p[1];
  }
};

template <typename T>
struct ToomCook<T, 2> {
  template <typename V>
  static GF_INLINE void input(const V* x, V* v) {
    v[0] = x[0];
    v[1] = x[0] - x[1];
    v[2] = x[1];
  }
  template <typename V>
  static GF_INLINE void weight(const V& h0, const V& h1, V* u) {
    u[0] = h0;
    u[1] = h0 - h1;
    u[2] = h1;
  }
  template <typename V>
  static GF_INLINE void output(const V* p, V* y) {
    y[0] = p[0];
    y[1] = p[0] + p[2] - p[1];
    y[2] = p[2];
  }
};

template <typename T>
struct ToomCook<T, 4> {
  template <typename V>
  static GF_INLINE void input(const V* x, V* v) {
    v[0] = x[0];
    v[1] = T(8) * x[0] + (T(-4) * x[1] + (T(2) * x[2] - x[3]));
    v[2] = (x[0] + x[1]) + (x[2] + x[3]);
    v[3] = T(-2) * (T(-2) * (T(-2) * x[3] + x[2]) + x[1]) + x[0];
    v[4] = x[3];
  }
  template <typename V>
  static GF_INLINE void weight(const V& h0, const V& h1, V* u) {
    u[0] = h0;
    u[1] = (h0 - T(0.5) * h1) * T(-2.0 / 9);
    u[2] = (h0 + h1) * T(5.0 / 9);
    u[3] = (h0 - T(2) * h1) * T(-1.0 / 9);
    u[4] = h1;
  }
  template <typename V>
  static GF_INLINE void output(const V* p, V* y) {
    y[0] = p[0];
    y[1] = T(1.5) * p[0] + (T(0.4) * p[2] + (T(-0.5) * p[3] + (p[1] - p[4])));
    y[2] = T(-1.5) * (p[0] + p[4]) + (T(-0.5) * (p[1] + p[3]) + p[2]);
    y[3] = T(1.5) * p[4] + (T(0.4) * p[2] + (T(-0.5) * p[1] + (p[3] - p[0])));
    y[4] = p[4];
  }
};

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA
