// W of a packed product (gemm.h): how it is packed, and comes back.
#include <sys/mman.h>

#include <algorithm>

#include "backends/kernels/gemm.h"
#include "backends/kernels/gemm_kernels.h"
#include "backends/kernels/gemm_pack.h"
#include "backends/kernels/thread_buffer.h"
#include "backends/kernels/workers.h"
#include "backends/stop_point.h"

namespace denoised::kernels {
namespace {

// Has the kernel map fresh memory that is to be written: a fault for each page of a large model
// took a sixth of a start (row A12). Best effort: kernels before Linux 5.14 refuse.
void MapForWriting(char* data, int64_t bytes) {
  constexpr int64_t kWorthACall = 1 << 16;
  constexpr uintptr_t kPage = 4096;
  if (bytes < kWorthACall) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_WRITE);
}

}  // namespace

WeightPanels::WeightPanels(Element element, int64_t n, int64_t k, GemmIsa isa)
    : kernel_(KernelOf(isa)),
      element_(element),
      n_(n),
      k_(k),
      units_(kernel_.Units(k)),
      panels_(CeilDiv(n, kPanelColumns)),
      unit_bytes_(kPanelColumns * kernel_.PanelUnitBytes(element)),
      data_(Allocate<char>(panels_ * units_ * unit_bytes_)) {
  if (!kernel_.int8()) return;
  scales_ = Allocate<float>(panels() * kPanelColumns);
  offsets_ = Allocate<int32_t>(panels() * kPanelColumns);
}

WeightPanels::WeightPanels(const void* weight, Element element, int64_t n, int64_t k, GemmIsa isa,
                           const RunWorkers& run_workers)
    : WeightPanels(element, n, k, isa) {
  const RowSource rows{weight, element, n, k, k};
  ForPanels(run_workers, [&](int64_t panel) { PackInto(panel, rows, panel * kPanelColumns); });
}

WeightPanels::WeightPanels(const RowReader& read, Element element, int64_t n, int64_t k,
                           GemmIsa isa, const RunWorkers& run_workers)
    : WeightPanels(element, n, k, isa) {
  SharedStop stop;
  ForPanels(run_workers, [&](int64_t panel) {
    if (stop.Asked()) return;
    const int64_t first = panel * kPanelColumns,
                  count = std::min<int64_t>(n - first, kPanelColumns);
    const ThreadBuffer<char> room(count * k * ElementBytes(element));
    read(first, count, room.get());
    PackInto(panel, {room.get(), element, count, k, k}, 0);
  });
  stop.ThrowIfAsked();
}

void WeightPanels::ForPanels(const RunWorkers& run_workers,
                             const std::function<void(int64_t panel)>& work) const {
  TaskShares tasks(panels());
  run_workers(panels(), [&](const Worker& worker) {
    for (int64_t panel; (panel = tasks.Take(worker)) >= 0;) work(panel);
  });
}

void WeightPanels::PackInto(int64_t panel, const RowSource& rows, int64_t first) {
  const int64_t column = panel * kPanelColumns;
  float* const scales = scales_ ? scales_.get() + column : nullptr;
  int32_t* const offsets = offsets_ ? offsets_.get() + column : nullptr;
  const int64_t bytes = units() * unit_bytes();
  char* const data = data_.get() + panel * bytes;
  MapForWriting(data, bytes);
  PackPanel(kernel_, rows, first, data, scales, offsets);
}

void WeightPanels::Unpack(void* weight, const RunWorkers& run_workers) const {
  ForPanels(run_workers, [&](int64_t panel) {
    const int64_t first = panel * kPanelColumns;
    const int64_t columns = std::min<int64_t>(n_ - first, kPanelColumns);
    char* const to = static_cast<char*>(weight) + first * k_ * ElementBytes(element_);
    UnpackPanel(kernel_, element_, Panel(panel, 0), columns, k_, to);
  });
}

GemmIsa WeightPanels::isa() const { return kernel_.isa; }

int64_t WeightPanels::bytes() const {
  constexpr int64_t kScaleAndOffset = 8;
  const int64_t of_columns = kernel_.int8() ? kPanelColumns * kScaleAndOffset : 0;
  return panels() * (units() * unit_bytes() + of_columns);
}

}  // namespace denoised::kernels
