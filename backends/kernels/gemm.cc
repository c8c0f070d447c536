#include "backends/kernels/gemm.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>

#include "backends/kernels/activations.h"
#include "backends/kernels/gemm_kernels.h"
#include "backends/kernels/gemm_pack.h"
#include "backends/kernels/rounding.h"
#include "backends/stop_point.h"

namespace denoised::kernels {
namespace {

// Units that are summed from zero before they are added to the rest.
constexpr int64_t kPieceUnits = 256;
// Rows and panels of a task: their part of x, of the weights and of the sums stay in a core's
// cache.
constexpr int64_t kTaskRows = 96;
constexpr int64_t kMostTaskPanels = 8;
// Rows that are packed before they are multiplied, in units.
constexpr int64_t kMostPackedUnits = int64_t{8} << 20;

// Of a short call: enough for every core to have some. How columns are shared out changes no bit.
int64_t WantedTasks() {
  static const int64_t cores = std::thread::hardware_concurrency();
  return std::max<int64_t>(16, 2 * cores);
}

// ---- results -----------------------------------------------------------------------------------

constexpr int64_t kLanes = 8;

// Eight of `from`; the last ones may lie past its end: zeros.
__m256 LoadEight(const float* from, int64_t left) {
  if (left >= kLanes) return _mm256_loadu_ps(from);
  alignas(32) float padded[kLanes] = {};
  std::memcpy(padded, from, static_cast<size_t>(left) * 4);
  return _mm256_load_ps(padded);
}

template <typename T>
void StoreSome(T* to, int64_t left, __m256 x) {
  if (left >= kLanes) return StoreEight(to, x);
  T rounded[kLanes];
  StoreEight(rounded, x);
  std::memcpy(to, rounded, static_cast<size_t>(left) * sizeof(T));
}

// One row of a task: sums + bias, activated, to where the call wants it. Sums are padded to whole
// panels; the other pointers are at the row's first column of the task, and may be null.
template <typename T>
void FinishRow(const float* sums, const float* bias, Activation activation, int64_t columns, T* y,
               float* add_to, const float* gate) {
  for (int64_t n = 0; n < columns; n += kLanes) {
    const int64_t left = columns - n;
    __m256 x = _mm256_loadu_ps(sums + n);
    if (bias != nullptr) x = _mm256_add_ps(x, LoadEight(bias + n, left));
    if (activation == Activation::kGeluTanh) x = GeluTanh8(x);
    if (activation == Activation::kSilu) x = Silu8(x);
    if (add_to == nullptr) {
      StoreSome(y + n, left, x);
      continue;
    }
    if (gate != nullptr) x = _mm256_mul_ps(x, LoadEight(gate + n, left));
    StoreSome(add_to + n, left, _mm256_add_ps(LoadEight(add_to + n, left), x));
  }
}

// ---- one call ----------------------------------------------------------------------------------

// Frames what a thread does with a tile kernel.
class KernelSession {
 public:
  explicit KernelSession(const GemmTileKernel& kernel) : kernel_(kernel) {
    if (kernel_.begin != nullptr) kernel_.begin();
  }
  ~KernelSession() {
    if (kernel_.end != nullptr) kernel_.end();
  }
  KernelSession(const KernelSession&) = delete;
  KernelSession& operator=(const KernelSession&) = delete;

 private:
  const GemmTileKernel& kernel_;
};

class GemmRunner {
 public:
  GemmRunner(std::span<const GemmProduct> products, const GemmTileKernel& tile)
      : products_(products),
        kernel_(products[0].weight->kernel()),
        tile_(tile),
        source_(RowsOf(products[0])),
        units_(products[0].weight->units()) {}

  void Run(const RunWorkers& run_workers) {
    const int64_t tiles = CeilDiv(source_.rows, tile_rows_);
    const int64_t at_once = std::clamp<int64_t>(kMostPackedUnits / (units_ * tile_rows_),
                                                task_tiles_, tiles + task_tiles_) /
                            task_tiles_ * task_tiles_;
    packed_ = Allocate<uint32_t>(std::min(at_once, tiles) * tile_rows_ * units_);
    if (kernel_.int8()) scales_ = Allocate<float>(std::min(at_once, tiles) * tile_rows_);
    for (int64_t first = 0; first < tiles; first += at_once) {
      RunTiles(first, std::min(tiles, first + at_once), run_workers);
      stop_.ThrowIfAsked();
    }
  }

