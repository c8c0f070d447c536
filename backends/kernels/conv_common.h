// What both ways of convolving share: the parts of a call that threads take, and what becomes of
// sums, a position at a time. Of the kernels alone.
#ifndef DENOISED_BACKENDS_KERNELS_CONV_COMMON_H_
#define DENOISED_BACKENDS_KERNELS_CONV_COMMON_H_

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "backends/kernels/activations.h"
#include "backends/kernels/conv.h"
#include "backends/kernels/gemm_kernels.h"
#include "backends/kernels/rounding.h"
#include "backends/stop_point.h"

namespace denoised::kernels {

// Output frames are `pieces` each, and tasks take up to `most` neighbouring ones of a frame:
// run(frame, first, count, scratch), where `new_scratch` makes a thread's own. Asks between tasks
// whether to stop.
template <class NewScratch, class Run>
void RunParts(int64_t frames, int64_t pieces, int64_t most, const RunWorkers& run_workers,
              const NewScratch& new_scratch, const Run& run) {
  const int64_t tasks_a_frame = CeilDiv(pieces, most), tasks = tasks_a_frame * frames;
  TaskShares shares(tasks);
  SharedStop stop;
  run_workers(tasks, [&](const Worker& worker) {
    const auto scratch = new_scratch();
    for (int64_t i; (i = shares.Take(worker)) >= 0 && !stop.Asked();) {
      const int64_t first = i % tasks_a_frame * most;
      run(i / tasks_a_frame, first, std::min(most, pieces - first), scratch);
    }
  });
  stop.ThrowIfAsked();
}

// One position: its sums [N, rounded up to 8] become what is stored.
template <typename T>
class Finisher {
 public:
  Finisher(const ConvolutionCall& call, int64_t n) : call_(call), n_(n) {
    root_ = static_cast<float>(std::sqrt(static_cast<double>(n)));
  }

  void Run(float* sums, int64_t frame, int64_t offset) const {
    const T* added = call_.added != nullptr ? static_cast<const T*>(call_.added[frame]) : nullptr;
    __m256 squares = _mm256_setzero_ps();
    for (int64_t c = 0; c < n_; c += kLanes) {
      __m256 x = _mm256_loadu_ps(sums + c);
      if (call_.bias != nullptr) x = _mm256_add_ps(x, _mm256_loadu_ps(call_.bias + c));
      if (added != nullptr) x = _mm256_add_ps(x, LoadSome(added + offset + c, n_ - c));
      _mm256_storeu_ps(sums + c, x);
      squares = _mm256_fmadd_ps(x, x, squares);
    }
    if (call_.out != nullptr) {
      T* out = static_cast<T*>(call_.out[frame]) + offset;
      for (int64_t c = 0; c < n_; c += kLanes) {
        StoreSome(out + c, n_ - c, _mm256_loadu_ps(sums + c));
      }
    }
    if (call_.normed != nullptr) {
      Norm(sums, squares, static_cast<T*>(call_.normed[frame]) + offset);
    }
  }

 private:
  static constexpr int64_t kLanes = 8;

  void Norm(const float* sums, __m256 squares, T* out) const {
    constexpr float kSmallestLength = 1e-12f;
    alignas(32) float lanes[kLanes];
    _mm256_store_ps(lanes, squares);
    float total = 0;
    for (const float lane : lanes) total += lane;
    const float length = std::max(std::sqrt(total), kSmallestLength);
    const __m256 scale = _mm256_set1_ps(root_ / length);
    for (int64_t c = 0; c < n_; c += kLanes) {
      __m256 x = _mm256_mul_ps(_mm256_loadu_ps(sums + c), scale);
      x = _mm256_mul_ps(x, _mm256_loadu_ps(call_.gamma + c));
      StoreSome(out + c, n_ - c, call_.silu ? Silu8(x) : x);
    }
  }

  const ConvolutionCall& call_;
  const int64_t n_;
  float root_;
};

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_CONV_COMMON_H_
