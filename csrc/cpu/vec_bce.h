// SPDX-License-Identifier: MIT
// One term of binary cross-entropy and its derivative, on vectors; for files compiled through foreach_isa.h, hence no
// include guard.

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
struct BceTerm {
  Vec<T> loss, grad;
};

// log(x) and log(1 - x) for x in [0, 1], stopped at -100 as in torch.
GF_INLINE Vec<float> log_of_probability(Vec<float> x) {
  x = x > 0 ? x : Vec<float>{};  // and -0 becomes 0
  const Mask<float> denormal = x < 0x1p-126f;
  const Vec<float> y = log_of_scaled(denormal ? x * 0x1p+24f : x, denormal ? broadcast(-24.0f) : Vec<float>{});
  return max<float>(y, broadcast(-100.0f));  // of 0: about -105 up to here
}
// As log(u) and a correction for what 1 - x rounded away.  From x = 1/2 on the subtraction is exact.
GF_INLINE Vec<float> log_of_rest(Vec<float> x) {
  const Vec<float> u = 1.0f - x, rounded_away = x - (1.0f - u);
  const Vec<float> y = log_of_normal(u) - (rounded_away * x + rounded_away);  // 1 + x for 1 / u, as x is small there
  return u > 0 ? y : broadcast(-100.0f);
}
GF_INLINE Vec<double> log_of_probability(Vec<double> x) { return max<double>(log(x), broadcast(-100.0)); }
GF_INLINE Vec<double> log_of_rest(Vec<double> x) { return max<double>(log1p(-x), broadcast(-100.0)); }

// Of a probability.  The derivative's divisor stops at 1e-12, as in torch.
template <typename T>
GF_INLINE BceTerm<T> bce_term(Vec<T> input, Vec<T> target) {
  const Vec<T> divisor = max<T>((T(1) - input) * input, broadcast(T(1e-12)));
  return {(target - T(1)) * log_of_rest(input) - target * log_of_probability(input), (input - target) / divisor};
}

// Of a logit.  One exp serves both the logarithm and the sigmoid of the derivative.
//     loss = -(positive * log(s) + (1 - target) * log(1 - s)), s = sigmoid(input)
// What grows with the input is added up first: of a target of 0 or 1 it is exact, and the logarithm keeps its digits.
template <typename T>
GF_INLINE BceTerm<T> bce_with_logits_term(Vec<T> input, Vec<T> target, Vec<T> positive, Vec<T> log_weight) {
  const Vec<T> e = exp_of_negative(-abs<T>(input));
  const Vec<T> sigmoid = (input < 0 ? e : broadcast(T(1))) / (T(1) + e);
  const Vec<T> linear = (T(1) - target) * input - (input < 0 ? log_weight * input : Vec<T>{});
  const Vec<T> logarithm = ((e > 0) | (input > 0)) ? log_weight * log1p(e) : Vec<T>{};  // a weight may be inf
  return {linear + logarithm, log_weight * sigmoid - positive};
}
template <typename T>
GF_INLINE BceTerm<T> bce_with_logits_term(Vec<T> input, Vec<T> target) {
  return bce_with_logits_term<T>(input, target, target, broadcast(T(1)));
}
// pos_weight multiplies the part of the loss that the target pays.
template <typename T>
GF_INLINE BceTerm<T> bce_with_logits_term(Vec<T> input, Vec<T> target, Vec<T> pos_weight) {
  return bce_with_logits_term<T>(input, target, pos_weight * target, T(1) + (pos_weight - T(1)) * target);
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA
