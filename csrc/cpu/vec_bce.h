// SPDX-License-Identifier: MIT
// One term of binary cross-entropy and its derivative, on vectors; for files compiled through foreach_isa.h, hence no
// include guard.

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
struct BceTerm {
  Vec<T> loss, grad;
};

// log(1 - x) for x <= 1, as log(u) and a correction for what 1 - x rounded away.  From x = 1/2 on the subtraction is
// exact and the correction 0, so its divisor may stop at 1/2: that spares x = 1 a 0/0.
GF_INLINE Vec<float> log1m(Vec<float> x) {
  const Vec<float> u = 1.0f - x;
  return log(u) - (x - (1.0f - u)) / max<float>(u, broadcast(0.5f));
}
GF_INLINE Vec<double> log1m(Vec<double> x) { return log1p(-x); }

// Of a probability.  The logarithms stop at -100 and the derivative's divisor at 1e-12, as in torch.
template <typename T>
GF_INLINE BceTerm<T> bce_term(Vec<T> input, Vec<T> target) {
  const Vec<T> lowest = broadcast(T(-100));
  const Vec<T> log_input = max<T>(log(input), lowest), log_rest = max<T>(log1m(input), lowest);
  const Vec<T> divisor = max<T>((T(1) - input) * input, broadcast(T(1e-12)));
  return {(target - T(1)) * log_rest - target * log_input, (input - target) / divisor};
}

// Of a logit.  One exp serves both the logarithm and the sigmoid of the derivative.
//     loss = -(positive * log(s) + (1 - target) * log(1 - s)), s = sigmoid(input)
template <typename T>
GF_INLINE BceTerm<T> bce_with_logits_term(Vec<T> input, Vec<T> target, Vec<T> positive, Vec<T> log_weight) {
  const Vec<T> e = exp(-abs<T>(input));
  const Vec<T> sigmoid = (input < 0 ? e : broadcast(T(1))) / (T(1) + e);
  const Vec<T> log_sigmoid = min<T>(input, Vec<T>{}) - log1p(e);
  return {(T(1) - target) * input - log_weight * log_sigmoid, log_weight * sigmoid - positive};
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
