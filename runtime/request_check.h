// Checks a request against the limits table and fills in defaults. Torch-free.
#ifndef DENOISED_RUNTIME_REQUEST_CHECK_H_
#define DENOISED_RUNTIME_REQUEST_CHECK_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/job.h"
#include "runtime/request_limits.h"

namespace denoised {

// The sizes that a model can draw: what the request's sizes must fit.
struct GeometryRules {
  int64_t height_multiple = 16;  // VAE stride times patch
  int64_t width_multiple = 16;
  int64_t frame_stride = 4;            // num_frames must be k * frame_stride + 1
  int64_t max_tokens_per_axis = 1024;  // rope_max_seq_len
  int64_t spatial_stride = 8;          // VAE stride, pixels a latent cell
};

// Throws InvalidField naming the field, the bounds and the value. The field is of the table that
// holds values of this type.
void CheckLimit(std::string_view field, int64_t value);
void CheckLimit(std::string_view field, double value);

// Sizes within limits, multiples kept, pixel count not over the cap. Throws InvalidField.
void CheckGeometry(int64_t height, int64_t width, int64_t num_frames, const GeometryRules& rules);

// Every field of the request, with `defaults` where it gives none. Throws InvalidField. The seed
// stays 0 where the request has none: the engine draws it.
ResolvedParameters ResolveRequest(const GenerationRequest& request,
                                  const ResolvedParameters& defaults, const GeometryRules& rules);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_REQUEST_CHECK_H_
