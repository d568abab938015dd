# SPDX-License-Identifier: MIT
"""csrc/cuda as nvcc compiles it, on the CPU: an interpreter of PTX takes the place of the shim's C++ kernels.

`compile.py` has nvcc make PTX of every kernel, for sm_80 and sm_90a.  Under GENIMG_FAST_PTX_ON_CPU=90a the tests of
tests/cuda_on_cpu run that PTX: `launch()` finds the entry by the name of the kernel's function, lays its parameters out
as the entry declares them, and the host's memory is the kernel's global memory.  `test_kernels.py` runs them so, and
`test_random.py` convolutions of random sizes; `test_controls.py` shows that what is wrong is seen.

    program.h, parser.cpp                text to statements, whose operands are slots of a thread's register file
    decoder.h, .cpp                      a statement to an instruction; what has no meaning here is an error
    integer, floating_point, conversions, memory, control .cpp      instructions of one thread, barriers, shuffles
    matrix.cpp, async.cpp, wgmma.cpp     ldmatrix and mma; mbarrier, TMA and fences; wgmma
    machine.h, .cpp                      threads, the order in which they run, and the memory that they may touch
    races.h, .cpp                        accesses that nothing orders
    launch.cpp                           from the shim's launch to here

The instructions are written from the PTX ISA, not from the shim or the comments of ptx.cuh and ptx_sm90.cuh, of which
they are a second reading: fragments, the descriptor and the swizzle of wgmma, boxes of TMA, phases of mbarrier.  To add
one, add it to the table at the end of its file, and a line to `test_instructions.py`.

What this shows, beyond what tests/cuda_on_cpu does: what nvcc makes of the source; that inline assembly does what it was
written for; parameters that lie elsewhere than in C++; races between any two threads of a grid, or with what runs beside
them (cp.async, TMA, wgmma), whatever values they change in the order that was tried; reads of shared memory that nobody
wrote; every access beyond an array, read or write; misaligned accesses; fences between the proxies, and the registers of
a wgmma that is under way.

What it cannot show: what ptxas makes of PTX; speed, registers and bank conflicts; the errors of sums on tensor cores, which
are exact here and rounded once; which errors approximate instructions make, but that they are off by as much as is
documented; hardware that differs from the ISA; and whether memory is ordered in other ways than these kernels use
(volatile, scopes, acquire and release on loads and stores): those are unknown instructions here.  Of the threads that
read a byte of global memory the last alone is remembered, when another writes it.
"""
