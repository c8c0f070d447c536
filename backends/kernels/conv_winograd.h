// Convolutions of 3x3 positions (and any number of frames) by Winograd's minimal filtering
// F(2x2, 3x3): four neighbouring results of a channel from sixteen products where conv.h takes
// thirty-six. Lavin and Gray, "Fast algorithms for convolutional neural networks" (2015,
// arXiv:1509.09308).
//
// Torch-free, float32. Patches of 4x4 positions become sixteen numbers a channel by sums of four;
// each of the sixteen is a matrix product on packed panels (gemm.h), in which frames and channels
// are summed as conv.h sums them. Patches lie where even rows and columns of the whole frame begin:
// the bits of a position depend on what conv.h's depend on and on whether its row and column are
// even, and on no call's extent. The transforms round as well: an error is a few times conv.h's.
#ifndef DENOISED_BACKENDS_KERNELS_CONV_WINOGRAD_H_
#define DENOISED_BACKENDS_KERNELS_CONV_WINOGRAD_H_

#include <cstdint>
#include <vector>

#include "backends/kernels/conv.h"
#include "backends/kernels/gemm.h"

namespace denoised::kernels {

// Points of a patch, and the products.
inline constexpr int64_t kWinogradPoints = 16;

class WinogradWeight {
 public:
  // Whether it is worth it: a 3x3 kernel of float32 whose transformed weights stay in a cache that
  // cores share.
  static bool Suits(const Taps& taps, int64_t channels, int64_t n, Element element, GemmIsa isa);

  // What it takes.
  static int64_t BytesOf(const Taps& taps, int64_t channels, int64_t n);

  // `weight` [N][taps][channels] of float32.
  WinogradWeight(const float* weight, const Taps& taps, int64_t channels, int64_t n, GemmIsa isa,
                 const RunWorkers& run_workers);

  const WeightPanels& point(int64_t i) const { return points_[static_cast<size_t>(i)]; }

 private:
  std::vector<WeightPanels> points_;  // [N][frames][channels] each
};

// As Convolve, of float32 and taps with 3 rows and 3 columns.
void ConvolveWinograd(const ConvolutionCall& call, const WinogradWeight& weight,
                      const RunWorkers& run_workers);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_CONV_WINOGRAD_H_
