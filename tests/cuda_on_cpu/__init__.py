# SPDX-License-Identifier: MIT
"""csrc/cuda on the CPU: the kernels' own source, compiled as host C++ against a shim that runs one fiber a CUDA thread.

To add an op:

1. `bind_<op>.cpp`: one `bind("name", &cuda::function);` for each function of `csrc/cuda/<op>_kernel.h`.  Arguments are
   passed as they are in C++: an array for a pointer, None for nullptr, "float16" for a DType.  Where a function takes a
   struct, bind a lambda that takes its members.
2. `test_<op>.py`: copy `test_gaussian_kl_loss.py`.  Take arrays from `memory`, which guards them and fills outputs with NaN;
   run under `schedule`; compare with float64 in NumPy.  `test_sanitizers.py` runs the file a second time, under
   AddressSanitizer and UndefinedBehaviorSanitizer.

`build.py` finds both kinds of source by their names.  A CUDA function that the shim lacks is a few lines in
`cuda_on_cpu.h`; a PTX instruction goes into `csrc/cuda/ptx.cuh` and `ptx_on_cpu.h`.

What this shows: results, for every thread order that was tried; barriers that are missing, divergent or met by the wrong
threads; shared memory read before it is written; accesses outside arrays, misaligned, or to buffers that an asynchronous
copy still fills.  What it cannot show, and tests/ptx_on_cpu, which runs the same tests on nvcc's PTX, can: code generation
by nvcc, whether the inline assembly of `ptx.cuh` does what its emulation does, and races that change no value under the
orders tried.  What neither can: speed, registers, bank conflicts, the rounding of ex2 and of tensor-core sums on a GPU,
and threads that spin until another one writes.
"""
