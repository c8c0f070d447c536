#include "backends/kernels/gemm.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "backends/kernels/gemm_kernels.h"
#include "backends/kernels/gemm_pack.h"
#include "backends/kernels/thread_buffer.h"
#include "backends/kernels/workers.h"
#include "backends/stop_point.h"

namespace denoised::kernels {
namespace {

// Most rows of a task: their part of a piece stays in a core's cache while panels stream past.
// Twice as many where they are narrow: what all cores stream is read from a cache that they share.
constexpr int64_t kTaskRows = 96;
constexpr int64_t kNarrowBytes = int64_t{192} << 10;  // of twice as many
// So few blocks are equally high but for a step, though tiles are cut short for it: else a thread
// would have a tile or more to wait for. Of more blocks the last one has what is left.
constexpr int64_t kFewBlocks = 8;
// Panels whose sums are held at once.
constexpr int64_t kMostGroupPanels = 8;
// Weights that stay in a core's cache of 1 MiB whatever the order of the tasks.
constexpr int64_t kNearBytes = int64_t{768} << 10;
// Tiles that a panel serves once it has come nearer still: of near weights where tasks are enough
// without fewer, of far ones always.
constexpr int64_t kLeastTiles = 4;
// So many threads can end rows of far weights, which come near once more for each.
constexpr int64_t kEnds = 4;
// Multiply-adds that take no longer than waking another thread.
constexpr int64_t kFewMultiplyAdds = int64_t{1} << 18;

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

// Neighbouring panels of one product.
struct PanelGroup {
  const GemmProduct* product;
  int64_t begin, end;
};

class GemmRunner {
 public:
  GemmRunner(std::span<const GemmProduct> products, const GemmTileKernel& tile,
             const RowsDone& done)
      : products_(products),
        kernel_(products[0].weight->kernel()),
        tile_(tile),
        source_(RowsOf(products[0])),
        read_(products[0].call.read),
        done_(done),
        units_(products[0].weight->units()),
        piece_units_(kernel_.piece_units()),
        tiles_(CeilDiv(source_.rows, tile_rows_)) {
    ShareOut();
    if (!done_) return;
    left_ = std::vector<std::atomic<int64_t>>(blocks_);
    for (std::atomic<int64_t>& shares : left_) shares = shares_;
  }

  void Run(const RunWorkers& run_workers) {
    TaskShares tasks(blocks_ * shares_);
    const auto work = [&](const Worker& worker) {
      Desk desk(*this);
      const KernelSession session(tile_);
      for (int64_t i; (i = tasks.Take(worker)) >= 0;) {
        if (!RunTask(i / shares_, i % shares_, &desk)) return;
      }
    };
    if (IsSmall()) {
      work({});
    } else {
      run_workers(blocks_ * shares_, work);
    }
    stop_.ThrowIfAsked();
  }

 private:
  // A thread's own: a block of rows as tiles read them, and the sums of a group of panels.
  struct Desk {
    explicit Desk(const GemmRunner& runner)
        : made(runner.read_ != nullptr ? runner.RowBytes() * runner.tile_rows_ : 0),
          rows(runner.block_tiles_ * runner.tile_rows_ * runner.units_),
          scales(runner.block_tiles_ * runner.tile_rows_),
          sums(runner.block_tiles_ * runner.tile_rows_ * kMostGroupPanels * kPanelColumns) {}
    const ThreadBuffer<char> made;           // a tile's rows, where x does not hold them
    int64_t block = -1;                      // whose rows these are
    int64_t first_row = 0, tiles = 0;        // its
    int64_t last_rows = 0, last_height = 0;  // of its last tile: the others are whole
    int64_t soon_step = 0;                   // bytes of a unit of panels that a tile fetches
    const ThreadBuffer<uint32_t> rows;
    const ThreadBuffer<float> scales, sums;
  };

  bool IsSmall() const {
    int64_t columns = 0;
    for (const GemmProduct& product : products_) columns += product.weight->n();
    return tiles_ * tile_rows_ * columns * products_[0].weight->k() <= kFewMultiplyAdds;
  }

