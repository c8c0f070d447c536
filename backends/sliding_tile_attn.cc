// SLIDING_TILE_ATTN.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <set>
#include <sstream>
#include <tuple>

#include "backends/sparse_backends.h"

namespace denoised {
namespace {

using StrategyKey = std::tuple<int64_t, int64_t, int64_t>;  // step, layer, head

using Rows = std::vector<std::vector<int32_t>>;  // [query block]: key blocks, ascending

struct StaSetting final : SparseSetting {
  Axes tiles{};  // along each axis
  // Queries: grid tiles, then one block of all text slots. Keys: grid tiles, then the text keys in
  // use.
  std::shared_ptr<const RowGeometry> geometry;
  Axes window{};                         // in tiles
  std::map<StrategyKey, Axes> strategy;  // where it has no entry, everything is attended
  bool by_strategy = false;

  int64_t FirstLike(int64_t step) const override {
    return by_strategy ? step : SparseSetting::FirstLike(step);
  }

  // Made once with the setting: what the tiles of the grid attend, for each window in use.
  std::map<Axes, std::shared_ptr<const Rows>> rows;
  PerDevice<DevicePlan> plan_on;  // without a strategy all calls have one
};

// Tiles from..to of one axis that tile x attends. An even window counts as the next odd one.
std::pair<int64_t, int64_t> WindowOf(int64_t x, int64_t window, int64_t tiles) {
  const int64_t reach = window / 2;
  const int64_t centre = std::max(std::min(x, tiles - 1 - reach), reach);
  return {centre - reach, std::min(centre + reach, tiles - 1)};
}

std::vector<int32_t> TilesInWindow(const Axes& at, const Axes& window, const Axes& tiles) {
  std::array<std::pair<int64_t, int64_t>, 3> range;
  for (int axis = 0; axis < 3; ++axis) range[axis] = WindowOf(at[axis], window[axis], tiles[axis]);
  std::vector<int32_t> inside;
  for (int64_t t = range[0].first; t <= range[0].second; ++t) {
    for (int64_t h = range[1].first; h <= range[1].second; ++h) {
      for (int64_t w = range[2].first; w <= range[2].second; ++w) {
        inside.push_back(static_cast<int32_t>((t * tiles[1] + h) * tiles[2] + w));
      }
    }
  }
  return inside;
}

void AppendRun(Partition* partition, int64_t first, int64_t length) {
  if (length == 0) return;
  for (int64_t i = 0; i < length; ++i) {
    partition->order.push_back(static_cast<int32_t>(first + i));
  }
  partition->lengths.push_back(static_cast<int32_t>(length));
}

std::string FileText(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error || size > (uintmax_t{64} << 20)) {
    Parameters::Refuse("strategy", "wanted a readable JSON file of at most 64 MiB");
  }
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

// "step_layer_head", three whole numbers.
StrategyKey ParseKey(const std::string& key) {
  int64_t part[3];
  std::istringstream text(key);
  char separator[2] = {'_', '_'};
  text >> part[0] >> separator[0] >> part[1] >> separator[1] >> part[2];
  const bool whole = !text.fail() && text.eof() && separator[0] == '_' && separator[1] == '_';
  if (!whole || *std::min_element(part, part + 3) < 0) {
    Parameters::Refuse("strategy",
                       "wanted keys \"step_layer_head\"; got \"" + key.substr(0, 64) + "\"");
  }
  return {part[0], part[1], part[2]};
}

// The table as its canonical form has it: whatever the keys looked like.
nlohmann::json TableOf(const std::map<StrategyKey, Axes>& strategy) {
  nlohmann::json table = nlohmann::json::object();
  for (const auto& [key, window] : strategy) {
    const auto& [step, layer, head] = key;
    table[std::to_string(step) + "_" + std::to_string(layer) + "_" + std::to_string(head)] = window;
  }
  return table;
}

std::map<StrategyKey, Axes> ReadStrategy(Parameters& parameters, bool allow_files) {
  nlohmann::json table = parameters.Raw("strategy");
  if (table.is_string()) {
    if (!allow_files) {
      Parameters::Refuse("strategy", "a request must carry the table itself, not a file's name");
    }
    table = Parameters::ParseObject(FileText(table.get<std::string>()));
  }
  if (!table.is_object()) Parameters::Refuse("strategy", "wanted an object of windows");
  std::map<StrategyKey, Axes> strategy;
  for (const auto& [key, window] : table.items()) {
    if (window.is_null()) continue;
    Parameters entry(nlohmann::json{{"strategy", window}}.dump());
    const std::vector<int64_t> axes = entry.Ints("strategy", {}, 3, 1);
    strategy[ParseKey(key)] = {axes[0], axes[1], axes[2]};
  }
  return strategy;
}

// A window as wide as it acts: odd, and no wider than it takes to reach every tile from each.
Axes Acting(const Axes& window, const Axes& tiles) {
  Axes acting;
  for (int axis = 0; axis < 3; ++axis) {
    acting[axis] = std::min(window[axis] / 2 * 2, 2 * tiles[axis]) + 1;
  }
  return acting;
}

Axes Everything(const Axes& tiles) { return Acting({INT32_MAX, INT32_MAX, INT32_MAX}, tiles); }

std::set<Axes> WindowsInUse(const StaSetting& setting) {
  if (!setting.by_strategy) return {Acting(setting.window, setting.tiles)};
  std::set<Axes> windows = {Everything(setting.tiles)};
  for (const auto& [key, window] : setting.strategy) {
    windows.insert(Acting(window, setting.tiles));
  }
  return windows;
}

// (query tile, key tile) pairs of a window.
int64_t EntriesOf(const Axes& window, const Axes& tiles) {
  int64_t entries = 1;
  for (int axis = 0; axis < 3; ++axis) {
    int64_t sum = 0;
    for (int64_t x = 0; x < tiles[axis]; ++x) {
      const auto [from, to] = WindowOf(x, window[axis], tiles[axis]);
      sum += to - from + 1;
    }
    entries *= sum;
  }
  return entries;
}

// Every grid tile, then the text block.
Rows MakeRows(const StaSetting& setting, const Axes& window) {
  const int64_t tiles = Product(setting.tiles);
  const int64_t key_blocks = setting.geometry->keys.blocks();
  Rows rows;
  for (int64_t index = 0; index < tiles; ++index) {
    const Axes at = {index / (setting.tiles[1] * setting.tiles[2]),
                     index / setting.tiles[2] % setting.tiles[1], index % setting.tiles[2]};
    rows.push_back(TilesInWindow(at, window, setting.tiles));
    if (key_blocks > tiles) rows.back().push_back(static_cast<int32_t>(tiles));
  }
  if (setting.geometry->queries.blocks() > tiles) {
    rows.emplace_back(key_blocks);
    std::iota(rows.back().begin(), rows.back().end(), 0);
  }
  return rows;
}

class StaBands final : public RowBands {
 public:
  StaBands(const SparseCall& call, const StaSetting& setting)
      : RowBands(setting.geometry), by_strategy_(setting.by_strategy) {
    const int64_t lists = setting.by_strategy ? call.heads() : 1;
    for (int64_t head = 0; head < lists; ++head) {
      rows_.push_back(
          setting.rows.at(WindowOfHead(setting, call.step_index, call.inputs.layer_index, head)));
    }
  }

