// SPDX-License-Identifier: MIT
// The shim's own settings.
#include "binding.h"
#include "cuda_on_cpu.h"

CUDA_ON_CPU_BINDINGS {
  using namespace cuda_on_cpu;

  bind("set_schedule", [](const std::string& name, unsigned seed) {
    const std::map<std::string, Schedule> names = {
        {"forward", Schedule::forward}, {"reverse", Schedule::reverse}, {"random", Schedule::random}};
    if (names.count(name) == 0) throw std::invalid_argument("a schedule is 'forward', 'reverse' or 'random'");
    schedule = names.at(name);
    schedule_random.seed(seed);
  });

  bind("set_resident_blocks", [](int blocks) { resident_blocks = blocks; });

  // Marks memory that no kernel may touch, where AddressSanitizer is there to see it.
  bind("set_accessible", []([[maybe_unused]] Array array, [[maybe_unused]] bool accessible) {
#ifdef __SANITIZE_ADDRESS__
    accessible ? __asan_unpoison_memory_region(array.data, array.bytes)
               : __asan_poison_memory_region(array.data, array.bytes);
#endif
  });
}
