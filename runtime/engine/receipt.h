// What stands on a receipt besides its rows: which model, machine and code, and the fingerprint
// over everything that changes the pixels.
//
// A fingerprint is the SHA-256 of a text of named fields, each with its length, so that no two
// lists of values give one text. Two results with one fingerprint are the same result, bit for bit.
// What does not change them stays out: who chose a backend (source, lease), how its parameters were
// spelt, formats, frames a second and ids. The number of threads is in: LibTorch's products may
// round differently with another (MKL's do on some CPUs).
#ifndef DENOISED_RUNTIME_ENGINE_RECEIPT_H_
#define DENOISED_RUNTIME_ENGINE_RECEIPT_H_

#include <string>

#include "runtime/attention/attention_planner.h"
#include "runtime/job.h"
#include "runtime/model_info.h"

namespace denoised {

// Fills in the model's digests and dtype, the device, the numerics, the versions and the kernels.
void StampReceipt(const ModelInfo& model, const PlannerSetting& setting, LinearNumerics linear,
                  Receipt* receipt);

// Over a stamped receipt and what was asked of the model.
std::string Fingerprint(const Receipt& receipt, const GenerationRequest& request,
                        const ResolvedParameters& parameters);
std::string Fingerprint(const Receipt& receipt, const DenoiseRequest& request);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_RECEIPT_H_
