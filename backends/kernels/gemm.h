// One packed matrix product for the CPU: y = x W^T + b, W packed once.
//
// Torch-free. The bits of an output element depend on its row of x, its row of W, K and the
// instruction set, never on the number of rows, the batch, the number of threads or where in a tile
// it stands: each element is one chain of multiply-adds over a piece of K, from zero, and the
// pieces are added in order (Goto and van de Geijn, ACM TOMS 34(3), 2008, for the blocking). With
// float32 units AVX2 and AVX-512 give the same bits; pairs of bfloat16 (VDPBF16PS, and again
// TDPBF16PS) give others than bfloat16 that was widened.
//
// In int8 (W8A8) every output column of W has a scale, made once, and every row of x one, made in
// the call: the largest magnitude at 127, elements rounded to nearest, ties to even (int8_rule.h).
// Sums are whole numbers, and exact, so that here all instruction sets give the same bits:
// float(sum) * (scale of the row * scale of the column), then bias and activation as without.
#ifndef DENOISED_BACKENDS_KERNELS_GEMM_H_
#define DENOISED_BACKENDS_KERNELS_GEMM_H_

#include <cstdint>
#include <functional>
#include <span>

#include "backends/attention_spec.h"
#include "backends/kernels/block_sparse.h"
#include "backends/kernels/buffer.h"
#include "backends/kernels/gemm_tile.h"

namespace denoised::kernels {

// What a kernel is written for, and how it holds W: a row each in the table of gemm_kernels.cc.
enum class GemmIsa : uint8_t {
  kAvx2,  // float32, and bfloat16 widened in registers
  kAvx512,
  kAvx512Bf16,  // bfloat16 only, as the next
  kAmxBf16,
  kAvx2Int8,  // int8 as 16-bit words
  kAvx512Int8,
  kVnniInt8,  // int8 as bytes
  kAmxInt8,
};
inline constexpr GemmIsa kAllGemmIsas[] = {
    GemmIsa::kAvx2,     GemmIsa::kAvx512,     GemmIsa::kAvx512Bf16, GemmIsa::kAmxBf16,
    GemmIsa::kAvx2Int8, GemmIsa::kAvx512Int8, GemmIsa::kVnniInt8,   GemmIsa::kAmxInt8};
const char* GemmIsaName(GemmIsa isa);
bool IsInt8(GemmIsa isa);
// Whether it multiplies rows of `element`.
bool Takes(GemmIsa isa, Element element);
// Whether `cpu` has the instructions.
bool HasGemmIsa(GemmIsa isa, const DeviceInfo& cpu);

// The widest on this CPU that multiplies `element` as it is.
GemmIsa BestGemmIsa(Element element, const DeviceInfo& cpu);
// The same in int8.
GemmIsa Int8GemmIsa(const DeviceInfo& cpu);
// The widest whose tiles take rows as a convolution lays them: not those of AMX.
GemmIsa BestConvolutionIsa(Element element, const DeviceInfo& cpu);

// Largest K in int8: more could sum to what 32 bits do not hold.
inline constexpr int64_t kMostInt8K = 131072;

// Puts rows `first` to `first + count` of a matrix, row-major, to `out`. Any threads at once.
using RowReader = std::function<void(int64_t first, int64_t count, void* out)>;

// Hears of rows of which all columns are there, from the thread that wrote the last of them. Each
// row once; any threads at once.
using RowsDone = std::function<void(int64_t first, int64_t count)>;

struct GemmKernel;  // gemm_kernels.h
struct RowSource;   // gemm_pack.h

// W [N, K] as the kernel reads it. Immutable once made; any thread.
class WeightPanels {
 public:
  // `weight` is row-major, of `element`; so will be x and y. In int8 an output column whose weights
  // are not all finite is NaN, and K is at most kMostInt8K.
  WeightPanels(const void* weight, Element element, int64_t n, int64_t k, GemmIsa isa,
               const RunWorkers& run_workers = RunHere);
  // The same of rows that are read as they are packed, some at a time. Has stop points; what `read`
  // throws is thrown.
  WeightPanels(const RowReader& read, Element element, int64_t n, int64_t k, GemmIsa isa,
               const RunWorkers& run_workers = RunHere);

  // The weights that it was made from, row-major, bit for bit. Not in int8.
  void Unpack(void* weight, const RunWorkers& run_workers) const;

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  Element element() const { return element_; }
  GemmIsa isa() const;
  int64_t bytes() const;

  // For the driver.
  const GemmKernel& kernel() const { return kernel_; }
  int64_t units() const { return units_; }
  int64_t panels() const { return panels_; }
  int64_t unit_bytes() const { return unit_bytes_; }  // of all columns of a panel
  const char* Panel(int64_t index, int64_t unit) const {
    return data_.get() + (index * units_ + unit) * unit_bytes_;
  }
  // Int8 only: [panels * kPanelColumns], what a column's sums are worth and what they lack.
  const float* scales() const { return scales_.get(); }
  const int32_t* offsets() const { return offsets_.get(); }

 private:
  WeightPanels(Element element, int64_t n, int64_t k, GemmIsa isa);
  void ForPanels(const RunWorkers& run_workers,
                 const std::function<void(int64_t panel)>& work) const;
  // The panel that begins with row `first` of `rows`.
  void PackInto(int64_t panel, const RowSource& rows, int64_t first);

  const GemmKernel& kernel_;
  const Element element_;
  const int64_t n_, k_, units_, panels_, unit_bytes_;
  Buffer<char> data_;
  Buffer<float> scales_;
  Buffer<int32_t> offsets_;
};

// x and y are rows of the weights' element type; strides in elements.
struct GemmCall {
  int64_t rows = 0;
  const void* x = nullptr;  // [rows][K]
  int64_t x_stride = 0;
  void* y = nullptr;  // [rows][N]
  int64_t y_stride = 0;
  const float* bias = nullptr;  // [N] or null
  Activation activation = Activation::kNone;
  // The end of a residual branch, instead of writing y: add_to += gate * result, in float32
  // whatever the weights' element is.
  float* add_to = nullptr;      // [rows][N], y_stride apart
  const float* gate = nullptr;  // rows of [N], one for so many rows of x; null: ones
  int64_t gate_stride = 0, rows_a_gate = 1;
  const int32_t* gate_index = nullptr;  // which row of the gate each time; null: one after another
  // Puts rows of x, dense, where x is null; a row may be asked for more than once.
  const RowReader* read = nullptr;
};

// A call and its weights.
struct GemmProduct {
  GemmCall call;
  const WeightPanels* weight;
};

// Asks between pieces of work whether to stop (backends/stop_point.h): then y is half written. In
// int8 a row of x that is not all finite is NaN. `kernel` stands in for the instruction set's own:
// how one is tested where its instructions are missing.
void Gemm(const GemmCall& call, const WeightPanels& weight, const RunWorkers& run_workers,
          const GemmTileKernel* kernel = nullptr);

// Several products of the same rows (x, x_stride, read and rows alike) with weights of one kind,
// element and K: the rows are packed once. Bits as of one call each. `done` and `read` run between
// tiles, and do not call a product; what they throw is thrown, when the other threads are through.
void GemmMany(std::span<const GemmProduct> products, const RunWorkers& run_workers,
              const GemmTileKernel* kernel = nullptr, const RowsDone& done = {});

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_GEMM_H_
