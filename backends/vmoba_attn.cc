// VMOBA_ATTN.
#include <algorithm>
#include <numeric>

#include "backends/chunk_choice.h"
#include "backends/sparse_backends.h"

namespace denoised {
namespace {

// The chunks of one entry of the layer cycle.
struct Chunking {
  Partition chunks;
  KeyBlocks keys;                 // the same, cut for the kernel
  std::vector<int32_t> chunk_of;  // [position]
  int64_t top_k = 1;
};

struct VmobaSetting final : SparseSetting {
  std::vector<Chunking> cycle;  // layer l uses entry l mod size
  ChunkRule rule;               // but for top_k
  bool own_chunk_only = false;  // instead of dense attention where nothing was chosen

  const Chunking& OfLayer(int64_t layer) const { return cycle[layer % cycle.size()]; }
};

Axes ChunkShape(const nlohmann::json& chunk, const Axes& grid) {
  std::vector<double> sides;
  if (chunk.is_number()) sides = {chunk.get<double>()};
  if (chunk.is_array()) {
    for (const auto& side : chunk) {
      if (side.is_number()) sides.push_back(side.get<double>());
    }
  }
  const bool counts =
      sides.size() >= 1 && sides.size() <= 3 && (!chunk.is_array() || chunk.size() == sides.size());
  if (!counts || *std::min_element(sides.begin(), sides.end()) <= 0) {
    Parameters::Refuse("chunk", "wanted t, [h, w] or [t, h, w], each above 0, or a list of those");
  }
  const auto side = [&](size_t i) { return std::max<int64_t>(1, static_cast<int64_t>(sides[i])); };
  if (sides.size() == 1) return {0, 0, 0};  // a run of tokens, see MakeChunking
  if (sides.size() == 2) return {grid[0], side(0), side(1)};
  return {side(0), side(1), side(2)};
}

// One spelling for a chunk: [t], [h, w] or [t, h, w], whole cells as ChunkShape takes them.
nlohmann::json CanonicalChunk(const nlohmann::json& chunk) {
  nlohmann::json sides = nlohmann::json::array();
  if (chunk.is_number() || chunk.size() == 1) {
    sides.push_back((chunk.is_number() ? chunk : chunk[0]).get<double>());
    return sides;
  }
  for (const auto& side : chunk) {
    sides.push_back(std::max<int64_t>(1, static_cast<int64_t>(side.get<double>())));
  }
  return sides;
}

Chunking MakeChunking(const nlohmann::json& chunk, const Axes& grid) {
  const bool temporal = chunk.is_number() || (chunk.is_array() && chunk.size() == 1);
  const Axes shape = ChunkShape(chunk, grid);
  Partition chunks;
  if (temporal) {
    const double frames = chunk.is_number() ? chunk.get<double>() : chunk[0].get<double>();
    const double run = frames * static_cast<double>(grid[1] * grid[2]);
    chunks = RunsOf(Product(grid), std::clamp<int64_t>(static_cast<int64_t>(std::min(run, 2e9)), 1,
                                                       Product(grid)));
  } else {
    chunks = TileGrid(grid, shape);
  }
  std::vector<int32_t> chunk_of;
  for (size_t c = 0; c < chunks.lengths.size(); ++c) {
    chunk_of.insert(chunk_of.end(), chunks.lengths[c], static_cast<int32_t>(c));
  }
  KeyBlocks keys(chunks);
  return {std::move(chunks), std::move(keys), std::move(chunk_of)};
}

// True for a list of chunk shapes, one a layer of the cycle.
bool IsCycle(const nlohmann::json& chunk) {
  return chunk.is_array() && !chunk.empty() &&
         std::any_of(chunk.begin(), chunk.end(), [](const auto& x) { return x.is_array(); });
}

// Queries of a band: as many as it may have, but enough bands for all threads.
int64_t BandLength(const SparseCall& call) {
  constexpr int64_t kBands = 64;
  const int64_t share = call.batch() * call.heads() * call.tokens() / kBands;
  return std::clamp<int64_t>(share / kernels::kBlock * kernels::kBlock, kernels::kBlock,
                             kernels::kBandQueries);
}

class VmobaBands final : public SparseBands {
 public:
  VmobaBands(const SparseCall& call, const Chunking& chunking, const ChunkRule& rule,
             bool own_chunk_only)
      : chunking_(chunking),
        choice_(call, chunking.chunks, chunking.chunk_of, rule),
        heads_(call.heads()),
        tokens_(call.tokens()),
        length_(BandLength(call)) {
    for (int64_t batch = 0; batch < call.batch(); ++batch) {
      // FastVideo's kernel attends everything where no query chose a chunk beside its own.
      dense_.push_back(!own_chunk_only && !choice_.AnyExtra(batch));
    }
  }

  const kernels::KeyCut& keys() const override { return chunking_.keys.cut; }
  int64_t bands() const override { return (tokens_ + length_ - 1) / length_; }

