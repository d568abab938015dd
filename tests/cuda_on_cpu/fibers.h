// SPDX-License-Identifier: MIT
// One fiber a CUDA thread, and the scheduler that runs the fibers of one block after the other.
//
// The scheduler is depth-first: the threads that a barrier has just released run before any other.  Under the forward
// schedule warp 0 thus goes as far as it can before warp 1 starts, and under the reverse one the last warp does, so
// that a result that needs a barrier which is not there is read before it is written.
#pragma once
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// CUDA's built-in variables.  The scheduler sets them whenever it resumes a thread.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_on_cpu {

enum class Schedule { forward, reverse, random };
inline Schedule schedule = Schedule::forward;
inline std::mt19937 schedule_random;

constexpr int kWarp = 32;
constexpr int kWarpgroup = 128;
constexpr size_t kIdlePolls = 64;  // a thread: so many that under the random schedule none is left out
constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kPage = 64 * 1024;  // no less than any machine's page

// The stacks, kept from launch to launch, with an inaccessible page below each: an overflow faults at once.
inline char* stack_of(int thread) {
  static std::vector<char*> stacks;
  while (static_cast<int>(stacks.size()) <= thread) {
    void* memory = mmap(nullptr, kPage + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) throw std::bad_alloc();
    stacks.push_back(static_cast<char*>(memory) + kPage);
  }
  return stacks[thread];
}

inline bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

// A copy that cp.async has begun.
struct AsyncCopy {
  void* shared;
  const void* global;  // nullptr: zeros
  int bytes;
};

// Where a kernel stands, by default where this is called.  As std::source_location, which C++17 lacks: that is what the
// oldest torch compiles kernels as, and so do we here.
struct Site {
  const char* file = "";
  int line = 0;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

struct Fiber {
  enum class State { ready, at_block_barrier, at_warp_operation, at_warpgroup_operation, polling, returned };

  int thread;
  State state = State::ready;
  // What a thread that waits is waiting at.
  const char* operation = "";
  cuda_on_cpu::Site site;
  unsigned mask = 0;
  const void* operand = nullptr;  // on this fiber's stack
  void* result = nullptr;         // on this fiber's stack

  std::vector<AsyncCopy> open_group;                     // cp.async not yet committed
  std::vector<std::vector<AsyncCopy>> committed_groups;  // oldest first

  bool awaited = false;  // the kernel before this one
  bool started = false;
  ucontext_t entry;
  jmp_buf resume_point;
  void* sanitizer_stack = nullptr;
};

class Block;
inline Block* running_block = nullptr;

// What a block leaves behind in other headers of the shim: called when its last thread has returned; may throw.
inline std::function<void()> at_end_of_block;

// The threads of one block, from their start to their return.
class Block {
 public:
  Block(dim3 size, const std::function<void()>& body)
      : size_(size), body_(body), fibers_(size.x * size.y * size.z), all_(fibers_.size()) {
    std::iota(all_.begin(), all_.end(), 0);
    for (int i : all_) fibers_[i].thread = i;
    make_ready(all_);
    at_end_of_block = nullptr;  // of a block that threw
  }

  void run() {
    running_block = this;
    for (size_t returned = 0; returned < fibers_.size();) {
      if (ready_.empty()) throw std::runtime_error("divergent barrier, the block cannot go on: " + describe_waiting());
      if (schedule == Schedule::random) std::swap(ready_[schedule_random() % ready_.size()], ready_.back());
      current_ = &fibers_[ready_.back()];
      ready_.pop_back();
      current_->state = Fiber::State::ready;
      resume();
      if (error_) std::rethrow_exception(error_);
      returned += current_->state == Fiber::State::returned;
    }
    if (at_end_of_block) std::exchange(at_end_of_block, nullptr)();
  }

  Fiber& current() { return *current_; }
  bool all_awaited() const {
    return std::all_of(fibers_.begin(), fibers_.end(), [](const Fiber& f) { return f.awaited; });
  }

