// SPDX-License-Identifier: MIT
// The negative evidence lower bound on CUDA: total = reconstruction + beta * kl.
//
// Plan: memory bound, and for small batches bound by launches, so both terms and all three gradients are made by one
// kernel (grid-stride over the images, then over the latents) and a second of one block adds the partial sums.  Bytes
// moved, in elements: images 2 reads, latents 2 reads, and a write for each gradient (float32 for float16); in backward
// none where the upstream gradient is 1 (scale_gradient_kernel.cu).  Under autocast images in float32 beside logits in
// bfloat16 come to 8 bytes an element; to convert them on the way in and their gradient on the way out made it 24.  Of
// logits a warp takes 37 instructions an element, 45 % of what it could in the time of 12 bytes (float32), 70 % of 8
// (float16, and bfloat16 under autocast), 91 % of 6 (bfloat16).
#include "cuda/elbo_loss_kernel.h"

#include "cuda/bce.cuh"
#include "cuda/gaussian_kl.cuh"

namespace genimg_fast::cuda {
namespace {

struct SquaredError {
  __device__ __forceinline__ static BceTerm term(float recon, float target) {
    const float difference = recon - target;
    return {difference * difference, 2.0f * difference};
  }
};

// partial: [2][gridDim.x], the reconstruction's and then the divergence's.
template <typename Loss, typename T, int N>
__global__ void elbo_kernel(ElboOperands<T, SavedGradient<T>> operands, bool float32_target, float* partial) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(float, scratch);  // [kThreads / 32]
  const float recon_scale = static_cast<float>(operands.recon_scale);
  float reconstruction = 0;
  for_each_pack<N>(operands.image_numel, [&](int64_t i, auto pack) {
    const auto recon = pack.load(operands.recon + i);
    const auto target = load_floats<T>(pack, operands.target, i, float32_target);
    Pack<float, decltype(pack)::size> grad;
    for (int k = 0; k < pack.size; ++k) {
      const BceTerm term = Loss::term(to_float(recon.lane[k]), target.lane[k]);
      reconstruction += term.loss;
      grad.lane[k] = recon_scale * term.grad;
    }
    if (operands.grad_recon) pack.store(operands.grad_recon + i, rounded_to<SavedGradient<T>>(grad));
  });
  const GaussianKlOperands<T, SavedGradient<T>> latents{operands.mu,          operands.logvar,      nullptr,
                                                        operands.grad_mu,     operands.grad_logvar, operands.kl_scale,
                                                        operands.latent_numel};
  const float divergence = gaussian_kl_terms<N>(latents);
  reconstruction = block_sum(reconstruction, scratch);
  const float kl = block_sum(divergence, scratch);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = reconstruction;
    partial[gridDim.x + blockIdx.x] = kl;
  }
}

template <typename T>
__global__ void elbo_total_kernel(ElboOperands<void> operands, const float* partial, int count) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(double, lane_sum);  // [kThreads]
  const double reconstruction = operands.recon_scale * block_sum_partials(partial, count, lane_sum);
  const double kl = operands.kl_scale * block_sum_partials(partial + count, count, lane_sum);
  if (threadIdx.x != 0) return;
  const auto write = [](void* to, double value) { *static_cast<T*>(to) = from_float<T>(static_cast<float>(value)); };
  write(operands.total, reconstruction + operands.beta * kl);
  write(operands.reconstruction, reconstruction);
  write(operands.kl, kl);
}

template <typename T, int N>
auto select_kernel(Reconstruction reconstruction) {
  switch (reconstruction) {
    case Reconstruction::bce:
      return elbo_kernel<Bce, T, N>;
    case Reconstruction::mse:
      return elbo_kernel<SquaredError, T, N>;
    default:
      return elbo_kernel<BceWithLogits, T, N>;
  }
}

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace

int elbo_partials(int64_t image_numel, int64_t latent_numel) {
  return 2 * most_blocks(larger(image_numel, latent_numel));
}

void elbo_loss(LossDTypes dtypes, Reconstruction reconstruction, const ElboOperands<void>& operands, float* partial,
               Stream stream) {
  const bool wide = is_aligned(operands.recon) && is_aligned(operands.target) && is_aligned(operands.mu) &&
                    is_aligned(operands.logvar) && is_aligned(operands.grad_recon) && is_aligned(operands.grad_mu) &&
                    is_aligned(operands.grad_logvar);
  int blocks = 0;
  dispatch(dtypes.input, [&](auto zero) {
    using T = decltype(zero);
    using Grad = SavedGradient<T>;
    const ElboOperands<T, Grad> typed{static_cast<const T*>(operands.recon),
                                      operands.target,
                                      static_cast<const T*>(operands.mu),
                                      static_cast<const T*>(operands.logvar),
                                      operands.total,
                                      operands.reconstruction,
                                      operands.kl,
                                      static_cast<Grad*>(operands.grad_recon),
                                      static_cast<Grad*>(operands.grad_mu),
                                      static_cast<Grad*>(operands.grad_logvar),
                                      operands.recon_scale,
                                      operands.kl_scale,
                                      operands.beta,
                                      operands.image_numel,
                                      operands.latent_numel};
    const auto kernel = wide ? select_kernel<T, kPack<T>>(reconstruction) : select_kernel<T, 1>(reconstruction);
    constexpr size_t kSharedBytes = kThreads / 32 * sizeof(float);
    const int64_t items = larger(operands.image_numel, operands.latent_numel) / (wide ? kPack<T> : 1);
    blocks = block_count(kernel, kSharedBytes, items);
    launch(kernel, dim3(blocks), dim3(kThreads), kSharedBytes, stream, typed, dtypes.target == DType::float32, partial);
  });
  dispatch(dtypes.loss, [&](auto zero) {
    launch(elbo_total_kernel<decltype(zero)>, dim3(1), dim3(kThreads), kThreads * sizeof(double), stream, operands,
           static_cast<const float*>(partial), blocks);
  });
}

}  // namespace genimg_fast::cuda
