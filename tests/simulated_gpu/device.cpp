// SPDX-License-Identifier: MIT
// PyTorch's device "cuda", where there is no GPU: memory of the host, our kernels by the shim of tests/cuda_on_cpu, and
// every other operator by PyTorch's own CPU kernel on the same memory.  It must be loaded after PyTorch's libraries,
// whose own device it replaces where they have one, and before Python imports torch, which asks once whether there is a
// GPU.
//
// Stricter than a GPU: memory is NaN before it is written and after it was freed, a launch must name the current
// stream, and while a CUDA graph is captured nothing runs and nothing may be read by the host.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <sstream>

#include "launches.h"

namespace {

using c10::DispatchKey, c10::IValue;
using torch::jit::Stack;

const c10::Device kDevice(c10::DeviceType::CUDA, 0);
std::recursive_mutex one_at_a_time;  // kernels and operators, whatever thread asks for them
thread_local int64_t current_stream = 0;
bool tells_a_wrong_stream = false;  // for test_device.py

// ---- CUDA graphs.

struct Work {
  std::string name;
  std::function<void()> run;
};
struct Graph {
  std::vector<Work> work;                     // in the order of the stream
  std::vector<std::shared_ptr<void>> memory;  // allocated while it was captured: its own, also where tensors are gone
};
std::vector<std::unique_ptr<Graph>> graphs;
Graph* capturing = nullptr;

int64_t begin_capture() {
  TORCH_CHECK(!capturing, "a graph is being captured already");
  capturing = graphs.emplace_back(new Graph).get();
  return static_cast<int64_t>(graphs.size()) - 1;
}
void end_capture() { capturing = nullptr; }
void replay(int64_t graph) {
  const std::lock_guard lock(one_at_a_time);
  for (const Work& work : graphs.at(graph)->work) work.run();
}
void release(int64_t graph) { graphs.at(graph).reset(); }
std::vector<std::string> work_of(int64_t graph) {
  std::vector<std::string> names;
  for (const Work& work : graphs.at(graph)->work) names.push_back(work.name);
  return names;
}

// Of a kernel: where it lies in this library, which has no name for it that one could ask for here.
std::string name_of(const void* kernel) {
  if (!kernel) return "memset";
  Dl_info library;
  TORCH_CHECK(dladdr(kernel, &library), "a kernel lies in no library");
  std::ostringstream name;
  name << std::hex << static_cast<const char*>(kernel) - static_cast<const char*>(library.dli_fbase);
  return name.str();
}

void launch(void* stream, const void* kernel, std::function<void()> run) {
  const std::lock_guard lock(one_at_a_time);
  TORCH_CHECK(reinterpret_cast<int64_t>(stream) == current_stream, "a kernel was launched on stream ",
              reinterpret_cast<int64_t>(stream), ", and the current one is ", current_stream);
  if (capturing)
    capturing->work.push_back({name_of(kernel), std::move(run)});
  else
    run();
}
const bool launches_here = (cuda_on_cpu::take_launch = launch, true);

// ---- Memory.

constexpr size_t kQuarantine = size_t{256} << 20;

// Freed memory is NaN for as long as it is not needed: who still reads it shows.
void put_away(void* block, size_t bytes) {
  static auto& mutex = *new std::mutex;  // never destroyed: tensors are freed while the process ends, too
  static auto& freed = *new std::deque<std::pair<void*, size_t>>;
  static size_t total = 0;
  const std::lock_guard lock(mutex);
  std::memset(block, 0xff, bytes);
  freed.emplace_back(block, bytes);
  for (total += bytes; total > kQuarantine; freed.pop_front()) {
    std::free(freed.front().first);
    total -= freed.front().second;
  }
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    TORCH_CHECK_WITH(OutOfMemoryError, bytes < size_t{1} << 40, "CUDA out of memory. Tried to allocate ", bytes >> 30,
                     ".00 GiB.");
    const size_t rounded = (bytes / 512 + 1) * 512;
    void* data = std::aligned_alloc(512, rounded);
    TORCH_CHECK(data, "no memory for ", bytes, " bytes");
    std::memset(data, 0xff, rounded);
    auto* owner = new std::shared_ptr<void>(data, [rounded](void* block) { put_away(block, rounded); });
    if (capturing) capturing->memory.push_back(*owner);
    return {data, owner, raw_deleter(), kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return [](void* owner) { delete static_cast<std::shared_ptr<void>*>(owner); };
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
} memory;
const bool allocates_here = (c10::SetAllocator(c10::DeviceType::CUDA, &memory, /*priority=*/1), true);

constexpr c10::DispatchKeySet kKeys(DispatchKey::CUDA);

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, kKeys, dtype.value_or(at::get_default_dtype_as_scalartype()), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, kKeys,
                                           dtype.value_or(at::get_default_dtype_as_scalartype()));
}

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  if (self.sizes() == size) return self;
  const at::Tensor larger = empty(size, self.scalar_type(), {}, {}, {}, format);
  c10::TensorImpl* impl = self.unsafeGetTensorImpl();
  if (larger.nbytes() + self.storage_offset() * self.itemsize() > self.storage().nbytes()) {
    impl->set_storage_keep_dtype(larger.storage());
    impl->set_storage_offset(0);
  }
  impl->set_sizes_and_strides(larger.sizes(), larger.strides());
  return self;
}

