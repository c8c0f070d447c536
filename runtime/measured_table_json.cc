// The table as operators carry it from one server to another.
#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "backends/error.h"
#include "runtime/measured_table.h"

namespace denoised {
namespace {

using Json = nlohmann::json;

constexpr int kVersion = 1;
constexpr size_t kMaxText = 512;         // bytes of a version, a device, kernels
constexpr int64_t kMaxLength = 1 << 24;  // tokens, rows, heads
constexpr double kMaxSeconds = 1e6, kMaxError = 1e30;
constexpr int64_t kMaxMoment = 253402300799;  // the year 9999

Error NotAsWritten(const std::string& where, const std::string& why) {
  return InvalidField("json", where + (where.empty() ? "" : ": ") + why);
}

// Reads the fields of one object; `where` is what errors call it.
class Fields {
 public:
  Fields(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
    if (!json.is_object()) throw NotAsWritten(where_, "wanted an object");
  }

  std::string Text(const char* name) const {
    const Json& value = At(name);
    if (!value.is_string() || value.get_ref<const std::string&>().size() > kMaxText) {
      throw NotAsWritten(Path(name),
                         "wanted a text of at most " + std::to_string(kMaxText) + " bytes");
    }
    return value.get<std::string>();
  }

  int64_t Whole(const char* name, int64_t least, int64_t most) const {
    const Json& value = At(name);
    const bool whole = value.is_number_integer() &&
                       !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX);
    if (!whole || value.get<int64_t>() < least || value.get<int64_t>() > most) {
      throw NotAsWritten(Path(name), "wanted a whole number from " + std::to_string(least) +
                                         " to " + std::to_string(most));
    }
    return value.get<int64_t>();
  }

  double Number(const char* name, double most) const {
    const Json& value = At(name);
    const double number = value.is_number() ? value.get<double>() : -1;
    if (!(number >= 0 && number <= most)) {
      std::ostringstream limit;
      limit << most;
      throw NotAsWritten(Path(name), "wanted a number from 0 to " + limit.str());
    }
    return number;
  }

  // The one of `count` enumerators whose name it is.
  template <class Enum>
  Enum Name(const char* name, int count, std::string_view (*name_of)(Enum)) const {
    const std::string text = Text(name);
    for (int i = 0; i < count; ++i) {
      if (name_of(static_cast<Enum>(i)) == text) return static_cast<Enum>(i);
    }
    throw NotAsWritten(Path(name), "no such name: " + text);
  }

  void ForEach(const char* name, const std::function<void(const Fields&)>& read) const {
    const Json& list = At(name);
    if (!list.is_array()) throw NotAsWritten(Path(name), "wanted a list");
    for (size_t i = 0; i < list.size(); ++i) {
      read(Fields(list[i], Path(name) + "[" + std::to_string(i) + "]"));
    }
  }

  Fields Object(const char* name) const { return Fields(At(name), Path(name)); }
  const std::string& where() const { return where_; }

 private:
  const Json& At(const char* name) const {
    const auto found = json_.find(name);
    if (found == json_.end()) throw NotAsWritten(Path(name), "is missing");
    return *found;
  }
  std::string Path(const char* name) const { return where_ + (where_.empty() ? "" : ".") + name; }

  const Json& json_;
  const std::string where_;
};

Json Write(const MeasuredGroup& group) {
  Json rows = Json::array();
  for (const MeasuredRow& row : group.rows) {
    rows.push_back({{"backend", AttnBackendName(row.backend)},
                    {"seconds", row.seconds},
                    {"relative_l2", row.relative_l2}});
  }
  const MeasuredKey& key = group.key;
  const auto moment = std::chrono::time_point_cast<std::chrono::seconds>(group.measured_at);
  return {
      {"on",
       {{"version", group.on.version}, {"device", group.on.device}, {"kernels", group.on.kernels}}},
      {"key",
       {{"dtype", DTypeName(key.dtype)},
        {"head_size", key.head_size},
        {"q_len", key.q_len},
        {"kv_len", key.kv_len},
        {"mask", MaskKindName(key.mask)},
        {"rows", key.rows}}},
      {"num_heads", group.num_heads},
      {"q_len", group.q_len},
      {"kv_len", group.kv_len},
      {"batch_rows", group.batch_rows},
      {"error_queries", group.error_queries},
      {"measured_at", moment.time_since_epoch().count()},
      {"rows", std::move(rows)}};
}

MeasuredKey ReadKey(const Fields& fields) {
  MeasuredKey key;
  key.dtype = fields.Name("dtype", static_cast<int>(DType::kUInt8) + 1, DTypeName);
  key.head_size = fields.Whole("head_size", 1, kMaxLength);
  key.q_len = fields.Whole("q_len", 1, kMaxLength);
  key.kv_len = fields.Whole("kv_len", 1, kMaxLength);
  key.mask = fields.Name("mask", static_cast<int>(MaskKind::kCausalMask) + 1, MaskKindName);
  key.rows = fields.Whole("rows", 1, kMaxLength);
  return key;
}

MeasuredGroup ReadGroup(const Fields& fields) {
  MeasuredGroup group;
  const Fields on = fields.Object("on");
  group.on = {on.Text("version"), on.Text("device"), on.Text("kernels")};
  group.key = ReadKey(fields.Object("key"));
  group.num_heads = fields.Whole("num_heads", 1, kMaxLength);
  group.q_len = fields.Whole("q_len", 1, kMaxLength);
  group.kv_len = fields.Whole("kv_len", 1, kMaxLength);
  group.batch_rows = fields.Whole("batch_rows", 1, kMaxLength);
  group.error_queries = fields.Whole("error_queries", 1, kMaxLength);
  group.measured_at = std::chrono::system_clock::time_point(
      std::chrono::seconds(fields.Whole("measured_at", 0, kMaxMoment)));
  fields.ForEach("rows", [&](const Fields& row) {
    const auto backend = row.Name("backend", kNumAttnBackends, AttnBackendName);
    if (std::ranges::count(group.rows, backend, &MeasuredRow::backend) > 0) {
      throw NotAsWritten(row.where(), std::string(AttnBackendName(backend)) + " comes twice");
    }
    group.rows.push_back(
        {backend, row.Number("seconds", kMaxSeconds), row.Number("relative_l2", kMaxError)});
  });
  return group;
}

}  // namespace

std::string MeasuredTable::ToJson() const {
  Json groups = Json::array();
  for (const MeasuredGroup* group : All()) groups.push_back(Write(*group));
  const Json all = {{"version", kVersion}, {"groups", std::move(groups)}};
  // A device's name that is not UTF-8 is no reason to lose the rest.
  return all.dump(-1, ' ', false, Json::error_handler_t::replace);
}

MeasuredTable MeasuredTable::Parse(const std::string& json) {
  if (json.size() > kMaxJson) {
    throw NotAsWritten(
        "", "at most " + std::to_string(kMaxJson) + " bytes, got " + std::to_string(json.size()));
  }
  const Json all = Json::parse(json, nullptr, false);
  if (all.is_discarded()) throw NotAsWritten("", "not JSON");
  const Fields fields(all, "");
  fields.Whole("version", kVersion, kVersion);
  MeasuredTable table;
  fields.ForEach("groups", [&](const Fields& group) { table.Put(ReadGroup(group)); });
  if (table.size() > kMaxGroups) {
    throw NotAsWritten("groups", "at most " + std::to_string(kMaxGroups) + ", got " +
                                     std::to_string(table.size()));
  }
  return table;
}

}  // namespace denoised
