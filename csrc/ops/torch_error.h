// SPDX-License-Identifier: MIT
// What a call into torch that fails throws: torch's own words, such as "CUDA out of memory. Tried to allocate ...".
//
// The headers of the stable ABI throw a text that names the call and their own line, unless built for torch 2.13 or
// newer alone.  This file stands before all of them and has their macro throw what torch says, where it does.
#pragma once
#include <torch/headeronly/util/shim_utils.h>

#include <stdexcept>
#include <string>

extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();  // null before torch 2.13

namespace genimg_fast {

[[noreturn, gnu::noinline]] inline void throw_torch_error(const char* call) {
  const char* what =
      torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : nullptr;
  if (what != nullptr && *what != '\0') throw std::runtime_error(what);
  const std::string name(call);  // up to its arguments
  throw std::runtime_error("genimg_fast: " + name.substr(0, name.find(',')) +
                           " failed, most often for want of memory; torch 2.13 and newer say why");
}

}  // namespace genimg_fast

#undef TORCH_ERROR_CODE_CHECK
#define TORCH_ERROR_CODE_CHECK(call) \
  if ((call) != TORCH_SUCCESS) ::genimg_fast::throw_torch_error(#call);
