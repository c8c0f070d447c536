// One packed matrix product for the CPU: y = x W^T + b, W packed once.
//
// Torch-free. The bits of an output element depend on its row of x, its row of W, K and the
// instruction set, never on the number of rows, the batch, the number of threads or where in a tile
// it stands: each element is one chain of multiply-adds over a piece of K, from zero, and the
// pieces are added in order (Goto and van de Geijn, ACM TOMS 34(3), 2008, for the blocking). With
// float32 units AVX2 and AVX-512 give the same bits; pairs of bfloat16 (VDPBF16PS) give others than
// bfloat16 that was widened.
#ifndef DENOISED_BACKENDS_KERNELS_GEMM_H_
#define DENOISED_BACKENDS_KERNELS_GEMM_H_

#include <cstdint>

#include "backends/attention_spec.h"
#include "backends/kernels/block_sparse.h"
#include "backends/kernels/buffer.h"

namespace denoised::kernels {

enum class GemmIsa : uint8_t { kAvx2, kAvx512, kAvx512Bf16 };
const char* GemmIsaName(GemmIsa isa);

// The widest that multiplies `element` on this CPU.
GemmIsa BestGemmIsa(Element element, const DeviceInfo& cpu);

// W [N, K] as the kernel reads it. Immutable once made; any thread.
class WeightPanels {
 public:
  // `weight` is row-major, of `element`. kAvx512Bf16 takes bfloat16 only.
  WeightPanels(const void* weight, Element element, int64_t n, int64_t k, GemmIsa isa);

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  Element element() const { return element_; }
  GemmIsa isa() const { return isa_; }
  int64_t bytes() const { return panels() * panel_bytes(); }

  // For the driver. A unit is one k, or two where `pairs`.
  bool pairs() const { return isa_ == GemmIsa::kAvx512Bf16; }
  int64_t units() const { return pairs() ? (k_ + 1) / 2 : k_; }
  int64_t panels() const;
  int64_t unit_bytes() const;  // of all columns of a panel
  int64_t panel_bytes() const { return units() * unit_bytes(); }
  const char* Panel(int64_t index, int64_t unit) const {
    return data_.get() + index * panel_bytes() + unit * unit_bytes();
  }

 private:
  void PackPanel(const void* weight, int64_t panel);

  const Element element_;
  const GemmIsa isa_;
  const int64_t n_, k_;
  Buffer<char> data_;
};

enum class Activation : uint8_t { kNone, kGeluTanh, kSilu };

// x and y are rows of the weights' element type; strides in elements.
struct GemmCall {
  int64_t rows = 0;
  const void* x = nullptr;  // [rows][K]
  int64_t x_stride = 0;
  void* y = nullptr;  // [rows][N]
  int64_t y_stride = 0;
  const float* bias = nullptr;  // [N] or null
  Activation activation = Activation::kNone;
};

// Asks between pieces of work whether to stop (backends/stop_point.h): then y is half written.
void Gemm(const GemmCall& call, const WeightPanels& weight, const RunWorkers& run_workers);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_GEMM_H_
