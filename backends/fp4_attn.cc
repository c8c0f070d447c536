// SAGE_ATTN_THREE and ATTN_QAT_INFER: FP4 numerics, emulated (kernels/fp4.h).
#include <algorithm>

#include "backends/attention_call.h"
#include "backends/intra_op.h"
#include "backends/kernels/fp4.h"
#include "backends/kernels/workers.h"
#include "backends/quantised_backends.h"
#include "backends/stop_point.h"

namespace denoised {
namespace {

// One head as float64 rows, [S, D] contiguous.
at::Tensor RowsOf(const at::Tensor& x, int64_t batch, int64_t head) {
  return x.select(0, batch).select(1, head).to(at::kDouble).contiguous();
}

at::Tensor AttendHead(const at::Tensor& query, const kernels::Fp4Head& head, double scale) {
  const int64_t rows = query.size(0), size = query.size(1);
  at::Tensor out = at::empty({rows, size}, at::kDouble);
  const double* from = query.const_data_ptr<double>();
  double* to = out.mutable_data_ptr<double>();
  const int64_t blocks = (rows + kernels::kFp4QueryBlock - 1) / kernels::kFp4QueryBlock;
  SharedStop stop;
  ParallelFor(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end && !stop.Asked(); ++block) {
      const int64_t first = block * kernels::kFp4QueryBlock;
      head.Attend(from + first * size, std::min(kernels::kFp4QueryBlock, rows - first), scale,
                  to + first * size);
    }
  });
  stop.ThrowIfAsked();
  return out;
}

}  // namespace

std::optional<std::string> Fp4Backend::Supports(const AttentionSpec& spec,
                                                const DeviceInfo& device) const {
  if (device.type != DeviceInfo::Type::kCpu) {
    return "its FP4 numerics are emulated on the CPU only; no kernel for Blackwell in this build";
  }
  if (spec.has_mask) return "it takes no attention mask";
  if (spec.causal) return "it is not causal";
  return std::nullopt;
}

AttentionCost Fp4Backend::Estimate(const AttentionSpec& spec, const std::string&,
                                   int64_t rows) const {
  // Of one head in float64: queries, result, keys and values, as they are and rounded; in each
  // thread some copies of the scores of a block of queries.
  const int64_t numbers = (3 * spec.q_len + 8 * spec.kv_len) * spec.head_size +
                          kernels::HardwareThreads() * 4 * kernels::kFp4QueryBlock * spec.kv_len;
  return {numbers * 8, DenseMultiplyAdds(spec, rows)};
}

at::Tensor Fp4Backend::Forward(const AttentionInputs& inputs,
                               const AttentionMetadata* metadata) const {
  CheckInputs(inputs);
  const at::Tensor& q = inputs.query;
  at::Tensor out = at::empty(q.sizes(), q.options(), at::MemoryFormat::Contiguous);
  for (int64_t b = 0; b < q.size(0); ++b) {
    for (int64_t h = 0; h < q.size(2); ++h) {
      const at::Tensor key = RowsOf(inputs.key, b, h), value = RowsOf(inputs.value, b, h);
      const kernels::Fp4Head head(key.const_data_ptr<double>(), value.const_data_ptr<double>(),
                                  key.size(0), key.size(1), Smooths());
      out.select(0, b).select(1, h).copy_(AttendHead(RowsOf(q, b, h), head, SoftmaxScale(inputs)));
    }
  }
  return out;
}

}  // namespace denoised
