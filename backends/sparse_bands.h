// Bands of the sparse backends (kernels/bands.h): from a choice of key blocks for each query block,
// and turned into what tools, tests and CUDA want of them: pairs of tokens and a plan.
#ifndef DENOISED_BACKENDS_SPARSE_BANDS_H_
#define DENOISED_BACKENDS_SPARSE_BANDS_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "backends/kernels/bands.h"
#include "backends/kernels/block_sparse.h"
#include "backends/kernels/row_choice.h"
#include "backends/tiling.h"

namespace denoised {

class SparseBands : public kernels::BandMaker {
 public:
  // What the bands of two heads have in common.
  enum class Common : uint8_t {
    kAll,      // one list for all heads
    kQueries,  // the queries of each band
    kNothing,
  };
  virtual Common common() const { return Common::kQueries; }
};

// How queries and keys of a row chooser are cut. Made once for as long as the geometry stays.
struct RowGeometry {
  RowGeometry(const Partition& queries, const Partition& keys);

  Partition queries;
  KeyBlocks keys;
  // A band is a query block, or a piece of one too long for a band.
  struct Piece {
    int32_t block, first, length;  // positions of the queries' order
  };
  std::vector<Piece> pieces;
};

// Bands in which all queries of a block attend the same key blocks.
class RowBands : public SparseBands {
 public:
  explicit RowBands(std::shared_ptr<const RowGeometry> geometry) : geometry_(std::move(geometry)) {}

  const kernels::KeyCut& keys() const final { return geometry_->keys.cut; }
  int64_t bands() const final { return static_cast<int64_t>(geometry_->pieces.size()); }
  void Make(int64_t head, int64_t band, kernels::Band* out) const override;

 protected:
  // The key blocks, ascending, that `block` of `head` (of batch * heads) attends. Any thread.
  virtual void ChooseRow(int64_t head, int64_t block, kernels::ChoiceScratch* scratch,
                         std::vector<int32_t>* chosen) const = 0;

  const RowGeometry& geometry() const { return *geometry_; }

 private:
  const std::shared_ptr<const RowGeometry> geometry_;
};

// The bands of heads first .. first + heads - 1 as a plan with a list each, or with one for all
// where they are alike. Heads without common queries go one at a time.
kernels::BlockPlan PlanOfBands(const SparseBands& bands, int64_t first, int64_t heads);

// [heads][token]: the token whose output each token has, itself where it was not dropped.
std::vector<int64_t> SourcesOfBands(const SparseBands& bands, int64_t head, int64_t tokens);

// [batch, heads, S_q, S_kv] bool: what the bands let through; nothing for a dropped query.
at::Tensor PairsOfBands(const SparseBands& bands, int64_t batch, int64_t heads, int64_t q_len,
                        int64_t kv_len);

}  // namespace denoised

#endif  // DENOISED_BACKENDS_SPARSE_BANDS_H_
