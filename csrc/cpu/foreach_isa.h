// SPDX-License-Identifier: MIT
// Compiles the vector bodies of a kernel file once per instruction set.  A kernel file reads
//
//     #ifndef GENIMG_FAST_ISA                         // the ordinary pass
//     #define GENIMG_FAST_KERNEL_FILE "cpu/<op>_kernel.cpp"
//     #include "cpu/foreach_isa.h"                    // includes this same file three times: the #else part
//     ... public functions, GENIMG_FAST_DISPATCH_ISA(body<T>(...)) ...
//     #else
//     namespace genimg_fast::cpu::GENIMG_FAST_ISA { ... bodies, written with cpu/vec.h ... }
//     #endif
//
// The bodies are compiled for a target of their own, each in a namespace of its own, and may call no inline function
// of the standard library: the linker keeps one copy of such a function, and an AVX-512 copy would crash an older CPU.
// tests/test_native_libraries.py disassembles the library to see that this holds.

#ifndef GENIMG_FAST_FOREACH_ISA_H
#define GENIMG_FAST_FOREACH_ISA_H

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu/isa.h"
#include "cpu/parallel.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define GENIMG_FAST_X86_BODIES 1
#define GENIMG_FAST_DISPATCH_ISA(...)                                                                            \
  (::genimg_fast::cpu::active_isa() == ::genimg_fast::cpu::Isa::avx512 ? ::genimg_fast::cpu::avx512::__VA_ARGS__ \
   : ::genimg_fast::cpu::active_isa() == ::genimg_fast::cpu::Isa::avx2 ? ::genimg_fast::cpu::avx2::__VA_ARGS__   \
                                                                       : ::genimg_fast::cpu::portable::__VA_ARGS__)
#else
#define GENIMG_FAST_X86_BODIES 0  // other CPUs: the portable body, at the compiler's default vector width
#define GENIMG_FAST_DISPATCH_ISA(...) (::genimg_fast::cpu::portable::__VA_ARGS__)
#endif

#endif  // GENIMG_FAST_FOREACH_ISA_H

#ifdef GENIMG_FAST_KERNEL_FILE

#define GENIMG_FAST_ISA portable
#define GENIMG_FAST_VECTOR_BYTES 16
#include "cpu/vec.h"
#include GENIMG_FAST_KERNEL_FILE
#undef GENIMG_FAST_ISA
#undef GENIMG_FAST_VECTOR_BYTES

#if GENIMG_FAST_X86_BODIES
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define GENIMG_FAST_ISA avx2
#define GENIMG_FAST_VECTOR_BYTES 32
#include "cpu/vec.h"
#include GENIMG_FAST_KERNEL_FILE
#undef GENIMG_FAST_ISA
#undef GENIMG_FAST_VECTOR_BYTES
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")
#endif
#define GENIMG_FAST_ISA avx512
#define GENIMG_FAST_VECTOR_BYTES 64
#include "cpu/vec.h"
#include GENIMG_FAST_KERNEL_FILE
#undef GENIMG_FAST_ISA
#undef GENIMG_FAST_VECTOR_BYTES
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // GENIMG_FAST_X86_BODIES

#undef GENIMG_FAST_KERNEL_FILE
#endif  // GENIMG_FAST_KERNEL_FILE
