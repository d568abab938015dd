// SPDX-License-Identifier: MIT
// Schema and CPU registration of reparameterize, and of philox4x32, the generator behind its noise, for the tests.
#include "ops/reparameterize.h"

#include "cpu/reparameterize_kernel.h"

namespace genimg_fast {
namespace {

Tensor forward(Tensor mu, Tensor logvar, Tensor seed) {
  const Tensor m = torch::stable::contiguous(mu), v = torch::stable::contiguous(logvar);
  check_noise_arguments(m, v, seed);
  Tensor z = new_like(m);
  dispatch_float_double(m, [&](auto zero) {
    using T = decltype(zero);
    cpu::reparameterize(data<T>(m), data<T>(v), seed_value(seed), mutable_data<T>(z), m.numel());
  });
  return laid_out_like(mu, z);
}

Tensor backward(Tensor grad, Tensor logvar, Tensor seed) {
  const Tensor g = torch::stable::contiguous(grad), v = torch::stable::contiguous(logvar);
  check_noise_arguments(g, v, seed);
  Tensor grad_logvar = new_like(v);
  dispatch_float_double(v, [&](auto zero) {
    using T = decltype(zero);
    cpu::reparameterize_backward(data<T>(g), data<T>(v), seed_value(seed), mutable_data<T>(grad_logvar), v.numel());
  });
  return laid_out_like(logvar, grad_logvar);
}

// counter [4, n] and key [2], words as int64 in [0, 2^32) -> random words, of counter's shape.
Tensor philox4x32(Tensor counter, Tensor key) {
  check(counter.dim() == 2 && counter.size(0) == 4 && counter.scalar_type() == ScalarType::Long,
        "philox4x32: counter must be an int64 tensor of shape (4, n)");
  check(key.dim() == 1 && key.size(0) == 2 && key.scalar_type() == ScalarType::Long,
        "philox4x32: key must be an int64 tensor of shape (2,)");
  const Tensor words = torch::stable::contiguous(counter), keys = torch::stable::contiguous(key);
  std::vector<uint32_t> block(data<int64_t>(words), data<int64_t>(words) + words.numel());
  cpu::philox4x32(block.data(), static_cast<uint32_t>(data<int64_t>(keys)[0]),
                  static_cast<uint32_t>(data<int64_t>(keys)[1]), words.size(1));
  Tensor out = new_like(words);
  std::copy(block.begin(), block.end(), mutable_data<int64_t>(out));
  return out;
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def("reparameterize(Tensor mu, Tensor logvar, Tensor seed) -> Tensor");
  library.def("reparameterize_backward(Tensor grad, Tensor logvar, Tensor seed) -> Tensor");
  library.def("philox4x32(Tensor counter, Tensor key) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) {
  library.impl("reparameterize", TORCH_BOX(&genimg_fast::forward));
  library.impl("reparameterize_backward", TORCH_BOX(&genimg_fast::backward));
  library.impl("philox4x32", TORCH_BOX(&genimg_fast::philox4x32));
}