at::Tensor& set_(at::Tensor& self, at::Storage storage, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  c10::TensorImpl* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(offset);
  impl->set_sizes_and_strides(size, stride);
  return self;
}

at::Tensor& set_storage_(at::Tensor& self, at::Storage storage) {
  const int64_t numel = static_cast<int64_t>(storage.nbytes() / self.itemsize());
  return set_(self, std::move(storage), 0, {numel}, {1});
}

// ---- Operators.

at::Tensor laid_out(at::Tensor t, const at::Tensor& like) {
  t.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return t;
}

at::Tensor view_of(const at::Tensor& base, const at::Tensor& like) {
  return laid_out(at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(base.storage()),
                                                           base.key_set(), like.dtype()),
                  like);
}

// The same memory, which may be freed meanwhile.
at::Tensor not_kept(const at::Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  c10::Storage storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(),
                       c10::DataPtr(const_cast<void*>(t.storage().data()), kDevice));
  return laid_out(at::detail::make_tensor<c10::TensorImpl>(std::move(storage), kKeys, t.dtype()), t);
}

// The CPU tensors that stand for the CUDA tensors of a call: in their memory, or in copies of it.
class OnHost {
 public:
  explicit OnHost(bool copies) : copies_(copies) {}

  at::Tensor host(const at::Tensor& device) {
    if (!device.defined() || !device.is_cuda()) return device;
    const c10::Storage& storage = device.storage();
    c10::Storage to(c10::Storage::use_byte_size_t(), storage.nbytes(), c10::GetCPUAllocator(), /*resizable=*/true);
    if (copies_)
      std::memcpy(to.mutable_data(), storage.data(), storage.nbytes());
    else
      to.set_data_ptr_noswap({const_cast<void*>(storage.data()), new c10::Storage(storage),
                              [](void* owner) { delete static_cast<c10::Storage*>(owner); }, c10::kCPU});
    const c10::DispatchKeySet keys(DispatchKey::CPU);
    pairs_.emplace_back(laid_out(at::detail::make_tensor<c10::TensorImpl>(std::move(to), keys, device.dtype()), device),
                        device);
    return pairs_.back().first;
  }

  // What an operator returned: an argument, a view of one, or a tensor of its own.
  at::Tensor device(const at::Tensor& result) {
    if (!result.defined()) return result;
    for (const auto& [host, device] : pairs_)
      if (host.is_same(result)) {
        if (host.sizes() != device.sizes()) {  // of an output that the operator was to size
          laid_out(resize_(device, host.sizes(), {}), host);
          if (!copies_) copy(host, device);
        } else if (host.strides() != device.strides()) {  // of one that it laid out in another order
          laid_out(device, host);
        }
        return device;
      }
    for (const auto& [host, device] : pairs_)
      if (host.storage().unsafeGetStorageImpl() == result.storage().unsafeGetStorageImpl())
        return view_of(device, result);
    at::Tensor own = empty_strided(result.sizes(), result.strides(), result.scalar_type(), {}, {}, {});
    results_.emplace_back(own);
    if (!copies_) copy(result, own);
    return own;
  }
  const std::vector<at::Tensor>& own_results() const { return results_; }

  static void copy(const at::Tensor& host, const at::Tensor& device) {
    OnHost alias(false);
    alias.host(device).copy_(host);
  }

 private:
  bool copies_;
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs_;
  std::vector<at::Tensor> results_;
};

template <typename Function>
IValue with_tensors(const IValue& value, const Function& function) {
  if (value.isTensor()) return function(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& t : value.toTensorVector()) list.push_back(function(t));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& t : value.toOptionalTensorVector())
      list.push_back(t ? std::optional(function(*t)) : std::nullopt);
    return list;
  }
  if (value.isDevice()) return c10::Device(c10::kCPU);
  return value;
}

Stack call(const c10::OperatorHandle& op, const Stack& arguments, OnHost& tensors) {
  // PyTorch's CPU kernel for the weight gradient of half types reads, in some shapes, memory that nobody wrote.
  const bool widens = op.operator_name().name == "aten::convolution_backward";
  const at::ScalarType dtype = widens ? arguments[0].toTensor().scalar_type() : at::kFloat;
  const auto cast = [&](const at::Tensor& t, at::ScalarType to) { return widens && t.defined() ? t.to(to) : t; };
  Stack stack;
  for (const IValue& a : arguments)
    stack.push_back(with_tensors(
        a, [&](const at::Tensor& t) { return cast(tensors.host(t), c10::promoteTypes(dtype, at::kFloat)); }));
  op.redispatchBoxed(c10::DispatchKeySet(DispatchKey::CPU), &stack);
  for (IValue& result : stack) result = with_tensors(result, [&](const at::Tensor& t) { return cast(t, dtype); });
  return stack;
}

