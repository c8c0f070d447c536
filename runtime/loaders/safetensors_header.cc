#include "runtime/loaders/safetensors_header.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

namespace denoised {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the prefix is little-endian");

// A file that is shorter than its header says.
Error Cut(const std::string& what, const std::string& rule, const std::string& tensor = "") {
  const Error error = BadSafetensors(what, rule, tensor);
  return Error(error.code(),
               error.what() + std::string(" (a download that was cut? fetch it again)"), what,
               "INCOMPLETE_DOWNLOAD");
}

bool IsPrintable(std::string_view name) {
  return std::all_of(name.begin(), name.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

// Takes the header event by event, so that nothing is built for what will be refused, duplicate
// keys are seen, and numbers can be told apart as they were written (1e3 and -0 are not plain
// digits).
class HeaderReader : public nlohmann::json_sax<json> {
 public:
  HeaderReader(const std::string& what, const SafetensorsLimits& limits)
      : what_(what), limits_(limits) {}

  SafetensorsHeader Take() { return std::move(header_); }

  bool null() override;
  bool boolean(bool) override { return Refuse("a boolean"); }
  bool number_integer(number_integer_t) override { return Refuse("a negative number"); }
  bool number_float(number_float_t, const string_t&) override {
    return Refuse("a number that is not plain digits of 64 bits");
  }
  bool binary(binary_t&) override { return Refuse("binary"); }
  bool number_unsigned(number_unsigned_t value) override;
  bool string(string_t& value) override;
  bool key(string_t& name) override;
  bool start_object(size_t) override;
  bool end_object() override;
  bool start_array(size_t) override;
  bool end_array() override;
  bool parse_error(size_t position, const std::string&, const json::exception& why) override {
    throw BadSafetensors(what_, "header is not valid JSON at byte " + std::to_string(position) +
                                    " (" + std::string(why.what()).substr(0, 160) + ")");
  }

 private:
  enum class In { kNothing, kTop, kMetadata, kTensor, kShape, kOffsets };

  bool Refuse(const std::string& came) {
    throw BadSafetensors(what_, "header holds " + came + " where the format has none", entry_.name);
  }
  void BeginTensor(string_t& name);
  void CheckName(const std::string& name, const char* kind);
  void CheckOffsets();

  const std::string& what_;
  const SafetensorsLimits& limits_;
  SafetensorsHeader header_;
  In in_ = In::kNothing;
  bool metadata_seen_ = false;
  std::string key_;  // of the tensor's field or the metadata's entry
  SafetensorsEntry entry_;
  std::vector<uint64_t> offsets_;
  std::unordered_set<std::string> fields_;  // of the tensor being read
  std::unordered_set<std::string> names_;
};

void HeaderReader::CheckName(const std::string& name, const char* kind) {
  if (name.size() > limits_.max_name_bytes) {
    throw BadSafetensors(what_,
                         std::string(kind) + " name has " + std::to_string(name.size()) +
                             " bytes, at most " + std::to_string(limits_.max_name_bytes) +
                             " are allowed",
                         IsPrintable(name.substr(0, 64)) ? name.substr(0, 64) + "..." : "");
  }
  if (!IsPrintable(name)) {
    throw BadSafetensors(what_,
                         std::string(kind) + " name has characters that are not printable ASCII");
  }
}

bool HeaderReader::key(string_t& name) {
  if (in_ == In::kTop) {
    if (name == "__metadata__") {
      if (std::exchange(metadata_seen_, true))
        throw BadSafetensors(what_, "__metadata__ comes twice");
      entry_ = {};
    } else {
      BeginTensor(name);
    }
    key_ = name;
    return true;
  }
  if (in_ == In::kMetadata && header_.metadata.contains(name)) {
    throw BadSafetensors(what_, "a key of __metadata__ comes twice");
  }
  if (in_ == In::kTensor) {
    if (name != "dtype" && name != "shape" && name != "data_offsets") {
      throw BadSafetensors(what_, "unknown field, only dtype, shape and data_offsets are known",
                           entry_.name);
    }
    if (!fields_.insert(name).second)
      throw BadSafetensors(what_, name + " comes twice", entry_.name);
  }
  key_ = std::move(name);
  return true;
}

void HeaderReader::BeginTensor(string_t& name) {
  CheckName(name, "tensor");
  if (!names_.insert(name).second) throw BadSafetensors(what_, "name comes twice", name);
  if (names_.size() > limits_.max_tensors) {
    throw BadSafetensors(what_, "more than " + std::to_string(limits_.max_tensors) + " tensors");
  }
  entry_ = {};
  entry_.name = name;
  offsets_.clear();
  fields_.clear();
}

bool HeaderReader::start_object(size_t) {
  if (in_ == In::kNothing) {
    in_ = In::kTop;
  } else if (in_ == In::kTop) {
    in_ = key_ == "__metadata__" ? In::kMetadata : In::kTensor;
  } else {
    Refuse("an object");
  }
  return true;
}

bool HeaderReader::end_object() {
  if (in_ == In::kTop) {
    in_ = In::kNothing;
    return true;
  }
  if (in_ == In::kTensor) {
    if (fields_.size() != 3) {
      throw BadSafetensors(what_, "wanted dtype, shape and data_offsets, some are missing",
                           entry_.name);
    }
    header_.tensors.push_back(std::move(entry_));
    entry_ = {};
  }
  in_ = In::kTop;
  return true;
}

bool HeaderReader::start_array(size_t) {
  if (in_ == In::kTensor && key_ == "shape") {
    in_ = In::kShape;
  } else if (in_ == In::kTensor && key_ == "data_offsets") {
    in_ = In::kOffsets;
  } else {
    Refuse("a list");
  }
  return true;
}

bool HeaderReader::end_array() {
  if (in_ == In::kOffsets) CheckOffsets();
  in_ = In::kTensor;
  return true;
}

void HeaderReader::CheckOffsets() {
  if (offsets_.size() != 2)
    throw BadSafetensors(what_, "data_offsets are not two numbers", entry_.name);
  if (offsets_[0] > offsets_[1])
    throw BadSafetensors(what_, "data_offsets end before begin", entry_.name);
  entry_.begin = offsets_[0];
  entry_.end = offsets_[1];
}

// Some writers say "no metadata" with a null; the reference reader takes that too.
bool HeaderReader::null() { return (in_ == In::kTop && key_ == "__metadata__") || Refuse("null"); }

bool HeaderReader::number_unsigned(number_unsigned_t value) {
  if (in_ == In::kOffsets) {
    if (offsets_.size() == 2)
      throw BadSafetensors(what_, "data_offsets are not two numbers", entry_.name);
    offsets_.push_back(value);
    return true;
  }
  if (in_ != In::kShape) return Refuse("a number");
  if (entry_.shape.size() == limits_.max_rank) {
    throw BadSafetensors(what_, "rank above " + std::to_string(limits_.max_rank), entry_.name);
  }
  if (value > uint64_t{INT64_MAX})
    throw BadSafetensors(what_, "a size does not fit 63 bits", entry_.name);
  entry_.shape.push_back(static_cast<int64_t>(value));
  return true;
}

bool HeaderReader::string(string_t& value) {
  if (in_ == In::kMetadata) {
    header_.metadata.emplace(key_, std::move(value));
    return true;
  }
  if (in_ != In::kTensor || key_ != "dtype") return Refuse("a string");
  if (SafetensorsDtypeBits(value) == 0) {
    const bool safe = value.size() <= 16 && IsPrintable(value);
    throw BadSafetensors(what_, "unknown dtype" + (safe ? " " + value : std::string()),
                         entry_.name);
  }
  entry_.dtype = std::move(value);
  return true;
}

uint64_t CheckedHeaderSize(uint64_t header_size, uint64_t file_size, const std::string& what,
                           const SafetensorsLimits& limits) {
  if (header_size > limits.max_header_bytes) {
    throw BadSafetensors(what, "header of " + std::to_string(header_size) +
                                   " bytes is too large, at most " +
                                   std::to_string(limits.max_header_bytes));
  }
  if (header_size > file_size - kSafetensorsPrefixBytes) {
    throw Cut(what, "header of " + std::to_string(header_size) + " bytes reaches past the end of " +
                        std::to_string(file_size) + " bytes of file");
  }
  if (header_size > limits.large_header_bytes && header_size > file_size / 8) {
    throw BadSafetensors(what, "header of " + std::to_string(header_size) +
                                   " bytes is more than an eighth of the file");
  }
  return header_size;
}

// Every tensor's bytes are what its shape says, and the tensors tile the rest of the file: no
// overlap, no hole, no tail.
void CheckTiling(SafetensorsHeader& header, uint64_t data_begin, uint64_t file_size,
                 const std::string& what) {
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
            });
  const uint64_t data_size = file_size - data_begin;
  uint64_t next = 0;
  for (SafetensorsEntry& entry : header.tensors) {
    const std::optional<uint64_t> bytes = SafetensorsTensorBytes(entry.dtype, entry.shape);
    if (!bytes) {
      throw BadSafetensors(what, "shape and dtype give no whole 64-bit number of bytes",
                           entry.name);
    }
    if (*bytes != entry.end - entry.begin) {
      throw BadSafetensors(what,
                           "shape and dtype need " + std::to_string(*bytes) +
                               " bytes, data_offsets give " +
                               std::to_string(entry.end - entry.begin),
                           entry.name);
    }
    if (entry.begin != next) {
      throw BadSafetensors(what,
                           std::string(entry.begin < next ? "overlaps the data before it"
                                                          : "leaves a hole before it"),
                           entry.name);
    }
    if (entry.end > data_size) throw Cut(what, "data reach past the end of the file", entry.name);
    next = entry.end;
    entry.begin += data_begin;
    entry.end += data_begin;
  }
  if (next != data_size) {
    throw BadSafetensors(what, std::to_string(data_size - next) + " bytes after the last tensor");
  }
}

}  // namespace

