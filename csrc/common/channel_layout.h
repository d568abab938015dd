// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

namespace genimg_fast {

// How an image lies in memory: [N, H, W, C] or [N, C, H, W].
enum class MemoryOrder { channels_last, nchw };

// A dense tensor as memory sees its channels: element (o, c, i) lies at (o * channels + c) * inner + i.
//   NCHW           outer = N,     inner = H*W: a channel is a set of planes
//   channels_last  outer = N*H*W, inner = 1:   a channel is a column of rows
//   [N, C]         outer = N,     inner = 1
struct ChannelLayout {
  int64_t outer, channels, inner;

  int64_t per_channel() const { return outer * inner; }
  int64_t numel() const { return outer * channels * inner; }
};

}  // namespace genimg_fast
