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
// The three maps are linear, and so are their transposes.  With these the same points serve the gradients of a product,
// and whatever has the form of one: a correlation x[i] = y[i] h0 + y[i+1] h1 (Conv2d, and the gradient of a product
// with respect to its inputs) is input_transposed(output_transposed(y) * weight(h)).
//
// Three taps, M + 2 points, correlations and their gradients alone: x[i] = y[i] h0 + y[i+1] h1 + y[i+2] h2.  M = 2 uses
// 0, 1, -1, inf.  M = 4 uses 0, 2/3, -2/3, 3/2, -3/2, inf, which err half as much as 0, 1, -1, 2, -2, inf: the least of
// all sets of four small fractions tried, and with the scales below every coefficient but the weights' is exact in
// binary.
//
// Four taps, M = 2, correlations and their gradients alone: two taps and M = 4 with the two polynomials exchanged.
//
// The gradient of the weight is the same algorithm read backwards: with g the gradient of y, that of h is
// weight_transposed(input(x) * output_transposed(g)), summed over all tiles before weight_transposed.
//
// V is any vector of T.

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T, int M, int Taps = 2>
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
  template <typename V>
  static GF_INLINE void input_transposed(const V* v, V* x) {
    x[0] = v[0] + v[1];
    x[1] = v[2] - v[1];
  }
  template <typename V>
  static GF_INLINE void output_transposed(const V* y, V* p) {
    p[0] = y[0] + y[1];
    p[1] = -y[1];
    p[2] = y[1] + y[2];
  }
  template <typename V>
  static GF_INLINE void weight_transposed(const V* u, V* h) {
    h[0] = u[0] + u[1];
    h[1] = u[2] - u[1];
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
  template <typename V>
  static GF_INLINE void input_transposed(const V* v, V* x) {
    x[0] = (v[0] + v[2]) + (T(8) * v[1] + v[3]);
    x[1] = v[2] - T(2) * (T(2) * v[1] + v[3]);
    x[2] = v[2] + T(2) * (v[1] + T(2) * v[3]);
    x[3] = (v[4] + v[2]) - (v[1] + T(8) * v[3]);
  }
  template <typename V>
  static GF_INLINE void output_transposed(const V* y, V* p) {
    p[0] = (y[0] - y[3]) + T(1.5) * (y[1] - y[2]);
    p[1] = y[1] - T(0.5) * (y[2] + y[3]);
    p[2] = T(0.4) * (y[1] + y[3]) + y[2];
    p[3] = y[3] - T(0.5) * (y[1] + y[2]);
    p[4] = (y[4] - y[1]) + T(1.5) * (y[3] - y[2]);
  }
  template <typename V>
  static GF_INLINE void weight_transposed(const V* u, V* h) {
    h[0] = u[0] + T(1.0 / 9) * (T(5) * u[2] - (T(2) * u[1] + u[3]));
    h[1] = u[4] + T(1.0 / 9) * (T(5) * u[2] + (T(2) * u[3] + u[1]));
  }
};

template <typename T>
struct ToomCook<T, 2, 3> {
  template <typename V>
  static GF_INLINE void input(const V* x, V* v) {
    v[0] = x[0];
    v[1] = x[0] + x[1];
    v[2] = x[0] - x[1];
    v[3] = x[1];
  }
  template <typename V>
  static GF_INLINE void weight(const V& h0, const V& h1, const V& h2, V* u) {
    u[0] = h0;
    u[1] = T(0.5) * (h0 + h1 + h2);
    u[2] = T(0.5) * (h0 - h1 + h2);
    u[3] = h2;
  }
  template <typename V>
  static GF_INLINE void input_transposed(const V* v, V* x) {
    x[0] = v[0] + (v[1] + v[2]);
    x[1] = v[3] + (v[1] - v[2]);
  }
  template <typename V>
  static GF_INLINE void output_transposed(const V* y, V* p) {
    p[0] = y[0] - y[2];
    p[1] = y[2] + y[1];
    p[2] = y[2] - y[1];
    p[3] = y[3] - y[1];
  }
  template <typename V>
  static GF_INLINE void weight_transposed(const V* u, V* h) {
    h[1] = T(0.5) * (u[1] - u[2]);
    const V even = T(0.5) * (u[1] + u[2]);
    h[0] = u[0] + even;
    h[2] = u[3] + even;
  }
};

