// SPDX-License-Identifier: MIT
// CUDA registration of convolution_block: which kernel runs a convolution, and the memory that it needs.
#include "common/channel_layout.h"
#include "cuda/batch_norm_act_kernel.h"
#include "cuda/conv_transpose2d_bn_act_kernel.h"
#include "cuda/conv_transpose2d_narrow_kernel.h"
#include "cuda/convolution_tensor_core_kernel.h"
#include "cuda/convolution_wgmma_kernel.h"
#include "ops/conv2d_bn_act.h"
#include "ops/conv_transpose2d_bn_act.h"
#include "ops/tensor_cuda.h"

namespace genimg_fast {
namespace {

// One convolution of the sizes of input and weight.
struct Call {
  Call(const Tensor& input, const Tensor& weight, const std::vector<int64_t>& geometry) : dtype(cuda_dtype(input)) {
    check(geometry.size() == 9, "convolution_block: geometry must hold 9 numbers");
    auto pair = [&](size_t i) { return Pair{geometry[i], geometry[i + 1]}; };
    const Pair stride = pair(1), padding = pair(3), output_padding = pair(5), dilation = pair(7);
    if (geometry[0]) {
      check(dilation == Pair{1, 1}, "convolution_block: a transposed convolution must have dilation 1");
      transposed = deconvolution(input, weight, stride, padding, output_padding);
      phased = cuda::phased(*transposed);
      narrow = cuda::why_not_narrow(dtype, *transposed) == nullptr;
      weight_strides = {weight.stride(1), weight.stride(0), weight.stride(2), weight.stride(3)};
      output = output_sizes(*transposed);
    } else {
      const Convolution conv = convolution(input, weight, stride, padding, dilation);
      phased = cuda::phased(conv);
      weight_strides = {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)};
      output = output_sizes(conv);
    }
    if (phased && cuda::why_not_tensor_cores(dtype, *phased)) phased.reset();
  }

  int64_t packed_numel() const {
    return narrow ? cuda::narrow_packed_numel(dtype, *transposed) : cuda::packed_weight_numel(dtype, *phased);
  }

  Tensor pack(const Tensor& weight, cuda::Stream stream) const {
    Tensor packed = torch::stable::new_empty(weight, {packed_numel()});
    const void* from = weight.const_data_ptr();
    if (narrow)
      cuda::narrow_pack_weight(dtype, *transposed, from, weight_strides, packed.mutable_data_ptr(), stream);
    else
      cuda::pack_weight(dtype, *phased, from, weight_strides, packed.mutable_data_ptr(), stream);
    return packed;
  }

