#include "runtime/job.h"

#include <algorithm>
#include <array>

namespace denoised {
namespace {

struct FormatRow {
  ArtifactFormat format;
  std::string_view name, media_type;
};
constexpr std::array<FormatRow, 5> kFormats = {{
    {ArtifactFormat::kMp4, "mp4", "video/mp4"},
    {ArtifactFormat::kGif, "gif", "image/gif"},
    {ArtifactFormat::kPng, "png", "image/png"},
    {ArtifactFormat::kNpy, "npy", "application/octet-stream"},
    {ArtifactFormat::kSafetensors, "safetensors", "application/octet-stream"},
}};

const FormatRow& RowOf(ArtifactFormat format) { return kFormats[static_cast<size_t>(format)]; }

// Bytes that `tensor` must have. Throws where a dimension is negative or the product of those that
// are not zero overflows: strides are such products even where there are no elements.
uint64_t ExpectedBytes(const HostTensor& tensor, const std::string& field) {
  int64_t bytes = static_cast<int64_t>(DTypeSize(tensor.dtype));
  bool empty = false;
  for (int64_t size : tensor.shape) {
    if (size < 0) {
      throw InvalidField(field + ".shape",
                         "dimensions must not be negative, got " + std::to_string(size));
    }
    empty |= size == 0;
    if (size != 0 && __builtin_mul_overflow(bytes, size, &bytes)) {
      throw InvalidField(field + ".shape", "the product of the dimensions overflows");
    }
  }
  return empty ? 0 : static_cast<uint64_t>(bytes);
}

}  // namespace

std::string Reason(const ReceiptEntry& entry) {
  const std::string why = entry.selection.Reason();
  if (entry.ran == entry.selection.granted.backend) return why;
  return std::string(AttnBackendName(entry.ran)) + ", to which " +
         std::string(AttnBackendName(entry.selection.granted.backend)) +
         " hands over these steps or layers; " + why;
}

void CheckHostTensor(const HostTensor& tensor, const std::string& field) {
  constexpr size_t kMaxRank = 8;
  if (tensor.shape.size() > kMaxRank) {
    throw InvalidField(field + ".shape",
                       "at most 8 dimensions, got " + std::to_string(tensor.shape.size()));
  }
  const uint64_t bytes = ExpectedBytes(tensor, field);
  if (bytes != tensor.data.size()) {
    throw InvalidField(field + ".data", "shape and dtype need " + std::to_string(bytes) +
                                            " bytes, got " + std::to_string(tensor.data.size()));
  }
}

std::string_view ArtifactFormatName(ArtifactFormat format) { return RowOf(format).name; }

std::optional<ArtifactFormat> ArtifactFormatFromName(std::string_view name) {
  for (const FormatRow& row : kFormats) {
    if (row.name == name) return row.format;
  }
  return std::nullopt;
}

std::string_view ArtifactMediaType(ArtifactFormat format) { return RowOf(format).media_type; }

bool Wants(const std::vector<ArtifactFormat>& formats, ArtifactFormat format) {
  return std::find(formats.begin(), formats.end(), format) != formats.end();
}

bool WantsFrames(const std::vector<ArtifactFormat>& formats) {
  return !(formats.size() == 1 && formats.front() == ArtifactFormat::kSafetensors);
}

JobError ToJobError(const Error& error) {
  return {error.code(),   error.what(),        error.field(),
          error.reason(), error.retry_after(), error.details()};
}

std::string_view PriorityName(Priority priority) {
  constexpr std::array<std::string_view, 3> kNames = {"BATCH", "NORMAL", "URGENT"};
  return kNames.at(static_cast<size_t>(priority));
}

std::optional<Priority> PriorityFromName(std::string_view name) {
  for (Priority priority : {Priority::kBatch, Priority::kNormal, Priority::kUrgent}) {
    if (PriorityName(priority) == name) return priority;
  }
  return std::nullopt;
}

std::string_view JobStateName(JobState state) {
  constexpr std::array<std::string_view, 6> kNames = {"QUEUED",    "RUNNING", "SUSPENDED",
                                                      "SUCCEEDED", "FAILED",  "CANCELLED"};
  return kNames[static_cast<size_t>(state)];
}

std::string_view JobStageName(JobStage stage) {
  constexpr std::array<std::string_view, 5> kNames = {"none", "text_encode", "denoise", "decode",
                                                      "encode"};
  return kNames[static_cast<size_t>(stage)];
}

std::string_view BranchName(Branch branch) {
  switch (branch) {
    case Branch::kNone:
      return "none";
    case Branch::kConditional:
      return "cond";
    case Branch::kUnconditional:
      return "uncond";
    case Branch::kMixed:
      return "mixed";
  }
  return "unknown";
}

}  // namespace denoised
