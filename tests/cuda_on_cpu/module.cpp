// SPDX-License-Identifier: MIT
// The Python module, made of everything that the bind_*.cpp files bind.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "binding.h"

namespace py = pybind11;
using cuda_on_cpu::Argument, cuda_on_cpu::Array, cuda_on_cpu::None;

namespace {

Argument to_argument(const py::handle& value) {
  if (value.is_none()) return None{};
  if (py::isinstance<py::bool_>(value)) return value.cast<bool>();
  if (py::isinstance<py::int_>(value)) return value.cast<int64_t>();
  if (py::isinstance<py::float_>(value)) return value.cast<double>();
  if (py::isinstance<py::str>(value)) return value.cast<std::string>();
  if (!py::isinstance<py::array>(value)) throw py::type_error("arguments are numbers, strings, arrays or None");
  const auto array = py::reinterpret_borrow<py::array>(value);
  if (!(array.flags() & py::array::c_style)) throw py::type_error("an array must be C-contiguous");
  return Array{const_cast<void*>(array.data()), array.nbytes(), array.dtype().kind(), array.itemsize(),
               array.writeable()};
}

}  // namespace

PYBIND11_MODULE(genimg_fast_cuda_on_cpu, module) {
  for (const auto& binding : cuda_on_cpu::bindings()) {
    const auto& function = binding.second;
    module.def(binding.first.c_str(), [&function](const py::args& args) -> py::object {
      std::vector<Argument> arguments;
      for (const py::handle& value : args) arguments.push_back(to_argument(value));
      const cuda_on_cpu::Result result = function(arguments);
      if (const auto* integer = std::get_if<int64_t>(&result)) return py::int_(*integer);
      if (const auto* real = std::get_if<double>(&result)) return py::float_(*real);
      return py::none();
    });
  }
}