  // A task is a block of rows against a share of the groups of panels. Each thread packs the rows
  // that it takes and streams the panels: where these are near, blocks are low, so that each thread
  // has two at least, else high, but for some more where one thread had what ends all rows to do.
  // Shares make up for what tasks lack.
  void ShareOut() {
    // Tasks enough for every core to have some, and for the last ones to end about together. How
    // rows and columns are shared out changes no bit.
    const int64_t threads = HardwareThreads(), wanted = std::max<int64_t>(16, 8 * threads);
    int64_t panels = 0;
    for (const GemmProduct& product : products_) panels += product.weight->panels();
    const bool near = panels * units_ * products_[0].weight->unit_bytes() <= kNearBytes;
    const bool narrow = 2 * kTaskRows * units_ * 4 <= kNarrowBytes;
    const int64_t tallest = (narrow ? 2 : 1) * kTaskRows / tile_rows_;
    const int64_t least = std::min(kLeastTiles, tallest);
    int64_t lowest = tallest;
    if (near) {
      lowest = std::clamp<int64_t>(tiles_ / (2 * threads), 1, least);
    } else if (done_) {
      lowest = std::clamp(CeilDiv(tiles_, kEnds), least, tallest);
    }
    const int64_t tiles = std::min(tiles_, std::clamp(tiles_ / wanted, lowest, tallest));
    blocks_ = CeilDiv(tiles_, tiles);
    const int64_t step = blocks_ <= kFewBlocks ? kernel_.row_step() : tile_rows_;
    block_rows_ = CeilDiv(CeilDiv(source_.rows, blocks_), step) * step;
    block_tiles_ = CeilDiv(block_rows_, tile_rows_);
    blocks_ = CeilDiv(source_.rows, block_rows_);
    Group(std::clamp<int64_t>(panels * blocks_ / wanted, 1, kMostGroupPanels));
    shares_ = std::min(CeilDiv(wanted, blocks_), static_cast<int64_t>(groups_.size()));
  }

  void Group(int64_t width) {
    for (const GemmProduct& product : products_) {
      const int64_t panels = product.weight->panels();
      for (int64_t p = 0; p < panels; p += width) {
        groups_.push_back({&product, p, std::min(panels, p + width)});
      }
    }
  }

  int64_t RowBytes() const { return source_.k * ElementBytes(source_.element); }

  // Whether to go on.
  bool RunTask(int64_t block, int64_t share, Desk* desk) {
    const int64_t groups = static_cast<int64_t>(groups_.size());
    for (int64_t g = share * groups / shares_; g < (share + 1) * groups / shares_; ++g) {
      if (stop_.Asked()) return false;
      if (desk->block != block) PackBlock(block, desk);
      RunGroup(groups_[g], *desk);
    }
    if (done_ && --left_[block] == 0) {
      done_(desk->first_row, EndOf(block) - desk->first_row);
    }
    return true;
  }

  void PackBlock(int64_t block, Desk* desk) const {
    desk->block = block;
    desk->first_row = block * block_rows_;
    const int64_t step = kernel_.row_step(), rows = EndOf(block) - desk->first_row;
    desk->tiles = CeilDiv(rows, tile_rows_);
    desk->last_rows = rows - (desk->tiles - 1) * tile_rows_;
    desk->last_height = CeilDiv(desk->last_rows, step) * step;
    desk->soon_step = products_[0].weight->unit_bytes() / desk->tiles;
    for (int64_t t = 0; t < desk->tiles; ++t) {
      int64_t first = desk->first_row + t * tile_rows_;
      RowSource source = source_;
      if (read_ != nullptr) {
        source = {desk->made.get(), source_.element, RowsIn(*desk, t), source_.k, source_.k};
        (*read_)(first, source.rows, desk->made.get());
        first = 0;
      }
      PackTileRows(kernel_, source, first, HeightOf(*desk, t),
                   desk->rows.get() + t * tile_rows_ * units_, desk->scales.get() + t * tile_rows_);
    }
  }