  // All threads of the block meet here: none may have returned, and none may be at another barrier.
  void block_barrier(cuda_on_cpu::Site site) {
    wait_at(Fiber::State::at_block_barrier, "__syncthreads", site);
    if (++at_block_barrier_ == fibers_.size()) {
      for (const Fiber& f : fibers_)
        if (f.site.line != site.line || !same(f.site.file, site.file))
          throw std::runtime_error("divergent barrier, the block meets at different places: " + describe_waiting());
      at_block_barrier_ = 0;
      make_ready(all_);
    }
    suspend();
  }

  // The four warps of this thread's warpgroup meet here.  The last thread to arrive calls combine(fibers),
  // [kWarpgroup].
  template <typename Combine>
  void warpgroup_operation(const char* operation, const void* operand, cuda_on_cpu::Site site, const Combine& combine) {
    wait_at(Fiber::State::at_warpgroup_operation, operation, site);
    current_->operand = operand;
    const int first = current_->thread / kWarpgroup * kWarpgroup;
    if (first + kWarpgroup > static_cast<int>(fibers_.size()))
      throw std::runtime_error(std::string(operation) + " needs a warpgroup of 128 threads");
    bool complete = true;
    for (int i = 0; complete && i < kWarpgroup; ++i) {
      const Fiber& f = fibers_[first + i];
      complete =
          f.state == Fiber::State::at_warpgroup_operation && same(f.operation, operation) && f.site.line == site.line;
    }
    if (complete) {
      combine(&fibers_[first]);
      make_ready(std::vector<int>(all_.begin() + first, all_.begin() + first + kWarpgroup));
    }
    suspend();
  }

  // Waits until over(), which other threads make true: they run first.
  template <typename Over>
  void poll(const char* operation, cuda_on_cpu::Site site, const Over& over) {
    for (; !over(); suspend()) {
      wait_at(Fiber::State::polling, operation, site);
      ready_.insert(ready_.begin(), current_->thread);
      auto is_polling = [&](int t) { return fibers_[t].state == Fiber::State::polling; };
      if (++idle_polls_ > kIdlePolls * fibers_.size() && std::all_of(ready_.begin(), ready_.end(), is_polling))
        throw std::runtime_error("the block cannot go on: " + describe_waiting());
    }
    progress();
  }
  // What a polling thread waits for may have happened.
  void progress() { idle_polls_ = 0; }

  // The lanes of `mask` meet here.  The last to arrive calls combine(lanes), which reads the lanes' operands and writes
  // their results; lanes[i] is nullptr for a lane that does not take part.
  template <typename Combine>
  void warp_operation(const char* operation, unsigned mask, const void* operand, void* result, cuda_on_cpu::Site site,
                      const Combine& combine) {
    Fiber& me = *current_;
    const int warp = me.thread / kWarp * kWarp;
    wait_at(Fiber::State::at_warp_operation, operation, site);
    me.mask = mask;
    me.operand = operand;
    me.result = result;
    if (!(mask >> (me.thread - warp) & 1))
      throw std::runtime_error("a lane is not in its own mask: " + describe_waiting());
    Fiber* lanes[kWarp] = {};
    bool complete = true;
    for (int lane = 0; complete && lane < kWarp && warp + lane < static_cast<int>(fibers_.size()); ++lane) {
      if (!(mask >> lane & 1)) continue;
      Fiber& f = fibers_[warp + lane];
      complete = f.state == Fiber::State::at_warp_operation && f.mask == mask && same(f.operation, operation);
      lanes[lane] = &f;
    }
    if (complete) {
      combine(lanes);
      std::vector<int> members;
      for (const Fiber* lane : lanes)
        if (lane) members.push_back(lane->thread);
      make_ready(members);
    }
    suspend();
  }

 private:
  void wait_at(Fiber::State state, const char* operation, cuda_on_cpu::Site site) {
    current_->state = state;
    current_->operation = operation;
    current_->site = site;
  }

