// Measurements as tests invent them.
#ifndef DENOISED_TESTS_RUNTIME_MEASURED_H_
#define DENOISED_TESTS_RUNTIME_MEASURED_H_

#include <utility>
#include <vector>

#include "runtime/measured_table.h"

namespace denoised {

inline MeasuredGroup GroupOf(MeasuredOn on, const MeasuredKey& key, std::vector<MeasuredRow> rows) {
  MeasuredGroup group;
  group.on = std::move(on);
  group.key = key;
  group.rows = std::move(rows);
  group.num_heads = group.batch_rows = group.error_queries = 1;
  group.q_len = key.q_len;
  group.kv_len = key.kv_len;
  group.measured_at = std::chrono::system_clock::time_point(std::chrono::hours(400000));
  return group;
}

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_MEASURED_H_
