// SPDX-License-Identifier: MIT
#include "cpu/convolution_layer.h"

#include <vector>

#include "cpu/conv2d_bn_act_kernel.h"
#include "cpu/conv_transpose2d_bn_act_kernel.h"
#include "cpu/conv_weight_grad_kernel.h"
#include "cpu/thread_workspace.h"

namespace genimg_fast::cpu {
namespace {

// The gradient of a convolution of stride 1 is a convolution of stride 1 too, with the kernel mirrored.  Not worth it
// where an output of one pixel would see padding with all taps but one, but the only way where there is dilation.
bool is_mirrored(const Convolution& conv) {
  auto fits = [](const ConvolutionAxis& axis) {
    return axis.stride == 1 && axis.padding <= axis.dilation * (axis.kernel - 1);
  };
  const bool dilated = conv.y.dilation != 1 || conv.x.dilation != 1;
  return fits(conv.y) && fits(conv.x) && (dilated || (conv.y.output > 1 && conv.x.output > 1));
}

Convolution mirror(const Convolution& conv) {
  auto axis = [](const ConvolutionAxis& a) {
    return ConvolutionAxis{a.output, a.input, a.kernel, 1, a.dilation * (a.kernel - 1) - a.padding, a.dilation};
  };
  return {conv.batch, conv.out_channels, conv.in_channels, axis(conv.y), axis(conv.x)};
}

// Whether a transposed convolution of stride 1 runs as the convolution that it is, which has Toom-Cook products; in
// tiles of 2, since PyTorch's own transposed convolution errs too little for those of 4.
bool runs_mirrored(const ConvolutionLayer& layer, Variant variant) {
  return layer.transposed && variant == Variant::toom_cook_2 && is_mirrored(layer.down);
}

// The weight in this layout, by pack(packed) if it is not read where it lies.
template <typename T, typename Pack>
const T* pack_once(const PackedLayout& layout, const T* weight, const Pack& pack) {
  if (layout.variant == Variant::unpacked) return weight;
  T* packed = packing_memory<T>(layout.count);
  pack(packed);
  return packed;
}

// An epilogue that changes nothing.
template <typename T>
struct NoEpilogue {
  std::vector<T> scale, shift;
  explicit NoEpilogue(int64_t channels) : scale(channels, T(1)), shift(channels, T(0)) {}
  Epilogue<T> get() const { return {scale.data(), shift.data(), Activation::none, T(0)}; }
};

template <typename T>
void convolve(const Convolution& conv, WeightOrder order, const T* input, const T* weight, T* output) {
  const PackedLayout layout = choose_layout<T>(conv, true, order);
  const T* packed = pack_once(layout, weight, [&](T* to) { pack_weight(conv, layout, order, weight, to); });
  const NoEpilogue<T> epilogue(conv.out_channels);
  conv2d<T>(conv, input, {}, layout, packed, epilogue.get(), output, nullptr, nullptr);
}

template <typename T>
void convolve(const Deconvolution& conv, const PackedLayout& layout, const T* input, const T* weight, T* output) {
  const T* packed = pack_once(layout, weight, [&](T* to) { pack_weight(conv, layout, weight, to); });
  const NoEpilogue<T> epilogue(conv.out_channels);
  conv_transpose2d<T>(conv, input, {}, layout, packed, epilogue.get(), output, nullptr, nullptr);
}

}  // namespace

template <typename T>
PackedLayout choose_layout(const ConvolutionLayer& layer, bool packed_once) {
  if (!layer.transposed) return choose_layout<T>(layer.down, packed_once);
  const PackedLayout own = choose_layout<T>(layer.up, packed_once);
  if (is_mirrored(layer.down) && own.variant != Variant::unpacked) {
    const Convolution conv = mirror(layer.down);
    const PackedLayout layout = choose_layout<T>(conv, packed_once, WeightOrder::mirrored);
    if (is_toom_cook(layout.variant)) return layout_of_variant<T>(conv, Variant::toom_cook_2);
  }
  return own;
}

template <typename T>
PackedLayout layout_of_variant(const ConvolutionLayer& layer, Variant variant) {
  if (!layer.transposed) return layout_of_variant<T>(layer.down, variant);
  if (runs_mirrored(layer, variant)) {
    const PackedLayout layout = layout_of_variant<T>(mirror(layer.down), variant);
    if (layout.variant == variant) return layout;
  }
  return layout_of_variant<T>(layer.up, variant);
}

template <typename T>
void pack_weight(const ConvolutionLayer& layer, const PackedLayout& layout, const T* weight, T* packed) {
  if (runs_mirrored(layer, layout.variant))
    pack_weight(mirror(layer.down), layout, WeightOrder::mirrored, weight, packed);
  else if (layer.transposed)
    pack_weight(layer.up, layout, weight, packed);
  else
    pack_weight(layer.down, layout, WeightOrder::forward, weight, packed);
}

template <typename T>
const T* pack_weight_once(const ConvolutionLayer& layer, const PackedLayout& layout, const T* weight) {
  return pack_once(layout, weight, [&](T* to) { pack_weight(layer, layout, weight, to); });
}

template <typename T>
void convolution(const ConvolutionLayer& layer, const T* input, const Prologue<T>& prologue, const PackedLayout& layout,
                 const T* packed, const Epilogue<T>& epilogue, T* output, T* mean, T* var, MemoryOrder order) {
  if (runs_mirrored(layer, layout.variant))
    conv2d(mirror(layer.down), input, prologue, layout, packed, epilogue, output, mean, var);
  else if (layer.transposed)
    conv_transpose2d(layer.up, input, prologue, layout, packed, epilogue, output, mean, var, order);
  else
    conv2d(layer.down, input, prologue, layout, packed, epilogue, output, mean, var);
}

bool writes_nchw(const ConvolutionLayer& layer, const PackedLayout& layout) {
  return layer.transposed && writes_nchw(layout);
}

template <typename T>
void convolution_input_grad(const ConvolutionLayer& layer, const T* grad, const T* weight, T* grad_input) {
  if (layer.transposed) return convolve(layer.down, WeightOrder::forward, grad, weight, grad_input);
  const bool dilated = layer.down.y.dilation != 1 || layer.down.x.dilation != 1;  // which `up` does not know of
  const PackedLayout layout = dilated ? PackedLayout{} : choose_layout<T>(layer.up, true);
  // A mirrored weight cannot be read where it lies, that of a transposed convolution can.
  if (is_mirrored(layer.down) && layout.variant != Variant::unpacked)
    convolve(mirror(layer.down), WeightOrder::mirrored, grad, weight, grad_input);
  else
    convolve(layer.up, layout, grad, weight, grad_input);
}

template <typename T>
void convolution_weight_grad(const ConvolutionLayer& layer, const T* grad, const T* input, const Prologue<T>& prologue,
                             T* grad_weight) {
  if (layer.transposed)
    conv_weight_grad<T>(layer.down, input, prologue, grad, {}, grad_weight);
  else
    conv_weight_grad<T>(layer.down, grad, {}, input, prologue, grad_weight);
}

#define INSTANTIATE(T)                                                                                               \
  template PackedLayout layout_of_variant<T>(const ConvolutionLayer&, Variant);                                      \
  template PackedLayout choose_layout<T>(const ConvolutionLayer&, bool);                                             \
  template void pack_weight<T>(const ConvolutionLayer&, const PackedLayout&, const T*, T*);                          \
  template const T* pack_weight_once<T>(const ConvolutionLayer&, const PackedLayout&, const T*);                     \
  template void convolution<T>(const ConvolutionLayer&, const T*, const Prologue<T>&, const PackedLayout&, const T*, \
                               const Epilogue<T>&, T*, T*, T*, MemoryOrder);                                         \
  template void convolution_input_grad<T>(const ConvolutionLayer&, const T*, const T*, T*);                          \
  template void convolution_weight_grad<T>(const ConvolutionLayer&, const T*, const T*, const Prologue<T>&, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu
