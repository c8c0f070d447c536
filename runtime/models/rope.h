// Rotary position tables of Wan: three axes share a head's dimensions.
//
// Follows diffusers' WanRotaryPosEmbed (real form, interleaved pairs); paper: Su et al.,
// arXiv:2104.09864.
#ifndef DENOISED_RUNTIME_MODELS_ROPE_H_
#define DENOISED_RUNTIME_MODELS_ROPE_H_

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <mutex>

namespace denoised {

// cos and sin of every token and pair, float32 [S, head_dim / 2], tokens T-major then H then W.
struct RopeTables {
  at::Tensor cos;
  at::Tensor sin;
};

// Makes the tables of a grid and keeps the last few grids. Any thread.
class RopeCache {
 public:
  RopeCache(int64_t head_dim, int64_t max_positions, at::Device device)
      : head_dim_(head_dim), max_positions_(max_positions), device_(device) {}

  // grid = tokens per axis (T, H, W). INVALID_ARGUMENT where an axis has more positions than
  // rope_max_seq_len.
  RopeTables Get(const std::array<int64_t, 3>& grid) const;

 private:
  static constexpr size_t kKept = 4;
  struct Entry {
    std::array<int64_t, 3> grid{};
    RopeTables tables;
    uint64_t used = 0;
  };

  RopeTables Make(const std::array<int64_t, 3>& grid) const;

  const int64_t head_dim_;
  const int64_t max_positions_;
  const at::Device device_;
  mutable std::mutex mutex_;
  mutable std::array<Entry, kKept> entries_;
  mutable uint64_t clock_ = 0;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_ROPE_H_
