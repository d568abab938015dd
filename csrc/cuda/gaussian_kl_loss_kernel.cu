// SPDX-License-Identifier: MIT
// KL(N(mu, exp(logvar)) || N(0, I)) on CUDA.
//
// Plan: memory bound.  Each thread takes 16 bytes of mu and of logvar at a time in a grid-stride loop, and makes both
// gradients of what it has in registers.  Bytes moved, in elements of the input: 2 for a sum, 1 more for a loss that is
// not reduced, 2 more for the gradients (which are float32 for float16).
#include "cuda/gaussian_kl_loss_kernel.h"

#include "cuda/gaussian_kl.cuh"
#include "cuda/reduce.cuh"

namespace genimg_fast::cuda {
namespace {

// partial: [gridDim.x]
template <typename T, int N>
__global__ void gaussian_kl_kernel(GaussianKlOperands<T, SavedGradient<T>> operands, float* partial) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(float, scratch);  // [kThreads / 32]
  const float sum = block_sum(gaussian_kl_terms<N>(operands), scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

}  // namespace

int gaussian_kl_partials(int64_t numel) { return most_blocks(numel); }

void gaussian_kl(DType dtype, const GaussianKlOperands<void>& operands, float* partial, double scale, void* sum,
                 Stream stream) {
  const bool wide = is_aligned(operands.mu) && is_aligned(operands.logvar) && is_aligned(operands.loss) &&
                    is_aligned(operands.grad_mu) && is_aligned(operands.grad_logvar);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    using Grad = SavedGradient<T>;
    const GaussianKlOperands<T, Grad> typed{static_cast<const T*>(operands.mu),
                                            static_cast<const T*>(operands.logvar),
                                            static_cast<T*>(operands.loss),
                                            static_cast<Grad*>(operands.grad_mu),
                                            static_cast<Grad*>(operands.grad_logvar),
                                            operands.grad_scale,
                                            operands.numel};
    const auto kernel = wide ? gaussian_kl_kernel<T, kPack<T>> : gaussian_kl_kernel<T, 1>;
    constexpr size_t kSharedBytes = kThreads / 32 * sizeof(float);
    const int blocks = block_count(kernel, kSharedBytes, operands.numel / (wide ? kPack<T> : 1));
    launch(kernel, dim3(blocks), dim3(kThreads), kSharedBytes, stream, typed, partial);
    if (sum) sum_partials(partial, blocks, scale, sum, dtype, stream);
  });
}

}  // namespace genimg_fast::cuda