// In powers of b = 3/2; the points are 0, 1/b, -1/b, b, -b, inf.
template <typename T>
struct ToomCook<T, 4, 3> {
  template <typename V>
  static GF_INLINE void input(const V* x, V* v) {
    const V even = T(3.375) * x[0] + T(1.5) * x[2], odd = T(2.25) * x[1] + x[3];
    const V even_b = x[0] + T(2.25) * x[2], odd_b = T(1.5) * x[1] + T(3.375) * x[3];
    v[0] = x[0];
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = x[3];
  }
  template <typename V>
  static GF_INLINE void weight(const V& h0, const V& h1, const V& h2, V* u) {
    const V even = h0 + T(4.0 / 9) * h2, odd = T(2.0 / 3) * h1;
    const V even_b = h0 + T(2.25) * h2, odd_b = T(1.5) * h1;
    u[0] = T(4.0 / 9) * h0;
    u[1] = T(-1 / 8.125) * (even + odd);
    u[2] = T(-1 / 8.125) * (even - odd);
    u[3] = T(1 / 18.28125) * (even_b + odd_b);
    u[4] = T(1 / 18.28125) * (even_b - odd_b);
    u[5] = T(4.0 / 9) * h2;
  }
  template <typename V>
  static GF_INLINE void input_transposed(const V* v, V* x) {
    const V sum = v[1] + v[2], difference = v[1] - v[2], sum_b = v[3] + v[4], difference_b = v[3] - v[4];
    x[0] = v[0] + (T(3.375) * sum + sum_b);
    x[1] = T(2.25) * difference + T(1.5) * difference_b;
    x[2] = T(1.5) * sum + T(2.25) * sum_b;
    x[3] = v[5] + (difference + T(3.375) * difference_b);
  }
  template <typename V>
  static GF_INLINE void output_transposed(const V* y, V* p) {
    const V even = T(1.5) * y[4] - T(3.375) * y[2], odd = y[3] - T(2.25) * y[1];
    const V even_b = T(2.25) * y[4] - y[2], odd_b = T(3.375) * y[3] - T(1.5) * y[1];
    p[0] = T(2.25) * (y[0] + y[4]) - T(6.0625) * y[2];
    p[1] = even + odd;
    p[2] = even - odd;
    p[3] = even_b + odd_b;
    p[4] = even_b - odd_b;
    p[5] = T(2.25) * (y[1] + y[5]) - T(6.0625) * y[3];
  }
  template <typename V>
  static GF_INLINE void weight_transposed(const V* u, V* h) {
    const V even = T(-1 / 8.125) * (u[1] + u[2]), odd = T(-1 / 8.125) * (u[1] - u[2]);
    const V even_b = T(1 / 18.28125) * (u[3] + u[4]), odd_b = T(1 / 18.28125) * (u[3] - u[4]);
    h[0] = T(4.0 / 9) * u[0] + (even + even_b);
    h[1] = T(2.0 / 3) * odd + T(1.5) * odd_b;
    h[2] = T(4.0 / 9) * (u[5] + even) + T(2.25) * even_b;
  }
};

template <typename T>
struct ToomCook<T, 2, 4> {
  template <typename V>
  static GF_INLINE void input(const V* x, V* v) {
    ToomCook<T, 4>::weight(x[0], x[1], v);
  }
  template <typename V>
  static GF_INLINE void weight(const V& h0, const V& h1, const V& h2, const V& h3, V* u) {
    const V h[4] = {h0, h1, h2, h3};
    ToomCook<T, 4>::input(h, u);
  }
  template <typename V>
  static GF_INLINE void input_transposed(const V* v, V* x) {
    ToomCook<T, 4>::weight_transposed(v, x);
  }
  template <typename V>
  static GF_INLINE void output_transposed(const V* y, V* p) {
    ToomCook<T, 4>::output_transposed(y, p);
  }
  template <typename V>
  static GF_INLINE void weight_transposed(const V* u, V* h) {
    ToomCook<T, 4>::input_transposed(u, h);
  }
};

template <int Kernel, int Stride>
constexpr int ToomCookTaps = (Kernel + Stride - 1) / Stride;  // of a phase, as ConvolutionAxis::phase_taps()

// body(MTag, KernelTag, StrideTag) for the tile and the kernel at hand, which must be one that these products serve.
template <int N>
struct Number {
  static constexpr int value = N;
};
template <typename Body>
GF_INLINE void with_tile(int64_t m, int64_t kernel, int64_t stride, const Body& body) {
  auto with_edge = [&](auto kernel_tag, auto stride_tag) {
    m == 2 ? body(Number<2>{}, kernel_tag, stride_tag) : body(Number<4>{}, kernel_tag, stride_tag);
  };
  if (stride == 2 && kernel == 3)
    with_edge(Number<3>{}, Number<2>{});
  else if (stride == 2 && kernel == 4)
    with_edge(Number<4>{}, Number<2>{});
  else if (stride == 2)
    with_edge(Number<5>{}, Number<2>{});
  else if (kernel == 3)
    with_edge(Number<3>{}, Number<1>{});
  else
    body(Number<2>{}, Number<4>{}, Number<1>{});
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA
