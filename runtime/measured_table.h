// How long backends take for a kind of attention call, and how far they are from the reference, as
// they were measured on some machines. Plain values, torch-free.
//
// Who measures is runtime/pipelines/measure.h, who asks runtime/attention/measurements.h.
#ifndef DENOISED_RUNTIME_MEASURED_TABLE_H_
#define DENOISED_RUNTIME_MEASURED_TABLE_H_

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backends/attention_spec.h"

namespace denoised {

// What a measurement holds for: elsewhere another backend may be the fastest.
struct MeasuredOn {
  std::string version;  // of this program
  std::string device;   // as it calls itself
  std::string kernels;  // instruction sets, libraries, threads
  auto operator<=>(const MeasuredOn&) const = default;
};

enum class MaskKind : uint8_t { kNone, kCausal, kMask, kCausalMask };
std::string_view MaskKindName(MaskKind kind);  // "none", "causal", "mask", "causal_mask"

// Calls that are alike. Lengths and rows are those of a bucket: powers of two, up to which.
struct MeasuredKey {
  DType dtype = DType::kFloat32;
  int64_t head_size = 0;
  int64_t q_len = 0, kv_len = 0;  // 1024: 513 to 1024 tokens; 0: not known
  MaskKind mask = MaskKind::kNone;
  int64_t rows = 0;  // batch rows, 4: 3 to 4
  auto operator<=>(const MeasuredKey&) const = default;
};
// Of a call of so many batch rows.
MeasuredKey KeyOf(const AttentionSpec& spec, int64_t rows);
// "bfloat16, head size 64, 65-128 queries, 65-128 keys, 2 rows"
std::string ToText(const MeasuredKey& key);

// One backend, with its default parameters.
struct MeasuredRow {
  AttnBackend backend = AttnBackend::kReference;
  double seconds = 0;      // of a call, the fastest of some
  double relative_l2 = 0;  // ||out - REFERENCE|| / ||REFERENCE||
  bool operator==(const MeasuredRow&) const = default;
};
// "0.00021 s a call, error 1.6e-07"
std::string ToText(const MeasuredRow& row);

// All that was measured with one set of tensors: rows are compared with each other.
struct MeasuredGroup {
  MeasuredOn on;
  MeasuredKey key;
  std::vector<MeasuredRow> rows;
  // Of the tensors. Queries of which the error is: REFERENCE would take long for all of many.
  int64_t num_heads = 0, q_len = 0, kv_len = 0, batch_rows = 0, error_queries = 0;
  std::chrono::system_clock::time_point measured_at;  // whole seconds in JSON
  bool operator==(const MeasuredGroup&) const = default;
};

class MeasuredTable {
 public:
  // Groups that a server keeps. As JSON they fit into one message of the admin port
  // (server/wire_budget.h).
  static constexpr size_t kMaxGroups = 64;
  // Bytes of JSON that Parse looks at.
  static constexpr size_t kMaxJson = size_t{1} << 20;

  // In place of what the same machine had for this key.
  void Put(MeasuredGroup group);
  // Down to kMaxGroups: those of other machines go first, then the oldest.
  void Trim(const MeasuredOn& here);
  // Null where nothing was measured there.
  const MeasuredGroup* Find(const MeasuredOn& on, const MeasuredKey& key) const;
  // Groups of this key that were measured elsewhere.
  std::vector<const MeasuredGroup*> Elsewhere(const MeasuredOn& on, const MeasuredKey& key) const;
  std::vector<const MeasuredGroup*> All() const;
  size_t size() const { return groups_.size(); }

  std::string ToJson() const;
  // Throws INVALID_ARGUMENT naming what is not as ToJson writes it ("json: groups[3].rows[0]:
  // ..."), or where there are more groups than are kept.
  static MeasuredTable Parse(const std::string& json);

 private:
  std::map<std::pair<MeasuredOn, MeasuredKey>, MeasuredGroup> groups_;
};

// What a table says about an automatic choice.
struct MeasuredChoice {
  MeasuredKey key;
  std::optional<MeasuredRow> row;  // of the chosen backend; none: the registry's order stands
  std::chrono::system_clock::time_point measured_at;  // where there is a row
  std::string note;  // about measurements that do not count here; "" = there are none
};

// How `other` differs, for people: "another version (0.1.0+ab)", "another device (AMD EPYC)" ...
std::string WhatDiffers(const MeasuredOn& here, const MeasuredOn& other);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MEASURED_TABLE_H_
