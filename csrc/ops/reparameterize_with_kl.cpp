// SPDX-License-Identifier: MIT
// Schema and CPU registration of reparameterize_with_kl.
#include "ops/reparameterize_with_kl.h"

#include "cpu/reparameterize_with_kl_kernel.h"

namespace genimg_fast {
namespace {

std::tuple<Tensor, Tensor> forward(Tensor mu, Tensor logvar, Tensor seed, int64_t reduction) {
  const ReparameterizeWithKlForward call(mu, logvar, seed, reduction);
  dispatch_float_double(call.mu, [&](auto zero) {
    using T = decltype(zero);
    const double sum = cpu::reparameterize_with_kl(call.operands<T>(), seed_value(seed));
    if (call.is_reduced) *mutable_data<T>(call.kl) = static_cast<T>(sum * call.scale);
  });
  return call.outputs(mu);
}

std::tuple<Tensor, Tensor> backward(OptionalTensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, Tensor seed,
                                    int64_t reduction) {
  const ReparameterizeWithKlBackward call(grad_z, grad_kl, mu, logvar, seed, reduction);
  dispatch_float_double(call.mu, [&](auto zero) {
    using T = decltype(zero);
    cpu::reparameterize_with_kl_backward(call.operands<T>(), seed_value(seed));
  });
  return call.outputs(mu, logvar);
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def("reparameterize_with_kl(Tensor mu, Tensor logvar, Tensor seed, int reduction) -> (Tensor z, Tensor kl)");
  library.def(
      "reparameterize_with_kl_backward(Tensor? grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, Tensor seed, int "
      "reduction) -> (Tensor grad_mu, Tensor grad_logvar)");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) {
  library.impl("reparameterize_with_kl", TORCH_BOX(&genimg_fast::forward));
  library.impl("reparameterize_with_kl_backward", TORCH_BOX(&genimg_fast::backward));
}
