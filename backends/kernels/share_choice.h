// ChooseShare (row_choice.h) for many queries at once: the same choice, but for the rounding of
// float64 sums and of what they are held against.
#ifndef DENOISED_BACKENDS_KERNELS_SHARE_CHOICE_H_
#define DENOISED_BACKENDS_KERNELS_SHARE_CHOICE_H_

#include <array>
#include <cstdint>
#include <vector>

#include "backends/kernels/gates.h"
#include "backends/kernels/row_choice.h"
#include "backends/kernels/thread_buffer.h"

namespace denoised::kernels {

// What one thread needs for it.
class ShareChoice {
 public:
  ShareChoice(const GateKernels& kernels, int64_t chunks);

  // Bytes that it holds.
  static int64_t Bytes(int64_t chunks);

  // gates[chunk][kGateLanes] of `count` queries, with values in every lane; they are stretched in
  // place. chosen[chunk * stride] becomes a bit for each query that chose the chunk: its own, and
  // the largest of the others until together they hold `share`, one at least.
  void Run(float* gates, int count, const int32_t* own, double share, uint64_t* chosen,
           int64_t stride);

 private:
  // Entries of a query between its floor and its ceiling; with more it is chosen for alone.
  static constexpr int kMostWithin = 32;
  static constexpr uint8_t kTooMany = kMostWithin + 1;

  void Measure(float* gates, int count, const int32_t* own, double share);
  void FindCeilings();
  void ListWithin(const float* gates, uint64_t queries);
  bool TakeWithin(const float* gates, int query, uint64_t* chosen, int64_t stride);
  void ChooseAlone(const float* gates, int query, int32_t own, double share, uint64_t* chosen,
                   int64_t stride);

  const GateKernels& kernels_;
  const int64_t chunks_;
  const int digits_;  // of the floors
  const ThreadBuffer<uint64_t> within_;
  std::array<double, kGateLanes> totals_, needed_, sums_;
  std::array<float, kGateLanes> own_value_, wanted_, floors_, ceilings_;
  std::array<uint8_t, kGateLanes> entries_;
  std::array<std::array<uint64_t, kMostWithin>, kGateLanes> entry_;
  std::vector<float> row_;
  ChoiceScratch scratch_;
  std::vector<int32_t> alone_;
};

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_SHARE_CHOICE_H_