  cuda::DType dtype;
  std::optional<Deconvolution> transposed;
  std::optional<cuda::PhasedConvolution> phased;  // if the tensor-core kernels take it
  bool narrow = false;
  cuda::WeightStrides weight_strides;
  std::vector<int64_t> output;
};

cuda::ImageStrides strides(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

// channels_last and beginning at a multiple of 16 bytes, as cp.async copies.
Tensor for_tensor_cores(const Tensor& t) {
  const Tensor image = lies_in_channels_last(t) ? t : torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
  return reinterpret_cast<uintptr_t>(image.const_data_ptr()) % 16 == 0 ? image : torch::stable::clone(image);
}

// As torch's convolutions on CUDA: in the layout of input or, where that leaves both open or is not it, of the weight.
bool wants_channels_last(const Tensor& input, const Tensor& weight) {
  return is_channels_last(input) || is_channels_last(weight);
}

// The tensor-core kernel that serves a call, and its tile.
class TensorCores {
 public:
  TensorCores(const Call& call, int64_t tensor_cores, int64_t tile)
      : dtype_(call.dtype),
        conv_(*call.phased),
        wgmma_(tensor_cores == 2 && cuda::wgmma_is_available() && !cuda::why_not_wgmma(call.dtype, *call.phased)),
        tile_(wgmma_ ? static_cast<int64_t>(cuda::choose_wgmma_tile(conv_))
                     : static_cast<int64_t>(cuda::choose_tile(conv_))) {
    const bool has_choice = wgmma_ || cuda::takes_any_tile(call.dtype, conv_);
    if (has_choice && tile >= 0 && tile < (wgmma_ ? cuda::kWgmmaTileChoices : cuda::kGemmTileChoices)) tile_ = tile;
  }

  int64_t statistics_splits() const {
    return wgmma_ ? cuda::wgmma_statistics_splits(conv_, static_cast<cuda::WgmmaTileChoice>(tile_))
                  : cuda::statistics_splits(conv_, static_cast<cuda::GemmTileChoice>(tile_));
  }

  void run(const Tensor& image, const Tensor& packed, const cuda::ChannelAffine& affine, Activation activation,
           float negative_slope, Tensor& output, float* moments, cuda::Stream stream) const {
    const void *from = image.const_data_ptr(), *weight = packed.const_data_ptr();
    void* to = output.mutable_data_ptr();
    if (wgmma_)
      cuda::convolution_wgmma(dtype_, conv_, static_cast<cuda::WgmmaTileChoice>(tile_), from, weight, affine,
                              activation, negative_slope, to, moments, stream);
    else
      cuda::convolution_tensor_core(dtype_, conv_, static_cast<cuda::GemmTileChoice>(tile_), from, weight, affine,
                                    activation, negative_slope, to, moments, stream);
  }

 private:
  cuda::DType dtype_;
  const cuda::PhasedConvolution& conv_;
  bool wgmma_;
  int64_t tile_;  // of that kernel's own choices
};

// The plain kernel, in any memory order.
void run_plain(const Call& call, const Tensor& input, const Tensor& weight, const cuda::ChannelAffine& affine,
               Activation activation, float negative_slope, Tensor& output, cuda::Stream stream) {
  check(call.transposed.has_value(),
        "convolution_block: only the tensor-core kernels serve a convolution, and not this");
  const Tensor w = torch::stable::contiguous(weight);
  cuda::conv_transpose2d(call.dtype, *call.transposed, input.const_data_ptr(), strides(input), w.const_data_ptr(),
                         affine, activation, negative_slope, output.mutable_data_ptr(), strides(output), stream);
}

Tensor inference(Tensor input, Tensor weight, OptionalTensor packed, OptionalTensor bias, OptionalTensor running_mean,
                 OptionalTensor running_var, OptionalTensor bn_weight, OptionalTensor bn_bias, double eps,
                 std::vector<int64_t> geometry, int64_t activation_code, double slope, int64_t tensor_cores,
                 int64_t tile, std::optional<bool> order) {
  const Call call(input, weight, geometry);
  const CudaScope scope(input, weight, packed, bias, running_mean, running_var, bn_weight, bn_bias);
  for (OptionalTensor* t : {&bias, &running_mean, &running_var, &bn_weight, &bn_bias}) *t = to_contiguous(*t);
  check_channels(call.output[1], std::nullopt, bias, running_mean, running_var, bn_weight, bn_bias);
  const cuda::ChannelAffine affine{channel_vector(bias),      channel_vector(running_mean), channel_vector(running_var),
                                   channel_vector(bn_weight), channel_vector(bn_bias),      eps};
  const auto activation = activation_of(activation_code);
  const auto negative_slope = static_cast<float>(slope);
  const bool channels_last = order.value_or(wants_channels_last(input, weight));
  if (!tensor_cores || !call.phased) {
    Tensor out = new_image(input, call.output, channels_last);
    run_plain(call, input, weight, affine, activation, negative_slope, out, scope.stream);
    return out;
  }
  const Tensor image = for_tensor_cores(input), w = packed ? *packed : call.pack(weight, scope.stream);
  check(w.numel() == call.packed_numel() && w.scalar_type() == input.scalar_type() && w.is_contiguous() &&
            reinterpret_cast<uintptr_t>(w.const_data_ptr()) % 16 == 0,
        "convolution_block: packed was made for another call");
  Tensor out = new_image(input, call.output, channels_last || !call.narrow);  // the narrow kernel writes either order
  if (call.narrow)
    cuda::conv_transpose2d_narrow(call.dtype, *call.transposed, image.const_data_ptr(), w.const_data_ptr(), affine,
                                  activation, negative_slope, out.mutable_data_ptr(),
                                  channels_last ? MemoryOrder::channels_last : MemoryOrder::nchw, scope.stream);
  else
    TensorCores(call, tensor_cores, tile).run(image, w, affine, activation, negative_slope, out, nullptr, scope.stream);
  return channels_last ? out : torch::stable::contiguous(out);
}

// Output, raw output of the convolution, both channels_last, and the statistics.  The narrow kernel has
// no statistics: an image layer has no batch normalisation.
std::tuple<Tensor, Tensor, Tensor, Tensor> training(const Tensor& input, const Tensor& weight, OptionalTensor bias,
                                                    OptionalTensor bn_weight, OptionalTensor bn_bias,
                                                    const cuda::RunningStatistics& running, double eps,
                                                    const std::vector<int64_t>& geometry, int64_t activation,
                                                    double negative_slope, int64_t tensor_cores, int64_t tile) {
  Call call(input, weight, geometry);
  call.narrow = false;
  const CudaScope scope(input, weight, bias, bn_weight, bn_bias);
  const int64_t channels = call.output[1];
  for (OptionalTensor* t : {&bias, &bn_weight, &bn_bias}) *t = to_contiguous(*t);
  check_channels(channels, std::nullopt, bias, bn_weight, bn_bias);
  const cuda::ChannelAffine affine{channel_vector(bias), {}, {}, {}, {}, eps};
  Tensor raw = new_channels_last(input, call.output), out = new_channels_last(input, call.output);
  Tensor mean = float_scratch(input, channels), var = float_scratch(input, channels);
  const ChannelLayout layout{call.output[0] * call.output[2] * call.output[3], channels, 1};

  if (tensor_cores && call.phased) {
    const Tensor image = for_tensor_cores(input), packed = call.pack(weight, scope.stream);
    const TensorCores kernel(call, tensor_cores, tile);
    const int64_t splits = kernel.statistics_splits();
    Tensor scratch = float_scratch(input, cuda::batch_norm_merge_scratch(splits, channels));
    kernel.run(image, packed, affine, Activation::none, 0.0f, raw, mutable_data<float>(scratch), scope.stream);
    cuda::batch_norm_merge_statistics(mutable_data<float>(scratch), splits, channels, mutable_data<float>(mean),
                                      mutable_data<float>(var), running, scope.stream);
  } else {
    run_plain(call, input, weight, affine, Activation::none, 0.0f, raw, scope.stream);
    Tensor scratch = float_scratch(input, cuda::batch_norm_scratch(call.dtype, layout));
    cuda::batch_norm_statistics(call.dtype, raw.const_data_ptr(), layout, mutable_data<float>(scratch),
                                mutable_data<float>(mean), mutable_data<float>(var), running, scope.stream);
  }
  cuda::batch_norm_act(call.dtype, raw.const_data_ptr(), layout,
                       {channel_vector(mean), channel_vector(var), channel_vector(bn_weight), channel_vector(bn_bias),
                        static_cast<float>(eps), activation_of(activation), static_cast<float>(negative_slope)},
                       out.mutable_data_ptr(), scope.stream);
  return {out, raw, mean, var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> functional_training(Tensor input, Tensor weight, OptionalTensor bias,
                                                               OptionalTensor bn_weight, OptionalTensor bn_bias,
                                                               double eps, std::vector<int64_t> geometry,
                                                               int64_t activation, double negative_slope,
                                                               int64_t tensor_cores, int64_t tile) {
  const auto [out, raw, mean, var] = training(input, weight, bias, bn_weight, bn_bias, {}, eps, geometry, activation,
                                              negative_slope, tensor_cores, tile);
  return {wants_channels_last(input, weight) ? out : torch::stable::contiguous(out), raw, mean, var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> in_place_training(Tensor input, Tensor weight, OptionalTensor bias,
                                                             OptionalTensor bn_weight, OptionalTensor bn_bias,
                                                             OptionalTensor running_mean, OptionalTensor running_var,
                                                             double momentum, double eps, std::vector<int64_t> geometry,
                                                             int64_t activation, double negative_slope,
                                                             int64_t tensor_cores, int64_t tile) {
  check_channels(weight.size(geometry.empty() || !geometry[0] ? 0 : 1), std::nullopt, running_mean, running_var);
  check_device(input, running_mean);
  check_device(input, running_var);
  const cuda::RunningStatistics running{mutable_channel_vector(running_mean), mutable_channel_vector(running_var),
                                        static_cast<float>(momentum)};
  return training(input, weight, bias, bn_weight, bn_bias, running, eps, geometry, activation, negative_slope,
                  tensor_cores, tile);
}

Tensor pack(Tensor input, Tensor weight, std::vector<int64_t> geometry) {
  const Call call(input, weight, geometry);
  const CudaScope scope(weight, input);
  check(call.phased.has_value(), "convolution_block_pack: the tensor-core kernels do not take this convolution");
  return call.pack(weight, scope.stream);
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, library) {
  library.impl("convolution_block", TORCH_BOX(&genimg_fast::inference));
  library.impl("convolution_block_training", TORCH_BOX(&genimg_fast::functional_training));
  library.impl("convolution_block_training_", TORCH_BOX(&genimg_fast::in_place_training));
  library.impl("convolution_block_pack", TORCH_BOX(&genimg_fast::pack));
}
