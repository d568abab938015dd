// SPDX-License-Identifier: MIT
// Schema of conv_transpose2d_bn_act, which CUDA registers.  On the CPU it is a block_chain of one block.
#include "ops/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def(
      "conv_transpose2d_bn_act(Tensor input, Tensor weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, "
      "Tensor? bn_weight, Tensor? bn_bias, float eps, int[] stride, int[] padding, int[] output_padding, int "
      "activation, "
      "float negative_slope) -> Tensor");
  library.def(
      "conv_transpose2d_bn_act_training(Tensor input, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, "
      "float eps, int[] stride, int[] padding, int[] output_padding, int activation, float negative_slope) "
      "-> (Tensor output, Tensor raw, Tensor mean, Tensor var)");
}
