// SPDX-License-Identifier: MIT
// Global memory as a kernel may meet it that starts while the one before it still runs: NaN until its first thread has
// waited (await_previous_kernel), and what it wrote earlier is lost.
#pragma once
#include <cstddef>
#include <cstring>
#include <vector>

namespace cuda_on_cpu {

struct Bytes {
  void* data;
  size_t size;
};
inline std::vector<Bytes> arrays_of_call;  // that Python gave to the function which starts kernels now

class EarlierResults {
 public:
  EarlierResults() {
    for (const Bytes& array : arrays_of_call) {
      const auto* data = static_cast<const unsigned char*>(array.data);
      saved_.emplace_back(data, data + array.size);
    }
    for (const Bytes& array : arrays_of_call) std::memset(array.data, 0xff, array.size);
  }
  ~EarlierResults() { arrive(); }
  EarlierResults(const EarlierResults&) = delete;

  void arrive() {
    for (size_t i = 0; i < saved_.size(); ++i) std::memcpy(arrays_of_call[i].data, saved_[i].data(), saved_[i].size());
    saved_.clear();
  }

 private:
  std::vector<std::vector<unsigned char>> saved_;
};
inline EarlierResults* earlier_results = nullptr;  // of the running kernel

}  // namespace cuda_on_cpu
