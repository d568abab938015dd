// SPDX-License-Identifier: MIT
// Takes the shim's launches: finds the entry of a kernel's PTX by the name of its C++ function, and lays its parameters
// out as that entry declares them.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <regex>
#include <sstream>

#include "binding.h"
#include "launches.h"
#include "ptx_on_cpu/machine.h"

namespace ptx_on_cpu {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// genimg_fast::cuda::(anonymous namespace)::kl_kernel<float, 4>, of either compiler's mangled name.
std::string name_of(const std::string& mangled) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> demangled(
      abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), std::free);
  if (status != 0) return mangled;
  // nvcc gives the unnamed namespace of each file a name of its own.
  static const std::regex unnamed("_GLOBAL__N__\\w+");
  std::string name = std::regex_replace(std::string(demangled.get()), unnamed, "(anonymous namespace)");
  if (name.compare(0, 5, "void ") == 0) name = name.substr(5);
  int depth = 0;  // of <>; the list of parameters begins at the first ( outside, which (anonymous namespace) is not
  for (size_t i = 0; i < name.size(); ++i) {
    if (name[i] == '<') ++depth;
    if (name[i] == '>') --depth;
    if (name[i] == '(' && depth == 0 && name.compare(i, 21, "(anonymous namespace)") != 0) return name.substr(0, i);
  }
  return name;
}

// The functions of this module by their addresses: kernels have no exported names, so it reads its own symbol table.
std::map<const void*, std::string> own_functions() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&own_functions), &info)) throw std::runtime_error("dladdr failed");
  const std::string file = read_file(info.dli_fname);
  const char* bytes = file.data();
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(bytes);
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(bytes + header->e_shoff);
  std::map<const void*, std::string> functions;
  for (int s = 0; s < header->e_shnum; ++s) {
    if (sections[s].sh_type != SHT_SYMTAB) continue;
    const char* names = bytes + sections[sections[s].sh_link].sh_offset;
    const auto* symbols = reinterpret_cast<const Elf64_Sym*>(bytes + sections[s].sh_offset);
    for (size_t i = 0; i < sections[s].sh_size / sizeof(Elf64_Sym); ++i)
      if (ELF64_ST_TYPE(symbols[i].st_info) == STT_FUNC && symbols[i].st_value != 0)
        functions[static_cast<const char*>(info.dli_fbase) + symbols[i].st_value] = names + symbols[i].st_name;
  }
  return functions;
}

struct Loaded {
  std::vector<Module> modules;
  std::map<std::string, std::vector<Entry*>> entries;
  int architecture = 0;  // 90
};
Loaded loaded;

void load(const std::string& path) {
  loaded.modules.push_back(parse(read_file(path), path));
  Module& module = loaded.modules.back();
  const int architecture = std::atoi(module.target.c_str() + 3);
  if (loaded.architecture != 0 && architecture != loaded.architecture)
    throw std::runtime_error(path + ": for another architecture");
  loaded.architecture = architecture;
  for (const auto& entry : module.entries) loaded.entries[name_of(entry->name)].push_back(entry.get());
}

Entry& entry_of(const void* kernel) {
  static const std::map<const void*, std::string> functions = own_functions();
  static std::map<const void*, std::string> names;
  std::string& name = names[kernel];
  if (name.empty()) {
    const auto found = functions.find(kernel);
    if (found == functions.end()) throw std::runtime_error("a kernel that is no function of this module");
    name = name_of(found->second);
  }
  const auto found = loaded.entries.find(name);
  if (found == loaded.entries.end()) throw std::runtime_error("no PTX of " + name);
  for (const Entry* other : found->second)  // of a kernel in a header, which several files have
    if (other->source != found->second.front()->source) throw std::runtime_error("two kernels have the name " + name);
  return *found->second.front();
}

void run(Entry& entry, const unsigned (&grid)[3], const unsigned (&block)[3], size_t shared_bytes,
         const std::vector<cuda_on_cpu::Parameter>& parameters) {
  if (entry.code.empty()) decode(entry);
  const auto& declared = entry.parameters;
  if (declared.size() != parameters.size()) throw std::runtime_error(entry.name + ": another number of parameters");
  const std::unique_ptr<unsigned char, void (*)(void*)> memory(
      static_cast<unsigned char*>(std::aligned_alloc(128, (entry.parameter_bytes + 255) / 128 * 128)), std::free);
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (declared[i].bytes != parameters[i].bytes)
      throw std::runtime_error(entry.name + ": parameter " + std::to_string(i) + " has " +
                               std::to_string(declared[i].bytes) + " bytes in PTX, and " +
                               std::to_string(parameters[i].bytes) + " in C++");
    std::memcpy(memory.get() + declared[i].offset, parameters[i].value, parameters[i].bytes);
  }
  Launch launch{&entry, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_bytes, memory.get(),
                {},     loaded.architecture >= 90};
  const uint64_t threads = static_cast<uint64_t>(block[0]) * block[1] * block[2];
  if (threads == 0 || threads > 1024 ||
      (entry.most_threads != 0 && threads > static_cast<uint64_t>(entry.most_threads)) || grid[0] == 0 ||
      grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535 || shared_bytes > 227 * 1024)
    throw std::runtime_error("invalid launch: grid (" + std::to_string(grid[0]) + "," + std::to_string(grid[1]) + "," +
                             std::to_string(grid[2]) + "), " + std::to_string(threads) + " threads a block, " +
                             std::to_string(shared_bytes) + " bytes of shared memory");
  for (const cuda_on_cpu::Bytes& array : cuda_on_cpu::arrays_of_call) {
    const uint64_t begin = reinterpret_cast<uint64_t>(array.data);
    launch.arrays.emplace_back(begin, begin + array.size);
  }
  run_grid(launch);
}

}  // namespace
}  // namespace ptx_on_cpu

CUDA_ON_CPU_BINDINGS {
  using cuda_on_cpu::bind;

  // Kernels that are launched from now on are those of this file too.
  bind("load_ptx", [](const std::string& path) {
    ptx_on_cpu::load(path);
    cuda_on_cpu::run_instead = [](const void* kernel, const auto& grid, const auto& block, size_t shared_bytes,
                                  const std::vector<cuda_on_cpu::Parameter>& parameters) {
      ptx_on_cpu::run(ptx_on_cpu::entry_of(kernel), grid, block, shared_bytes, parameters);
    };
  });
  // Launches one block of a kernel that exists as PTX alone and takes two pointers.
  bind("run_ptx", [](const std::string& name, unsigned threads, int64_t shared_bytes, const void* in, void* out) {
    auto found = ptx_on_cpu::loaded.entries.find(name);
    if (found == ptx_on_cpu::loaded.entries.end()) throw std::runtime_error("no PTX of " + name);
    ptx_on_cpu::run(*found->second.front(), {1, 1, 1}, {threads, 1, 1}, shared_bytes, {{&in, 8}, {&out, 8}});
  });
  // Decodes every kernel, also those that are never launched; how many there are.
  bind("decode_ptx", [] {
    int64_t count = 0;
    for (auto& [name, entries] : ptx_on_cpu::loaded.entries)
      for (ptx_on_cpu::Entry* entry : entries) {
        if (entry->code.empty()) ptx_on_cpu::decode(*entry);
        ++count;
      }
    return count;
  });
  // C++ again.
  bind("unload_ptx", [] {
    ptx_on_cpu::loaded = {};
    cuda_on_cpu::run_instead = nullptr;
  });
}