  // `ready_` is a stack: what is pushed last runs first.
  void make_ready(const std::vector<int>& threads) {
    progress();
    for (int t : threads) fibers_[t].state = Fiber::State::ready;
    if (schedule == Schedule::reverse)
      ready_.insert(ready_.end(), threads.begin(), threads.end());
    else
      ready_.insert(ready_.end(), threads.rbegin(), threads.rend());
  }

  std::string describe_waiting() const {
    std::map<std::string, int> groups;
    for (const Fiber& f : fibers_) {
      if (f.state == Fiber::State::ready) continue;
      std::string where = "returned";
      if (f.state != Fiber::State::returned) {
        const std::string file = f.site.file;
        where = std::string("at ") + f.operation + " (" + file.substr(file.find_last_of('/') + 1) + ":" +
                std::to_string(f.site.line) + ")";
      }
      ++groups[where];
    }
    std::string text;
    for (const auto& [where, count] : groups)
      text += (text.empty() ? "" : ", ") + std::to_string(count) + (count == 1 ? " thread " : " threads ") + where;
    return text + "; block (" + std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y) + "," +
           std::to_string(blockIdx.z) + ") of " + std::to_string(fibers_.size()) + " threads";
  }

  // ---- Switching.  makecontext starts a fiber; _setjmp and _longjmp switch, since swapcontext enters the kernel.

  void resume() {
    Fiber& f = *current_;
    threadIdx = {f.thread % size_.x, f.thread / size_.x % size_.y, f.thread / (size_.x * size_.y)};
    before_switch(&scheduler_sanitizer_stack_, stack_of(f.thread), kStackBytes);
    if (_setjmp(scheduler_point_) == 0) {
      if (f.started) _longjmp(f.resume_point, 1);
      start(f);
    }
    after_switch(scheduler_sanitizer_stack_, nullptr, nullptr);
  }

  [[noreturn]] void start(Fiber& f) {
    f.started = true;
    char* stack = stack_of(f.thread);
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(stack, kStackBytes);  // of the frames that an earlier block left there
#endif
    getcontext(&f.entry);
    f.entry.uc_stack.ss_sp = stack;
    f.entry.uc_stack.ss_size = kStackBytes;
    f.entry.uc_link = nullptr;
    makecontext(&f.entry, [] { running_block->thread_main(); }, 0);
    setcontext(&f.entry);
    std::terminate();  // setcontext returns on failure only
  }

  [[noreturn]] void thread_main() {
    after_switch(nullptr, &scheduler_stack_, &scheduler_stack_bytes_);
    try {
      body_();
    } catch (...) {
      error_ = std::current_exception();
    }
    current_->state = Fiber::State::returned;
    before_switch(nullptr, scheduler_stack_, scheduler_stack_bytes_);
    _longjmp(scheduler_point_, 1);
  }

  void suspend() {
    Fiber& f = *current_;
    if (_setjmp(f.resume_point) == 0) {
      before_switch(&f.sanitizer_stack, scheduler_stack_, scheduler_stack_bytes_);
      _longjmp(scheduler_point_, 1);
    }
    after_switch(current_->sanitizer_stack, nullptr, nullptr);
  }

  // AddressSanitizer must be told which stack it is on.
  static void before_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* stack,
                            [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(save, stack, bytes);
#endif
  }
  static void after_switch([[maybe_unused]] void* saved, [[maybe_unused]] const void** left,
                           [[maybe_unused]] size_t* left_bytes) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(saved, left, left_bytes);
#endif
  }

  const dim3 size_;
  const std::function<void()>& body_;
  std::vector<Fiber> fibers_;
  std::vector<int> all_;
  std::vector<int> ready_;
  size_t at_block_barrier_ = 0;
  size_t idle_polls_ = 0;  // one after the other, since something last happened
  Fiber* current_ = nullptr;
  std::exception_ptr error_;

  jmp_buf scheduler_point_;
  void* scheduler_sanitizer_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
};

}  // namespace cuda_on_cpu
