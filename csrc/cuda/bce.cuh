// SPDX-License-Identifier: MIT
// Binary cross-entropy and its derivative: one term, for bce_loss, bce_with_logits_loss and elbo_loss, and the kernel
// of the first two.
//
// Plan: memory bound.  Each thread takes 16 bytes of input and of target at a time in a grid-stride loop, and makes the
// gradient of what it has in registers.  Bytes moved, in elements of the input: 2 for a sum; 1 more for each of: a loss
// that is not reduced, a weight, a pos_weight, the gradient (which is float32 for float16).  A target may be float32
// beside a half type, as autocast leaves images: to convert either would be two passes more, and one in backward.
#pragma once
#include "common/bce.h"
#include "cuda/elementwise.cuh"
#include "cuda/reduce.cuh"

namespace genimg_fast::cuda {

struct BceTerm {
  float loss, grad;
};

// Of a probability.  The logarithms stop at -100 and the derivative's divisor at 1e-12, as in torch.  A value outside
// [0, 1] makes the loss NaN, so no fmaxf here, which would drop it.
struct Bce {
  static constexpr bool kHasPosWeight = false;

  __device__ __forceinline__ static float at_least(float lowest, float v) { return v < lowest ? lowest : v; }

  __device__ __forceinline__ static BceTerm term(float input, float target) {
    const float log_input = at_least(-100.0f, logf(input)), log_rest = at_least(-100.0f, log1pf(-input));
    const float loss = (target - 1.0f) * log_rest - target * log_input;
    // The divisor is between 1e-12 and 1/4.
    const float grad = __fdividef(input - target, at_least(1e-12f, (1.0f - input) * input));
    return {target >= 0.0f && target <= 1.0f ? loss : NAN, grad};
  }
};

// log(1 + e) for e from 0 to 1 within 1.5 ulp, by a polynomial (minimax, of (e - log(1 + e)) / e^2): a third of the
// instructions of log1pf, which must also find the power of two.
__device__ __forceinline__ float log1p_of_unit(float e) {
  constexpr float kCoefficients[] = {-0.0053648185f, 0.0300657693f, -0.0792044997f, 0.137537986f,
                                     -0.191536531f,  0.248571634f,  -0.33321324f,   0.499996483f};
  float sum = kCoefficients[0];
  for (int i = 1; i < 8; ++i) sum = fmaf(sum, e, kCoefficients[i]);
  return fmaf(-e * e, sum, e);
}

// Of a logit.  One exp serves both the logarithm and the sigmoid of the derivative.  At 8 bytes an element, those of
// half types, a multiprocessor has 50 instructions for each in the time that memory takes.
//     loss = -(positive * log(s) + (1 - target) * log(1 - s)), s = sigmoid(input)
// What grows with the input is added up first: of a target of 0 or 1 it is exact, and the logarithm keeps its digits.
struct BceWithLogits {
  static constexpr bool kHasPosWeight = true;

  __device__ __forceinline__ static BceTerm term(float input, float target, float positive, float log_weight) {
    const float e = expf(-fabsf(input));
    const float sigmoid = __fdividef(input < 0.0f ? e : 1.0f, 1.0f + e);  // the divisor is between 1 and 2
    const float linear = (1.0f - target) * input - (input < 0.0f ? log_weight * input : 0.0f);
    const float logarithm = e > 0.0f || input > 0.0f ? log_weight * log1p_of_unit(e) : 0.0f;  // a weight may be inf
    return {linear + logarithm, log_weight * sigmoid - positive};
  }
  __device__ __forceinline__ static BceTerm term(float input, float target) {
    return term(input, target, target, 1.0f);
  }
  // pos_weight multiplies the part of the loss that the target pays.
  __device__ __forceinline__ static BceTerm term(float input, float target, float pos_weight) {
    return term(input, target, pos_weight * target, 1.0f + (pos_weight - 1.0f) * target);
  }
};

// partial: [gridDim.x]
template <typename Loss, typename T, int N>
__global__ void bce_kernel(BceOperands<T, SavedGradient<T>> operands, bool float32_target, float* partial) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(float, scratch);  // [kThreads / 32]
  const float grad_scale = static_cast<float>(operands.grad_scale);
  float sum = 0;
  for_each_pack<N>(operands.numel, [&](int64_t i, auto pack) {
    constexpr int kSize = decltype(pack)::size;
    const T one = from_float<T>(1.0f);
    const auto input = pack.load(operands.input + i);
    const auto target = load_floats<T>(pack, operands.target, i, float32_target);
    const auto weight = operands.weight ? pack.load(operands.weight + i) : pack.fill(one);
    const auto pos_weight = operands.pos_weight ? pack.load(operands.pos_weight + i) : pack.fill(one);
    Pack<T, kSize> loss;
    Pack<float, kSize> grad;
    for (int k = 0; k < kSize; ++k) {
      const float x = to_float(input.lane[k]), t = target.lane[k];
      BceTerm term = Loss::term(x, t);
      if constexpr (Loss::kHasPosWeight)
        if (operands.pos_weight) term = Loss::term(x, t, to_float(pos_weight.lane[k]));
      const float weighted = to_float(weight.lane[k]) * term.loss;
      sum += weighted;
      loss.lane[k] = from_float<T>(weighted);
      grad.lane[k] = grad_scale * to_float(weight.lane[k]) * term.grad;
    }
    if (operands.loss) pack.store(operands.loss + i, loss);
    if (operands.grad) pack.store(operands.grad + i, rounded_to<SavedGradient<T>>(grad));
  });
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// Runs the kernel; sum: one element, or null where the loss is not reduced.
template <typename Loss>
void bce(LossDTypes dtypes, const BceOperands<void>& operands, float* partial, double scale, void* sum, Stream stream) {
  const bool wide = is_aligned(operands.input) && is_aligned(operands.target) && is_aligned(operands.weight) &&
                    is_aligned(operands.pos_weight) && is_aligned(operands.loss) && is_aligned(operands.grad);
  dispatch(dtypes.input, [&](auto zero) {
    using T = decltype(zero);
    const BceOperands<T, SavedGradient<T>> typed{static_cast<const T*>(operands.input),
                                                 static_cast<const T*>(operands.target),
                                                 static_cast<const T*>(operands.weight),
                                                 static_cast<const T*>(operands.pos_weight),
                                                 static_cast<T*>(operands.loss),
                                                 static_cast<SavedGradient<T>*>(operands.grad),
                                                 operands.grad_scale,
                                                 operands.numel};
    const auto kernel = wide ? bce_kernel<Loss, T, kPack<T>> : bce_kernel<Loss, T, 1>;
    constexpr size_t kSharedBytes = kThreads / 32 * sizeof(float);
    const int blocks = block_count(kernel, kSharedBytes, operands.numel / (wide ? kPack<T> : 1));
    launch(kernel, dim3(blocks), dim3(kThreads), kSharedBytes, stream, typed, dtypes.target == DType::float32, partial);
    if (sum) sum_partials(partial, blocks, scale, sum, dtypes.loss, stream);
  });
}

}  // namespace genimg_fast::cuda