  // All of K for a block of rows against some panels.
  void RunGroup(const PanelGroup& group, const Desk& desk) const {
    for (int64_t unit = 0; unit < units_; unit += piece_units_) {
      for (int64_t p = group.begin; p < group.end; ++p) RunPiece(group, p, unit, desk);
    }
  }

  // A piece of K for one panel.
  void RunPiece(const PanelGroup& group, int64_t panel, int64_t unit, const Desk& desk) const {
    const WeightPanels& weight = *group.product->weight;
    const int64_t count = std::min(piece_units_, units_ - unit), tiles = desk.tiles;
    const bool first = unit == 0, last = unit + count == units_;
    const int64_t tile_sums = tile_rows_ * kPanelColumns;
    GemmTile tile{};
    tile.panel = weight.Panel(panel, unit);
    tile.units = count;
    tile.first = first;
    tile.sums = desk.sums.get() + (first && last ? 0 : (panel - group.begin) * tiles * tile_sums);
    tile.sum_stride = kPanelColumns;
    tile.soon =
        panel + 1 < group.end ? weight.Panel(panel + 1, unit) : AfterPiece(group, unit, count);
    tile.soon_step = desk.soon_step;  // each tile fetches its part of the next
    GemmFinish finish = last ? FinishOf(*group.product, panel, desk.first_row) : GemmFinish{};
    for (int64_t t = 0; t < tiles; ++t) {
      tile.height = HeightOf(desk, t);
      tile.rows = desk.rows.get() + t * tile_rows_ * units_ + unit * tile.height;
      last ? RunLast(*group.product, panel, t, desk, tile, &finish) : tile_.run(tile);
      if (!(first && last)) tile.sums += tile_sums;
      tile.soon += tile.soon_step * count;
    }
  }

  // The panel that is read when all of the group have had this piece.
  static const char* AfterPiece(const PanelGroup& group, int64_t unit, int64_t count) {
    const WeightPanels& weight = *group.product->weight;
    if (unit + count < weight.units()) return weight.Panel(group.begin, unit + count);
    return weight.Panel(group.end < weight.panels() ? group.end : group.begin, 0);
  }

  // The last piece of K of the block's t-th tile: its sums become results while they are near.
  void RunLast(const GemmProduct& product, int64_t panel, int64_t t, const Desk& desk,
               const GemmTile& tile, GemmFinish* finish) const {
    const GemmCall& call = product.call;
    const int64_t first = desk.first_row + t * tile_rows_, column = panel * kPanelColumns;
    finish->sums = tile.sums;
    finish->rows = static_cast<int>(RowsIn(desk, t));
    const float* gates[kMostTileRows];
    if (call.gate != nullptr) finish->gates = GatesOf(call, first, finish->rows, column, gates);
    FetchResults(*finish);
    if (tile_.run_last != nullptr) {
      tile_.run_last(tile, *finish);
    } else {
      tile_.run(tile);
      if (kernel_.int8()) {
        const WeightPanels& weight = *product.weight;
        for (int64_t r = 0; r < finish->rows; ++r) {
          ScaleSums(tile.sums + r * kPanelColumns, desk.scales[t * tile_rows_ + r],
                    weight.scales() + column, weight.offsets() + column, kPanelColumns);
        }
      }
      kernel_.finish(*finish);
    }
    const int64_t step = tile_rows_ * finish->stride;
    if (finish->y != nullptr)
      finish->y = static_cast<char*>(finish->y) + step * ResultBytes(*finish);
    if (finish->add_to != nullptr) finish->add_to += step;
  }

  // Begins to bring near what will be written, while the tile is multiplied.
  static void FetchResults(const GemmFinish& finish) {
    const int64_t size = ResultBytes(finish), last = finish.columns * size - 1;
    const void* const to = finish.add_to != nullptr ? finish.add_to : finish.y;
    const char* row = static_cast<const char*>(to);
    for (int r = finish.rows; r > 0; --r, row += finish.stride * size) {
      __builtin_prefetch(row, 1);
      __builtin_prefetch(row + last, 1);
    }
  }

