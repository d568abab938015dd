// SPDX-License-Identifier: MIT
// What the CUDA registration files add to ops/tensor.h.
#pragma once
#include "cuda/channel_vector.h"
#include "cuda/noise_seed.h"
#include "ops/tensor.h"

namespace genimg_fast {

inline cuda::DType cuda_dtype(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return cuda::DType::float32;
    case ScalarType::Half:
      return cuda::DType::float16;
    case ScalarType::BFloat16:
      return cuda::DType::bfloat16;
    default:
      throw std::runtime_error("genimg_fast: the CUDA kernels take float32, float16 or bfloat16");
  }
}

inline cuda::LossDTypes loss_dtypes(const Tensor& input, const Tensor& target, const Tensor& loss) {
  return {cuda_dtype(input), cuda_dtype(target), cuda_dtype(loss)};
}

inline void check_device(const Tensor& like, const OptionalTensor& t) {
  check(!t || on_same_device(like, *t), "genimg_fast: tensors of one call are on different devices");
}

// Makes a tensor's GPU the current one for the scope, and names its current stream.  The others must be on it too.
struct CudaScope {
  template <typename... Others>
  explicit CudaScope(const Tensor& t, const Others&... others) : guard(t.get_device_index()) {
    (check_device(t, others), ...);
    check(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) == 0,
          "genimg_fast: no current CUDA stream");
  }
  torch::stable::accelerator::DeviceGuard guard;
  cuda::Stream stream = nullptr;
};

// Scratch from torch's allocator, so that it is safe across streams and inside CUDA graphs.
inline Tensor float_scratch(const Tensor& like, int64_t numel) {
  return torch::stable::new_empty(like, {numel}, ScalarType::Float);
}

// Of one int64 on either device; on the GPU the tensor must outlive the launch.
inline cuda::NoiseSeed noise_seed(const Tensor& t) {
  const int64_t* value = data<int64_t>(t);
  return t.is_cuda() ? cuda::NoiseSeed{value, 0} : cuda::NoiseSeed{nullptr, *value};
}

// Contiguous, of any dtype that the kernels take.  The tensor must outlive the launch.
inline cuda::ChannelVector channel_vector(const OptionalTensor& t) {
  return t ? cuda::ChannelVector{t->const_data_ptr(), cuda_dtype(*t)} : cuda::ChannelVector{};
}

inline cuda::MutableChannelVector mutable_channel_vector(const OptionalTensor& t) {
  return t ? cuda::MutableChannelVector{t->mutable_data_ptr(), cuda_dtype(*t)} : cuda::MutableChannelVector{};
}

}  // namespace genimg_fast
