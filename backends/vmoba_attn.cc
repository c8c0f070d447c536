// VMOBA_ATTN.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backends/sparse_backends.h"
#include "backends/stop_point.h"

namespace denoised {
namespace {

enum class SelectType { kQueryHead, kOverall, kHeadGlobal, kBlock };

// The chunks of one entry of the layer cycle.
struct Chunking {
  Partition chunks;
  Partition queries;              // the same order, cut for the kernel
  std::vector<int32_t> chunk_of;  // [position]
  int64_t top_k = 1;
};

struct VmobaSetting final : SparseSetting {
  std::vector<Chunking> cycle;  // layer l uses entry l mod size
  bool by_threshold = true;
  SelectType type = SelectType::kQueryHead;
  double threshold = 0.25;
  bool own_chunk_only = false;  // instead of dense attention where nothing was chosen
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
  Chunking chunking;
  if (temporal) {
    const double frames = chunk.is_number() ? chunk.get<double>() : chunk[0].get<double>();
    const double run = frames * static_cast<double>(grid[1] * grid[2]);
    chunking.chunks =
        RunsOf(Product(grid),
               std::clamp<int64_t>(static_cast<int64_t>(std::min(run, 2e9)), 1, Product(grid)));
  } else {
    chunking.chunks = TileGrid(grid, shape);
  }
  chunking.queries = RunsOf(Product(grid), kernels::kBlock);
  chunking.queries.order = chunking.chunks.order;
  for (size_t c = 0; c < chunking.chunks.lengths.size(); ++c) {
    chunking.chunk_of.insert(chunking.chunk_of.end(), chunking.chunks.lengths[c],
                             static_cast<int32_t>(c));
  }
  return chunking;
}

// True for a list of chunk shapes, one a layer of the cycle.
bool IsCycle(const nlohmann::json& chunk) {
  return chunk.is_array() && !chunk.empty() &&
         std::any_of(chunk.begin(), chunk.end(), [](const auto& x) { return x.is_array(); });
}

// Gates of one batch row, [chunk][head][position] as FastVideo lays them out, and what is chosen.
struct Gates {
  int64_t chunks, heads, positions;
  std::vector<float> value;
  std::vector<uint8_t> chosen;
  int64_t At(int64_t chunk, int64_t head, int64_t position) const {
    return (chunk * heads + head) * positions + position;
  }
};

Gates MakeGates(const SparseCall& call, const Chunking& chunking, int64_t batch) {
  Gates gates{chunking.chunks.blocks(), call.heads(), call.tokens(), {}, {}};
  gates.value.resize(gates.chunks * gates.heads * gates.positions);
  gates.chosen.assign(gates.value.size(), 0);
  const int64_t size = call.head_size();
  SharedStop stop;
  at::parallel_for(0, gates.heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> query(size);
    for (int64_t head = begin; head < end; ++head) {
      const int64_t row = batch * gates.heads + head;
      const std::vector<float> means = kernels::BlockMeans(
          call.Rows(call.host_key, row), chunking.chunks.order, chunking.chunks.lengths);
      for (int64_t position = 0; position < gates.positions; ++position) {
        if (position % kernels::kBlock == 0 && stop.Asked()) return;
        kernels::LoadRow(call.Rows(call.host_query, row), chunking.chunks.order[position],
                         query.data());
        for (int64_t chunk = 0; chunk < gates.chunks; ++chunk) {
          gates.value[gates.At(chunk, head, position)] =
              kernels::Dot(query.data(), means.data() + chunk * size, size);
        }
      }
    }
  });
  stop.ThrowIfAsked();
  return gates;
}

// The entries that compete with each other, by their index into Gates::value.
std::vector<std::vector<int64_t>> Groups(const Gates& gates, SelectType type) {
  const int64_t columns = gates.heads * gates.positions, all = gates.chunks * columns;
  const int64_t count = type == SelectType::kQueryHead    ? columns
                        : type == SelectType::kHeadGlobal ? gates.heads
                        : type == SelectType::kBlock      ? gates.chunks
                                                          : 1;
  std::vector<std::vector<int64_t>> groups(count);
  for (auto& group : groups) group.reserve(all / count);
  for (int64_t i = 0; i < all; ++i) {
    const int64_t group = type == SelectType::kQueryHead    ? i % columns
                          : type == SelectType::kHeadGlobal ? i / gates.positions % gates.heads
                          : type == SelectType::kBlock      ? i / columns
                                                            : 0;
    groups[group].push_back(i);
  }
  return groups;
}

// Larger gate first, then lower index.
auto ByGate(const Gates& gates) {
  return [&gates](int64_t a, int64_t b) {
    const float x = RankOf(gates.value[a]), y = RankOf(gates.value[b]);
    return x > y || (x == y && a < b);
  };
}

bool IsOwn(const Gates& gates, const Chunking& chunking, int64_t index) {
  return chunking.chunk_of[index % gates.positions] == index / (gates.heads * gates.positions);
}

void ChooseTop(Gates* gates, const Chunking& chunking, SelectType type) {
  constexpr float kOwnChunk = 1e9f;
  for (size_t i = 0; i < gates->value.size(); ++i) {
    if (IsOwn(*gates, chunking, static_cast<int64_t>(i))) gates->value[i] += kOwnChunk;
  }
  const int64_t k = std::min(chunking.top_k, gates->chunks);
  for (std::vector<int64_t>& group : Groups(*gates, type)) {
    const int64_t count = k * static_cast<int64_t>(group.size()) / gates->chunks;
    std::nth_element(group.begin(), group.begin() + count, group.end(), ByGate(*gates));
    for (int64_t i = 0; i < count; ++i) gates->chosen[group[i]] = 1;
  }
}

// Stretches the group to [0, 1] and chooses, beside the own chunks, the largest gates until they
// and the own chunks hold `threshold` of the group's sum; one at least.
void ChooseToThreshold(Gates* gates, const Chunking& chunking, double threshold,
                       std::vector<int64_t> group) {
  const auto [least, most] =
      std::minmax_element(group.begin(), group.end(),
                          [&](int64_t a, int64_t b) { return gates->value[a] < gates->value[b]; });
  const float low = gates->value[*least], spread = gates->value[*most] - low;
  double total = 0, own = 0;
  for (int64_t i : group) {
    gates->value[i] = (gates->value[i] - low) / (spread <= 1e-6f ? 1.0f : spread);
    total += gates->value[i];
    if (IsOwn(*gates, chunking, i)) own += gates->value[i];
  }
  std::erase_if(group, [&](int64_t i) { return IsOwn(*gates, chunking, i); });
  std::sort(group.begin(), group.end(), ByGate(*gates));
  const double need = std::max(0.0, threshold - own / (total + 1e-6));
  double sum = 0;
  for (int64_t i : group) {
    gates->chosen[i] = 1;
    sum += gates->value[i];
    if (sum / (total + 1e-6) >= need) break;
  }
}

Gates Choose(const SparseCall& call, const VmobaSetting& setting, const Chunking& chunking,
             int64_t batch) {
  Gates gates = MakeGates(call, chunking, batch);
  if (!setting.by_threshold) {
    ChooseTop(&gates, chunking, setting.type);
    return gates;
  }
  for (std::vector<int64_t>& group : Groups(gates, setting.type)) {
    StopPoint();
    ChooseToThreshold(&gates, chunking, setting.threshold, std::move(group));
  }
  return gates;
}

// True where some query of the batch row has a chunk beside its own.
bool AnyExtra(const Gates& gates, const Chunking& chunking) {
  for (size_t i = 0; i < gates.chosen.size(); ++i) {
    if (gates.chosen[i] != 0 && !IsOwn(gates, chunking, static_cast<int64_t>(i))) return true;
  }
  return false;
}

// One block of up to 64 queries: the chunks that any of them attends, and which of them.
void AddBlock(const Gates& gates, const Chunking& chunking, int64_t head, int64_t block, bool dense,
              PlanBuilder* builder) {
  const int64_t first = block * kernels::kBlock;
  const int64_t last = std::min<int64_t>(first + kernels::kBlock, gates.positions);
  std::vector<int32_t> chunks;
  std::vector<uint64_t> masks;
  for (int64_t chunk = 0; chunk < gates.chunks; ++chunk) {
    uint64_t mask = 0;
    for (int64_t position = first; position < last; ++position) {
      const bool attends = dense || chunking.chunk_of[position] == chunk ||
                           gates.chosen[gates.At(chunk, head, position)] != 0;
      if (attends) mask |= uint64_t{1} << (position - first);
    }
    if (mask == 0) continue;
    chunks.push_back(static_cast<int32_t>(chunk));
    masks.push_back(mask);
  }
  builder->AddRow(block, chunks, masks);
}

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
  setting->by_threshold = parameters.Word("select_mode", {"threshold", "topk"}) == "threshold";
  const std::vector<std::string> types = {"query_head", "overall", "head_global", "block"};
  const std::string type = parameters.Word("select_type", types);
  setting->type =
      static_cast<SelectType>(std::find(types.begin(), types.end(), type) - types.begin());
  if (!setting->by_threshold && setting->type == SelectType::kBlock) {
    Parameters::Refuse("select_type", "\"block\" goes with select_mode \"threshold\" only");
  }
  setting->threshold = parameters.Real("threshold", 0.25, 0, 1);
  setting->own_chunk_only = parameters.Flag("own_chunk_only", false);
  return setting;
}