  // Of a number.
  static int64_t ResultBytes(const GemmFinish& finish) {
    return finish.half && finish.add_to == nullptr ? 2 : 4;
  }

  // What all tiles of a block have alike, and where the results of its first row go.
  GemmFinish FinishOf(const GemmProduct& product, int64_t panel, int64_t first_row) const {
    const GemmCall& call = product.call;
    const WeightPanels& weight = *product.weight;
    const int64_t column = panel * kPanelColumns;
    const int64_t at = first_row * call.y_stride + column;
    GemmFinish finish{};
    finish.columns = static_cast<int>(std::min<int64_t>(weight.n() - column, kPanelColumns));
    finish.bias = call.bias != nullptr ? call.bias + column : nullptr;
    finish.activation = call.activation;
    finish.half = weight.element() == Element::kBFloat16;
    finish.stride = call.y_stride;
    if (call.y != nullptr) finish.y = static_cast<char*>(call.y) + at * (finish.half ? 2 : 4);
    if (call.add_to != nullptr) finish.add_to = call.add_to + at;
    return finish;
  }

  static const float* const* GatesOf(const GemmCall& call, int64_t first, int64_t rows,
                                     int64_t column, const float** gates) {
    int64_t nth = first / call.rows_a_gate, end = (nth + 1) * call.rows_a_gate;
    for (int64_t r = 0; r < rows; ++nth, end += call.rows_a_gate) {  // a gate at a time
      const int64_t row = call.gate_index != nullptr ? call.gate_index[nth] : nth;
      const float* const gate = call.gate + row * call.gate_stride + column;
      for (; r < rows && first + r < end; ++r) gates[r] = gate;
    }
    return gates;
  }

  static RowSource RowsOf(const GemmProduct& product) {
    const GemmCall& call = product.call;
    return {call.x, product.weight->element(), call.rows, product.weight->k(), call.x_stride};
  }

  int64_t EndOf(int64_t block) const { return std::min(source_.rows, (block + 1) * block_rows_); }
  int64_t RowsIn(const Desk& desk, int64_t tile) const {
    return tile + 1 < desk.tiles ? tile_rows_ : desk.last_rows;
  }
  // Rows that are multiplied, some of which may not be there.
  int HeightOf(const Desk& desk, int64_t tile) const {
    return static_cast<int>(tile + 1 < desk.tiles ? tile_rows_ : desk.last_height);
  }

  const std::span<const GemmProduct> products_;
  const GemmKernel& kernel_;
  const GemmTileKernel& tile_;
  const RowSource source_;
  const RowReader* const read_;
  const RowsDone& done_;
  const int64_t units_, piece_units_;
  const int64_t tile_rows_ = kernel_.tile_rows(), tiles_;
  int64_t block_rows_ = 1, block_tiles_ = 1, blocks_ = 1, shares_ = 1;
  std::vector<PanelGroup> groups_;
  std::vector<std::atomic<int64_t>> left_;  // [block]: shares, where somebody is told of the last
  SharedStop stop_;
};

}  // namespace

const GemmTileKernel& GemmKernelOf(const WeightPanels& weight) {
  const GemmKernel& kernel = weight.kernel();
  const bool halves = kernel.half_tile.run != nullptr && weight.element() == Element::kBFloat16;
  return halves ? kernel.half_tile : kernel.tile;
}

void Gemm(const GemmCall& call, const WeightPanels& weight, const RunWorkers& run_workers,
          const GemmTileKernel* kernel) {
  const GemmProduct product{call, &weight};
  GemmMany({&product, 1}, run_workers, kernel);
}

void GemmMany(std::span<const GemmProduct> products, const RunWorkers& run_workers,
              const GemmTileKernel* kernel, const RowsDone& done) {
  if (products.empty() || products[0].call.rows <= 0) return;
  const GemmTileKernel& own = GemmKernelOf(*products[0].weight);
  GemmRunner(products, kernel != nullptr ? *kernel : own, done).Run(run_workers);
}

}  // namespace denoised::kernels