 private:
  void RunTiles(int64_t first, int64_t last, const RunWorkers& run_workers) {
    packed_first_ = first;
    std::atomic<int64_t> next{first};
    run_workers(last - first, [&] {
      for (int64_t t; (t = next.fetch_add(1)) < last;) {
        PackTileRows(kernel_, source_, t * tile_rows_, HeightOf(t), Packed(t), Scales(t));
      }
    });
    const int64_t row_blocks = CeilDiv(last - first, task_tiles_);
    int64_t panels = 0, tasks = 0;
    for (const GemmProduct& product : products_) panels += product.weight->panels();
    const int64_t width =
        std::clamp<int64_t>(panels * row_blocks / WantedTasks(), 1, kMostTaskPanels);
    for (const GemmProduct& product : products_) {
      tasks += row_blocks * CeilDiv(product.weight->panels(), width);
    }
    std::atomic<int64_t> task{0};
    run_workers(tasks, [&] {
      const Buffer<float> sums =
          Allocate<float>(task_tiles_ * tile_rows_ * kMostTaskPanels * kPanelColumns);
      const KernelSession session(tile_);
      for (int64_t i; (i = task.fetch_add(1)) < tasks && !stop_.Asked();) {
        const int64_t tile = first + i % row_blocks * task_tiles_;
        const auto [product, panel] = ColumnsOf(i / row_blocks, width);
        const int64_t end = std::min(product->weight->panels(), panel + width);
        RunTask(*product, tile, std::min(last, tile + task_tiles_), panel, end, sums.get());
      }
    });
  }

  // The product and first panel of the `index`th `width` panels over all products.
  std::pair<const GemmProduct*, int64_t> ColumnsOf(int64_t index, int64_t width) const {
    const GemmProduct* product = products_.data();
    for (int64_t of_it; index >= (of_it = CeilDiv(product->weight->panels(), width)); ++product) {
      index -= of_it;
    }
    return {product, index * width};
  }

  // All of K for some tiles of rows against some panels.
  void RunTask(const GemmProduct& product, int64_t tile_begin, int64_t tile_end,
               int64_t panel_begin, int64_t panel_end, float* sums) const {
    const int64_t stride = (panel_end - panel_begin) * kPanelColumns;
    for (int64_t unit = 0; unit < units_; unit += kPieceUnits) {
      const int64_t count = std::min(kPieceUnits, units_ - unit);
      for (int64_t p = panel_begin; p < panel_end; ++p) {
        for (int64_t t = tile_begin; t < tile_end; ++t) {
          const int height = HeightOf(t);
          tile_.run(
              {Packed(t) + unit * height, product.weight->Panel(p, unit), count, height, unit == 0,
               sums + (t - tile_begin) * tile_rows_ * stride + (p - panel_begin) * kPanelColumns,
               stride});
        }
      }
    }
    Finish(product, tile_begin, tile_end, panel_begin, panel_end, sums);
  }

  void Finish(const GemmProduct& product, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
              int64_t panel_end, float* sums) const {
    const WeightPanels& weight = *product.weight;
    const int64_t stride = (panel_end - panel_begin) * kPanelColumns;
    const int64_t column = panel_begin * kPanelColumns;
    const int64_t columns = std::min(weight.n(), panel_end * kPanelColumns) - column;
    const int64_t begin = tile_begin * tile_rows_;
    const int64_t end = std::min(source_.rows, tile_end * tile_rows_);
    for (int64_t row = begin; row < end; ++row, sums += stride) {
      if (kernel_.int8()) {
        ScaleSums(sums, Scales(tile_begin)[row - begin], weight.scales() + column,
                  weight.offsets() + column, stride);
      }
      if (weight.element() == Element::kFloat32) {
        FinishTo<float>(product.call, row, column, columns, sums);
      } else {
        FinishTo<uint16_t>(product.call, row, column, columns, sums);
      }
    }
  }

  static const float* GateOf(const GemmCall& call, int64_t row) {
    const int64_t nth = row / call.rows_a_gate;
    return call.gate + (call.gate_index != nullptr ? call.gate_index[nth] : nth) * call.gate_stride;
  }

  template <typename T>
  static void FinishTo(const GemmCall& call, int64_t row, int64_t column, int64_t columns,
                       const float* sums) {
    const int64_t at = row * call.y_stride + column;
    const float* const bias = call.bias != nullptr ? call.bias + column : nullptr;
    const float* const gate = call.gate != nullptr ? GateOf(call, row) + column : nullptr;
    FinishRow(sums, bias, call.activation, columns,
              call.y != nullptr ? static_cast<T*>(call.y) + at : nullptr,
              call.add_to != nullptr ? call.add_to + at : nullptr, gate);
  }

