// One backend on tensors from a file. Torch-free.
#ifndef DENOISED_RUNTIME_PIPELINES_ATTEND_H_
#define DENOISED_RUNTIME_PIPELINES_ATTEND_H_

#include <cstdint>
#include <string>
#include <vector>

#include "backends/attention_spec.h"

namespace denoised {

// One backend on given tensors, for cross-checking (`denoisectl attend`). Reads q, k, v and
// optionally gate ([B, S, H, D]) from a safetensors file, writes `o` to another.
struct AttendRequest {
  AttnBackend backend = AttnBackend::kReference;
  std::string in_path, out_path;
  std::string parameters_json;
  std::string device = "cpu";
  bool admit_unmeasured = false;
};
struct AttendResult {
  std::vector<int64_t> shape;
  DType dtype = DType::kFloat32;
  double seconds = 0;
};
// Throws Error; FAILED_PRECONDITION with the backend's own sentence where it cannot serve the spec.
AttendResult Attend(const AttendRequest& request);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_ATTEND_H_