Error BadSafetensors(const std::string& what, const std::string& rule, const std::string& tensor) {
  const std::string where = tensor.empty() ? "" : ": tensor '" + tensor + "'";
  return Error(StatusCode::kInvalidArgument, what + ": " + rule + where, what);
}

std::optional<uint64_t> SafetensorsTensorBytes(std::string_view dtype,
                                               const std::vector<int64_t>& shape) {
  uint64_t bits = static_cast<uint64_t>(SafetensorsDtypeBits(dtype));
  for (int64_t size : shape) {
    if (__builtin_mul_overflow(bits, static_cast<uint64_t>(size), &bits)) return std::nullopt;
  }
  if (bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

void CheckSafetensorsPrefix(uint64_t file_size, const std::string& what) {
  if (file_size < kSafetensorsPrefixBytes) {
    throw Cut(what, "header too small: the file has " + std::to_string(file_size) +
                        " bytes, wanted 8 at least");
  }
}

uint64_t SafetensorsHeaderSize(const char* prefix, uint64_t file_size, const std::string& what,
                               const SafetensorsLimits& limits) {
  uint64_t header_size = 0;
  std::memcpy(&header_size, prefix, kSafetensorsPrefixBytes);
  return CheckedHeaderSize(header_size, file_size, what, limits);
}

SafetensorsHeader ParseSafetensorsJson(std::string text, uint64_t file_size,
                                       const std::string& what, const SafetensorsLimits& limits) {
  // nlohmann skips a byte order mark and has no opinion on what comes first.
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos || text[first] != '{') {
    throw BadSafetensors(what, "header does not begin with '{'");
  }
  // ... and takes a NUL for the end.
  if (text.find('\0') != std::string::npos) {
    throw BadSafetensors(what, "header is not valid JSON: NUL");
  }
  HeaderReader reader(what, limits);
  json::sax_parse(text.begin(), text.end(), &reader);
  SafetensorsHeader header = reader.Take();
  CheckTiling(header, kSafetensorsPrefixBytes + text.size(), file_size, what);
  header.json = std::move(text);
  return header;
}

}  // namespace denoised
