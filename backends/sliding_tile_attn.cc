// SLIDING_TILE_ATTN.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <sstream>
#include <tuple>

#include "backends/sparse_backends.h"

namespace denoised {
namespace {

using StrategyKey = std::tuple<int64_t, int64_t, int64_t>;  // step, layer, head

struct StaSetting final : SparseSetting {
  Axes tiles{};                          // along each axis
  Partition queries;                     // grid tiles, then one block of all text slots
  Partition keys;                        // grid tiles, then the text keys in use
  Axes window{};                         // in tiles
  std::map<StrategyKey, Axes> strategy;  // where it has no entry, everything is attended
  bool by_strategy = false;
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

// Rows of one head: every grid tile, then the text block.
void AddHead(const StaSetting& setting, const Axes& window, PlanBuilder* builder) {
  const int64_t tiles = Product(setting.tiles);
  const bool text_keys = setting.keys.blocks() > tiles;
  for (int64_t index = 0; index < tiles; ++index) {
    const Axes at = {index / (setting.tiles[1] * setting.tiles[2]),
                     index / setting.tiles[2] % setting.tiles[1], index % setting.tiles[2]};
    std::vector<int32_t> row = TilesInWindow(at, window, setting.tiles);
    if (text_keys) row.push_back(static_cast<int32_t>(tiles));
    builder->AddRow(index, row);
  }
  if (setting.queries.blocks() > tiles) {
    std::vector<int32_t> all(setting.keys.blocks());
    std::iota(all.begin(), all.end(), 0);
    builder->AddRow(tiles, all);
  }
}

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
  setting->queries = setting->keys = TileGrid(grid, tile);
  const int64_t video = Product(grid), slots = std::max<int64_t>(request.spec.q_len - video, 0);
  AppendRun(&setting->queries, video, slots);
  AppendRun(&setting->keys, video, parameters.Int("text_len", slots, 0, slots));
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
  const int64_t tiles = Product(sta.tiles);
  int64_t attended = 1;
  for (int axis = 0; axis < 3; ++axis) {
    // A window of w reaches w / 2 to both sides; a strategy may name any, or none, which is all.
    const int64_t reach = sta.by_strategy ? sta.tiles[axis] : 2 * (sta.window[axis] / 2) + 1;
    attended *= std::min(sta.tiles[axis], reach);
  }
  return {.parameter = "tile",
          .query_blocks = sta.queries.blocks(),
          .key_blocks = sta.keys.blocks(),
          .entries = tiles * (attended + 1) + sta.keys.blocks(),
          .by_head = sta.by_strategy};
}

kernels::BlockPlan SlidingTileBackend::MakePlan(const SparseCall& call) const {
  const auto& setting = static_cast<const StaSetting&>(*call.setting);
  const int64_t lists = setting.by_strategy ? call.heads() : 1;
  PlanBuilder builder(setting.queries, setting.keys, lists);
  const Axes everything = {2 * setting.tiles[0] + 1, 2 * setting.tiles[1] + 1,
                           2 * setting.tiles[2] + 1};
  for (int64_t head = 0; head < lists; ++head) {
    const auto found = setting.strategy.find({call.step_index, call.inputs.layer_index, head});
    const Axes per_head = found == setting.strategy.end() ? everything : found->second;
    AddHead(setting, setting.by_strategy ? per_head : setting.window, &builder);
  }
  return builder.Take();
}

}  // namespace denoised
