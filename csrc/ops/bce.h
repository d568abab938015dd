// SPDX-License-Identifier: MIT
// What the registrations of bce_loss and bce_with_logits_loss share.
#pragma once
#include "common/bce.h"
#include "common/reduction.h"
#include "ops/loss.h"

namespace genimg_fast {

// The tensors of one call in one memory order, its outputs allocated.
struct BceCall {
  BceCall(Tensor input_, Tensor target_, OptionalTensor weight_, OptionalTensor pos_weight_, int64_t reduction_code,
          bool with_grad_, bool float32_loss)
      : input(input_), target(target_), weight(weight_), pos_weight(pos_weight_), with_grad(with_grad_) {
    make_elementwise(input, weight, pos_weight);
    lay_out_target(input, target);
    const auto reduction = static_cast<Reduction>(reduction_code);
    is_reduced = reduction != Reduction::none;
    scale = reduction_scale(reduction, input.numel(), 1);
    loss = is_reduced ? new_loss(input, float32_loss) : new_like(input);
    grad = new_saved_gradient(input, with_grad);
  }

  template <typename T>
  BceOperands<T> operands() const {
    // not data<T>, for which the compiler would also look at std::data, and void has no initializer_list
    const auto pointer = [](const OptionalTensor& t) {
      return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
    };
    return {data<T>(input),
            data<T>(target),
            pointer(weight),
            pointer(pos_weight),
            is_reduced ? nullptr : mutable_data<T>(loss),
            saved_gradient_data<T>(grad, with_grad),
            scale,
            input.numel()};
  }

  Tensor input, target;
  OptionalTensor weight, pos_weight;
  bool with_grad, is_reduced;
  double scale;  // of the reduction
  Tensor loss, grad;
};

}  // namespace genimg_fast
