// SPDX-License-Identifier: MIT
// Lets Python call a kernel function with its C++ arguments.  A bind_<op>.cpp reads
//
//     CUDA_ON_CPU_BINDINGS { bind("scale", &cuda::scale); }
//
// and Python then calls kernels.scale("float16", x, out, x.size, None): a NumPy array passes its address, None a null
// pointer, a string a DType; as a ChannelVector an array passes its dtype too, uint16 being bfloat16.  pybind11 is in
// module.cpp alone, since it takes long to compile.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "cuda/channel_vector.h"
#include "earlier_results.h"

namespace cuda_on_cpu {

struct Array {
  void* data;
  int64_t bytes;
  char kind;  // NumPy's: 'f' floating point, 'i' and 'u' integers, 'b' bool
  int64_t item_bytes;
  bool writeable;
};
struct None {};
using Argument = std::variant<None, bool, int64_t, double, std::string, Array>;

template <typename T>
constexpr bool is_channel_vector =
    std::is_same_v<T, genimg_fast::cuda::ChannelVector> || std::is_same_v<T, genimg_fast::cuda::MutableChannelVector>;
using Result = std::variant<None, int64_t, double>;

namespace detail {

[[noreturn]] inline void reject(const char* wanted) { throw std::invalid_argument(std::string("expected ") + wanted); }

// The C++ argument of type T that a Python argument stands for.
template <typename T>
T convert(const Argument& argument) {
  if constexpr (std::is_same_v<T, Array>) {
    if (!std::holds_alternative<Array>(argument)) reject("an array");
    return std::get<Array>(argument);
  } else if constexpr (std::is_pointer_v<T>) {
    using Element = std::remove_pointer_t<T>;
    if (std::holds_alternative<None>(argument)) return nullptr;
    if (!std::holds_alternative<Array>(argument)) reject("an array or None");
    const Array& array = std::get<Array>(argument);
    if (!std::is_const_v<Element> && !array.writeable) reject("a writeable array");
    if constexpr (!std::is_void_v<Element>) {
      const char kind = std::is_same_v<std::remove_const_t<Element>, bool> ? 'b'
                        : std::is_floating_point_v<Element>                ? 'f'
                        : std::is_signed_v<Element>                        ? 'i'
                                                                           : 'u';
      if (array.kind != kind || array.item_bytes != sizeof(Element)) reject("an array of the pointer's element type");
    }
    return static_cast<T>(array.data);
  } else if constexpr (is_channel_vector<T>) {
    using genimg_fast::cuda::DType;
    if (std::holds_alternative<None>(argument)) return {};
    if (!std::holds_alternative<Array>(argument)) reject("an array or None");
    const Array& array = std::get<Array>(argument);
    if (std::is_same_v<T, genimg_fast::cuda::MutableChannelVector> && !array.writeable) reject("a writeable array");
    if (array.kind == 'f' && array.item_bytes == 4) return {array.data, DType::float32};
    if (array.kind == 'f' && array.item_bytes == 2) return {array.data, DType::float16};
    if (array.kind == 'u' && array.item_bytes == 2) return {array.data, DType::bfloat16};
    reject("an array of float32, float16 or bfloat16");
  } else if constexpr (std::is_same_v<T, genimg_fast::cuda::DType>) {
    if (!std::holds_alternative<std::string>(argument)) reject("the name of a dtype");
    const std::string& name = std::get<std::string>(argument);
    if (name == "float32") return T::float32;
    if (name == "float16") return T::float16;
    if (name == "bfloat16") return T::bfloat16;
    reject("'float32', 'float16' or 'bfloat16'");
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (!std::holds_alternative<std::string>(argument)) reject("a string");
    return std::get<std::string>(argument);
  } else if constexpr (std::is_same_v<T, bool>) {
    if (!std::holds_alternative<bool>(argument)) reject("a bool");
    return std::get<bool>(argument);
  } else if constexpr (std::is_floating_point_v<T>) {
    if (std::holds_alternative<int64_t>(argument)) return static_cast<T>(std::get<int64_t>(argument));
    if (!std::holds_alternative<double>(argument)) reject("a number");
    return static_cast<T>(std::get<double>(argument));
  } else {
    static_assert(std::is_integral_v<T> || std::is_enum_v<T>, "bind a lambda that takes plain arguments instead");
    if (!std::holds_alternative<int64_t>(argument)) reject("an integer");
    return static_cast<T>(std::get<int64_t>(argument));
  }
}

template <typename R, typename... Parameters, size_t... I>
Result call(const std::function<R(Parameters...)>& function, const std::vector<Argument>& arguments,
            std::index_sequence<I...>) {
  if (arguments.size() != sizeof...(Parameters))
    throw std::invalid_argument("expected " + std::to_string(sizeof...(Parameters)) + " arguments");
  auto converted = [&](auto index, auto* type) {
    try {
      return convert<std::remove_pointer_t<decltype(type)>>(arguments[index]);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument("argument " + std::to_string(index) + ": " + error.what());
    }
  };
  arrays_of_call.clear();
  for (const Argument& argument : arguments)
    if (const Array* array = std::get_if<Array>(&argument))
      arrays_of_call.push_back({array->data, static_cast<size_t>(array->bytes)});
  auto run = [&] {
    return function(converted(std::integral_constant<size_t, I>{}, static_cast<std::decay_t<Parameters>*>(nullptr))...);
  };
  if constexpr (std::is_void_v<R>)
    return run(), None{};
  else if constexpr (std::is_floating_point_v<R>)
    return static_cast<double>(run());
  else
    return static_cast<int64_t>(run());
}

template <typename R, typename... Parameters>
std::function<Result(const std::vector<Argument>&)> erase(std::function<R(Parameters...)> function) {
  return [function](const std::vector<Argument>& arguments) {
    return call(function, arguments, std::index_sequence_for<Parameters...>{});
  };
}

}  // namespace detail

// Everything bound, by its name in Python.
inline std::map<std::string, std::function<Result(const std::vector<Argument>&)>>& bindings() {
  static std::map<std::string, std::function<Result(const std::vector<Argument>&)>> all;
  return all;
}

// `function` is a function or a lambda without templates.
template <typename Function>
void bind(const char* name, Function function) {
  if (!bindings().emplace(name, detail::erase(std::function(function))).second)
    throw std::logic_error(std::string(name) + " is bound twice");
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_BINDINGS                                 \
  static void add_bindings();                                \
  static const bool bindings_added = (add_bindings(), true); \
  static void add_bindings()