PlanSize VmobaBackend::SizeOf(const SparseSetting& setting, const AttentionSpec& spec) const {
  int64_t most = 1;  // chunks of any entry of the cycle
  int64_t blocks = 1;
  for (const Chunking& chunking : static_cast<const VmobaSetting&>(setting).cycle) {
    most = std::max(most, chunking.chunks.blocks());
    blocks = chunking.queries.blocks();
  }
  // Each query scores each chunk, and competes with an index of 8 bytes beside gate and mark; a
  // plan's entry has a mask of 8 bytes.
  return {.parameter = "chunk",
          .query_blocks = blocks,
          .key_blocks = most,
          .scores = spec.q_len * most,
          .score_bytes = 4 + 1 + 8 + 24 / most,
          .entries = 3 * blocks * most,
          .all_heads_at_once = true};
}

kernels::BlockPlan VmobaBackend::MakePlan(const SparseCall& call) const {
  const auto& setting = static_cast<const VmobaSetting&>(*call.setting);
  const Chunking& chunking = setting.cycle[call.inputs.layer_index % setting.cycle.size()];
  PlanBuilder builder(chunking.queries, chunking.chunks, call.batch() * call.heads());
  for (int64_t batch = 0; batch < call.batch(); ++batch) {
    const Gates gates = Choose(call, setting, chunking, batch);
    // FastVideo's kernel attends everything where no query chose a chunk beside its own.
    const bool dense = !setting.own_chunk_only && !AnyExtra(gates, chunking);
    for (int64_t head = 0; head < call.heads(); ++head) {
      for (int64_t block = 0; block < chunking.queries.blocks(); ++block) {
        AddBlock(gates, chunking, head, block, dense, &builder);
      }
    }
  }
  return builder.Take();
}

}  // namespace denoised