  static Axes WindowOfHead(const StaSetting& setting, int64_t step, int64_t layer, int64_t head) {
    if (!setting.by_strategy) return Acting(setting.window, setting.tiles);
    const auto found = setting.strategy.find({step, layer, head});
    return found == setting.strategy.end() ? Everything(setting.tiles)
                                           : Acting(found->second, setting.tiles);
  }

  Common common() const override { return by_strategy_ ? Common::kQueries : Common::kAll; }

 protected:
  void ChooseRow(int64_t head, int64_t block, kernels::ChoiceScratch*,
                 std::vector<int32_t>* chosen) const override {
    *chosen = (*rows_[head % static_cast<int64_t>(rows_.size())])[block];
  }

 private:
  const bool by_strategy_;
  std::vector<std::shared_ptr<const Rows>> rows_;  // [head], or one for all
};

}  // namespace

std::optional<std::string> SlidingTileBackend::GeometryLimits(const AttentionSpec& spec) const {
  if (*std::min_element(spec.grid.begin(), spec.grid.end()) <= 0) return NeedsGrid(spec);
  if (spec.q_len != 0 && spec.q_len < Product(spec.grid)) return NeedsGrid(spec);
  return std::nullopt;  // tokens past the grid are text
}

std::shared_ptr<SparseSetting> SlidingTileBackend::ReadSetting(
    Parameters& parameters, const MetadataRequest& request) const {
  auto setting = std::make_shared<StaSetting>();
  const std::vector<int64_t> side = parameters.Ints("tile", {6, 8, 8}, 3, 1);
  const Axes grid = ReadGrid(parameters, request.spec), tile = {side[0], side[1], side[2]};
  setting->tiles = TilesPerAxis(grid, tile);
  Partition queries = TileGrid(grid, tile), keys = queries;
  const int64_t video = Product(grid), slots = std::max<int64_t>(request.spec.q_len - video, 0);
  AppendRun(&queries, video, slots);
  AppendRun(&keys, video, parameters.Int("text_len", slots, 0, slots));
  setting->geometry = std::make_shared<RowGeometry>(queries, keys);
  if (parameters.Has("strategy") && parameters.Has("window")) {
    Parameters::Refuse("strategy", "wanted one of strategy and window; got both");
  }
  const std::vector<int64_t> window = parameters.Ints("window", {3, 3, 3}, 3, 1);
  setting->window = {window[0], window[1], window[2]};
  setting->by_strategy = parameters.Has("strategy");
  parameters.Raw("strategy");
  if (setting->by_strategy) {
    setting->strategy = ReadStrategy(parameters, request.allow_files);
    parameters.Settle("strategy", TableOf(setting->strategy));
    parameters.Settle("window", nullptr);
  }
  return setting;
}

PlanSize SlidingTileBackend::SizeOf(const SparseSetting& setting, const AttentionSpec&) const {
  const auto& sta = static_cast<const StaSetting&>(setting);
  const int64_t key_blocks = sta.geometry->keys.blocks();
  int64_t most = 0, all = 0;
  for (const Axes& window : WindowsInUse(sta)) {
    const int64_t entries = EntriesOf(window, sta.tiles) + Product(sta.tiles) + key_blocks;
    most = std::max(most, entries);
    all += entries;
  }
  return {.parameter = "tile",
          .query_blocks = sta.geometry->queries.blocks(),
          .key_blocks = key_blocks,
          .entries = most,
          .kept_bytes = all * 4 + static_cast<int64_t>(WindowsInUse(sta).size()) *
                                      sta.geometry->queries.blocks() * 32,
          .kept_parameter = sta.by_strategy ? "strategy" : "tile"};
}

void SlidingTileBackend::MakeOnce(SparseSetting* setting) const {
  auto& sta = static_cast<StaSetting&>(*setting);
  for (const Axes& window : WindowsInUse(sta)) {
    sta.rows[window] = std::make_shared<const Rows>(MakeRows(sta, window));
  }
}

std::unique_ptr<SparseBands> SlidingTileBackend::MakeBands(const SparseCall& call) const {
  return std::make_unique<StaBands>(call, static_cast<const StaSetting&>(*call.setting));
}

std::optional<DevicePlan> SlidingTileBackend::PlanOnDevice(const SparseCall& call) const {
  const auto& setting = static_cast<const StaSetting&>(*call.setting);
  const at::Device device = call.inputs.query.device();
  if (!device.is_cuda() || setting.by_strategy) return std::nullopt;
  return *setting.plan_on.Of(device, [&] {
    return UploadPlan(PlanOfBands(*MakeBands(call), 0, call.batch() * call.heads()), device);
  });
}

}  // namespace denoised