  static RowSource RowsOf(const GemmProduct& product) {
    const GemmCall& call = product.call;
    return {call.x, product.weight->element(), call.rows, product.weight->k(), call.x_stride};
  }

  int HeightOf(int64_t tile) const {
    const int64_t left = source_.rows - tile * tile_rows_, step = kernel_.row_step();
    return static_cast<int>(std::min(tile_rows_, CeilDiv(left, step) * step));
  }
  uint32_t* Packed(int64_t tile) const {
    return packed_.get() + (tile - packed_first_) * tile_rows_ * units_;
  }
  float* Scales(int64_t tile) const {  // null but in int8
    return kernel_.int8() ? scales_.get() + (tile - packed_first_) * tile_rows_ : nullptr;
  }

  const std::span<const GemmProduct> products_;
  const GemmKernel& kernel_;
  const GemmTileKernel& tile_;
  const RowSource source_;
  const int64_t units_;
  const int64_t tile_rows_ = kernel_.tile_rows(), task_tiles_ = kTaskRows / tile_rows_;
  int64_t packed_first_ = 0;  // the tile that packed_ and scales_ begin with
  Buffer<uint32_t> packed_;
  Buffer<float> scales_;
  SharedStop stop_;
};

}  // namespace

const GemmTileKernel& GemmKernelOf(const WeightPanels& weight) {
  const GemmKernel& kernel = weight.kernel();
  const bool halves = kernel.half_tile.run != nullptr && weight.element() == Element::kBFloat16;
  return halves ? kernel.half_tile : kernel.tile;
}

void RunHere(int64_t /*tasks*/, const std::function<void()>& worker) { worker(); }

WeightPanels::WeightPanels(const void* weight, Element element, int64_t n, int64_t k, GemmIsa isa,
                           const RunWorkers& run_workers)
    : kernel_(KernelOf(isa)), element_(element), n_(n), k_(k) {
  const int64_t panel_bytes = units() * unit_bytes();
  data_ = Allocate<char>(panels() * panel_bytes);
  if (kernel_.int8()) {
    scales_ = Allocate<float>(panels() * kPanelColumns);
    offsets_ = Allocate<int32_t>(panels() * kPanelColumns);
  }
  const RowSource source{weight, element, n, k, k};
  std::atomic<int64_t> next{0};
  run_workers(panels(), [&] {
    for (int64_t panel; (panel = next.fetch_add(1)) < panels();) {
      const int64_t first = panel * kPanelColumns;
      float* const scales = scales_ ? scales_.get() + first : nullptr;
      int32_t* const offsets = offsets_ ? offsets_.get() + first : nullptr;
      PackPanel(kernel_, source, first, data_.get() + panel * panel_bytes, scales, offsets);
    }
  });
}

void WeightPanels::Unpack(void* weight, const RunWorkers& run_workers) const {
  std::atomic<int64_t> next{0};
  run_workers(panels(), [&] {
    for (int64_t panel; (panel = next.fetch_add(1)) < panels();) {
      const int64_t first = panel * kPanelColumns;
      const int64_t columns = std::min<int64_t>(n_ - first, kPanelColumns);
      char* const to =
          static_cast<char*>(weight) + first * k_ * (element_ == Element::kFloat32 ? 4 : 2);
      UnpackPanel(kernel_, element_, Panel(panel, 0), columns, k_, to);
    }
  });
}

GemmIsa WeightPanels::isa() const { return kernel_.isa; }
int64_t WeightPanels::units() const { return kernel_.Units(k_); }
int64_t WeightPanels::panels() const { return CeilDiv(n_, kPanelColumns); }
int64_t WeightPanels::unit_bytes() const {
  return kPanelColumns * kernel_.PanelUnitBytes(element_);
}

int64_t WeightPanels::bytes() const {
  constexpr int64_t kScaleAndOffset = 8;
  const int64_t of_columns = kernel_.int8() ? kPanelColumns * kScaleAndOffset : 0;
  return panels() * (units() * unit_bytes() + of_columns);
}

void Gemm(const GemmCall& call, const WeightPanels& weight, const RunWorkers& run_workers,
          const GemmTileKernel* kernel) {
  const GemmProduct product{call, &weight};
  GemmMany({&product, 1}, run_workers, kernel);
}

void GemmMany(std::span<const GemmProduct> products, const RunWorkers& run_workers,
              const GemmTileKernel* kernel) {
  if (products.empty() || products[0].call.rows <= 0) return;
  const GemmTileKernel& own = GemmKernelOf(*products[0].weight);
  GemmRunner(products, kernel != nullptr ? *kernel : own).Run(run_workers);
}

}  // namespace denoised::kernels