  void Make(int64_t head, int64_t band, kernels::Band* out) const override {
    const int64_t first = band * length_, count = std::min(length_, tokens_ - first);
    const auto order = chunking_.chunks.order.begin() + first;
    out->queries.assign(order, order + count);
    if (dense_[head / heads_]) {
      out->columns.resize(chunking_.keys.cut.blocks.size());
      std::iota(out->columns.begin(), out->columns.end(), 0);
      return;
    }
    std::vector<uint64_t> chosen_by(choice_.chunks() * out->words());
    choice_.Choose(head, first, count, chosen_by.data());
    AddSteps(chosen_by, out);
  }

 private:
  // [chunk][words]: which queries chose it. A step for each chunk that somebody chose.
  void AddSteps(const std::vector<uint64_t>& chosen_by, kernels::Band* out) const {
    const int64_t words = out->words();
    out->step_begin = {0};
    for (int64_t chunk = 0; chunk < choice_.chunks(); ++chunk) {
      const auto rows = chosen_by.begin() + chunk * words;
      if (std::all_of(rows, rows + words, [](uint64_t bits) { return bits == 0; })) continue;
      chunking_.keys.Append(static_cast<int32_t>(chunk), &out->columns);
      out->step_begin.push_back(static_cast<int32_t>(out->columns.size()));
      out->rows.insert(out->rows.end(), rows, rows + words);
    }
  }

  const Chunking& chunking_;
  const ChunkChoice choice_;
  const int64_t heads_, tokens_, length_;
  std::vector<bool> dense_;  // [batch]
};

}  // namespace

std::shared_ptr<SparseSetting> VmobaBackend::ReadSetting(Parameters& parameters,
                                                         const MetadataRequest& request) const {
  auto setting = std::make_shared<VmobaSetting>();
  const Axes grid = ReadGrid(parameters, request.spec);
  nlohmann::json chunk = parameters.Raw("chunk"), top_k = parameters.Raw("topk");
  if (chunk.is_null()) chunk = {{2}, {3, 4}, {4, 6, 4}};
  if (!IsCycle(chunk)) chunk = nlohmann::json::array({chunk});
  if (top_k.is_null()) top_k = 3;
  if (top_k.is_array() && top_k.size() != chunk.size()) {
    Parameters::Refuse("topk", "wanted one number, or one for each of the chunk shapes");
  }
  nlohmann::json chunks = nlohmann::json::array(), counts = nlohmann::json::array();
  for (size_t i = 0; i < chunk.size(); ++i) {
    const nlohmann::json& k = top_k.is_array() ? top_k[i] : top_k;
    if (!k.is_number_integer() || k < 1 || k > INT32_MAX) {
      Parameters::Refuse("topk", "wanted whole numbers from 1");
    }
    setting->cycle.push_back(MakeChunking(chunk[i], grid));
    setting->cycle.back().top_k = k.get<int64_t>();
    chunks.push_back(CanonicalChunk(chunk[i]));
    counts.push_back(setting->cycle.back().top_k);
  }
  parameters.Settle("chunk", chunks);
  parameters.Settle("topk", counts);
  setting->rule.by_threshold = parameters.Word("select_mode", {"threshold", "topk"}) == "threshold";
  const std::vector<std::string> types = {"query_head", "overall", "head_global", "block"};
  const std::string type = parameters.Word("select_type", types);
  setting->rule.type =
      static_cast<SelectType>(std::find(types.begin(), types.end(), type) - types.begin());
  if (!setting->rule.by_threshold && setting->rule.type == SelectType::kBlock) {
    Parameters::Refuse("select_type", "\"block\" goes with select_mode \"threshold\" only");
  }
  setting->rule.threshold = parameters.Real("threshold", 0.25, 0, 1);
  setting->own_chunk_only = parameters.Flag("own_chunk_only", false);
  return setting;
}

PlanSize VmobaBackend::SizeOf(const SparseSetting& setting, const AttentionSpec& spec) const {
  const auto& vmoba = static_cast<const VmobaSetting&>(setting);
  int64_t most = 1;  // chunks of any entry of the cycle
  for (const Chunking& chunking : vmoba.cycle) most = std::max(most, chunking.chunks.blocks());
  const int64_t runs = (spec.q_len + kernels::kBlock - 1) / kernels::kBlock;
  const int64_t spans = spec.kv_len / kernels::kBlock + most;
  const int64_t words = kernels::kBandQueries / 64;
  return {.parameter = "chunk",
          .query_blocks = runs,
          .key_blocks = most,
          .scores = spec.q_len * most,
          .entries = runs * most,
          .means = most,
          // The choice; bits and columns, which grow; the running softmax.
          .band_bytes = ChunkChoice::ChooseBytes(most, spec.head_size) +
                        most * (words * 8 * 4 + 16) + spans * 8 +
                        kernels::kBandQueries * (spec.head_size + 16) * 4,
          .kept_bytes = ChunkChoice::CutBytes(vmoba.rule, most, spec.num_heads),
          .kept_parameter = "chunk"};
}

std::unique_ptr<SparseBands> VmobaBackend::MakeBands(const SparseCall& call) const {
  const auto& setting = static_cast<const VmobaSetting&>(*call.setting);
  const Chunking& chunking = setting.OfLayer(call.inputs.layer_index);
  ChunkRule rule = setting.rule;
  rule.top_k = chunking.top_k;
  return std::make_unique<VmobaBands>(call, chunking, rule, setting.own_chunk_only);
}

}  // namespace denoised