bool host_waits(const std::string& name, const Stack& arguments) {
  if (name == "aten::copy_")  // not for what it is told not to wait for
    return arguments[0].toTensor().device() != arguments[1].toTensor().device() && !arguments[2].toBool();
  return name == "aten::_local_scalar_dense" || name == "aten::equal" || name == "aten::nonzero";
}

at::Generator default_generator;

// An operator that was given no generator draws from the device's.
Stack with_generator(const c10::OperatorHandle& op, Stack arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const c10::TypePtr& type = op.schema().arguments()[i].type();
    if (arguments[i].isNone() && type->isSubtypeOf(c10::OptionalType::create(c10::GeneratorType::get())))
      arguments[i] = default_generator;
  }
  return arguments;
}

void on_cpu(const c10::OperatorHandle& op, Stack* stack) {
  const std::string& name = op.operator_name().name;
  TORCH_CHECK(name.rfind("genimg_fast::", 0) != 0, name, " has no CUDA kernel");
  const std::lock_guard lock(one_at_a_time);
  const Stack arguments = with_generator(op, torch::jit::pop(*stack, op.schema().arguments().size()));
  TORCH_CHECK(!capturing || !host_waits(name, arguments), name, ": not permitted when the stream is capturing");
  OnHost tensors(/*copies=*/capturing != nullptr);  // then it runs for the shapes of its results alone
  for (const IValue& result : call(op, arguments, tensors))
    stack->push_back(with_tensors(result, [&](const at::Tensor& t) { return tensors.device(t); }));
  if (!capturing || (tensors.own_results().empty() && !op.schema().is_mutable())) return;  // a view launches nothing
  Stack read;  // the graph keeps what was allocated in it, and nothing else
  for (const IValue& a : arguments) read.push_back(a.isDevice() ? a : with_tensors(a, not_kept));
  auto run = [op, arguments = std::move(read), results = tensors.own_results()] {
    OnHost tensors(/*copies=*/false);
    size_t next = 0;
    for (const IValue& result : call(op, arguments, tensors))
      with_tensors(result, [&](const at::Tensor& t) {
        const size_t before = tensors.own_results().size();
        const at::Tensor again = tensors.device(t);
        if (tensors.own_results().size() > before) OnHost::copy(t, results.at(next++));
        return again;
      });
  };
  capturing->work.push_back({name, std::move(run)});
}

void record_stream(at::Tensor&, at::Stream) {}

// ---- What torch asks of a device.

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  static c10::Stream stream(int64_t id) { return c10::Stream(c10::Stream::UNSAFE, kDevice, id); }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(current_stream); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(0); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(1); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(1); }
  c10::Stream exchangeStream(c10::Stream s) const noexcept override {
    return stream(std::exchange(current_stream, s.id()));
  }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
};
at::RegistererCUDAHooksRegistry registered("CUDAHooks", c10::REGISTRY_PREFERRED, at::CUDAHooksRegistry(),
                                           at::RegistererCUDAHooksRegistry::DefaultCreator<Hooks>);

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>()); }

struct Silence final : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  Silence silence;  // about the kernels that are replaced
  const c10::WarningUtils::WarningHandlerGuard guard(&silence);
  for (const c10::OperatorName& op : c10::Dispatcher::singleton().getRegistrationsForDispatchKey(DispatchKey::CUDA))
    if (op.name.rfind("aten::", 0) == 0)  // a kernel for a GPU that is not there
      library.impl(toString(op).c_str(), torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("resize_", resize_);
  library.impl("set_.source_Storage_storage_offset", set_);
  library.impl("set_.source_Storage", set_storage_);
  library.impl("record_stream", record_stream);
  for (const char* name : {"copy_", "convolution", "convolution_backward"})  // which have a kernel for any device
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

TORCH_LIBRARY(simulated_gpu, library) {
  library.def("exchange_stream(int stream) -> int",
              [](int64_t stream) { return std::exchange(current_stream, stream); });
  library.def("current_stream() -> int", [] { return current_stream; });
  library.def("tell_a_wrong_stream(bool wrong) -> ()", [](bool wrong) { tells_a_wrong_stream = wrong; });
  library.def("is_capturing() -> bool", [] { return capturing != nullptr; });
  library.def("begin_capture() -> int", begin_capture);
  library.def("end_capture() -> ()", end_capture);
  library.def("replay(int graph) -> ()", replay);
  library.def("work_of(int graph) -> str[]", work_of);
  library.def("release(int graph) -> ()", release);
  library.def("set_default_generator(Generator? generator) -> ()",
              [](std::optional<at::Generator> generator) { default_generator = generator.value(); });
}

extern "C" __attribute__((visibility("default"))) int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = reinterpret_cast<void*>(tells_a_wrong_stream ? current_stream + 1 : current_stream);
  return 0;
}
