// SPDX-License-Identifier: MIT
// Schema of convolution_block, which CUDA registers: activation(batch_norm(convolution(input))) of one convolution,
// plain or transposed.  On the CPU it is a block_chain of one block.
//
// geometry: transposed, then stride, padding, output_padding and dilation as pairs.  packed: what
// convolution_block_pack made of this weight for this geometry and height and width of input, if that was kept.
// tensor_cores: 0: the plain kernel, for transposed convolutions alone; 1: half types are multiplied on tensor cores,
// and float32 as tf32; 2: half types by Hopper's own instructions, where GPU and shape allow.  tile: a GemmTileChoice,
// or with Hopper's instructions a WgmmaTileChoice, if the shape leaves a choice; -1: what is expected to be fastest.
// channels_last: the order of the output; not given: that of input and weight, as torch has it.
//
// convolution_block_training_ moves the running statistics too, in the launch that makes those of the batch; a
// convolution_block_training that did could not have an autograd formula.  It is for chains of blocks: its output is
// channels_last.
#include "ops/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def(
      "convolution_block(Tensor input, Tensor weight, Tensor? packed, Tensor? bias, Tensor? running_mean, Tensor? "
      "running_var, Tensor? bn_weight, Tensor? bn_bias, float eps, int[] geometry, int activation, float "
      "negative_slope, int tensor_cores, int tile, bool? channels_last=None) -> Tensor");
  library.def(
      "convolution_block_training(Tensor input, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, float "
      "eps, int[] geometry, int activation, float negative_slope, int tensor_cores, int tile) -> (Tensor output, "
      "Tensor raw, Tensor mean, Tensor var)");
  library.def(
      "convolution_block_training_(Tensor input, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, "
      "Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum, float eps, int[] geometry, int activation, "
      "float negative_slope, int tensor_cores, int tile) -> (Tensor output, Tensor raw, Tensor mean, Tensor var)");
  library.def("convolution_block_pack(Tensor input, Tensor weight, int[] geometry) -> Tensor");
}
