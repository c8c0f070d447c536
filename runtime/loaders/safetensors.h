// The safetensors format: strict header reading, and writing. Torch-free.
//
// A file is `u64 little-endian N`, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the
// data. The reader refuses everything the format forbids (overlaps, holes, tails, sizes that do not
// match shapes, duplicate keys) and a few things more that no honest file needs: see
// SafetensorsLimits. Format: github.com/huggingface/safetensors, README.md.
#ifndef DENOISED_RUNTIME_LOADERS_SAFETENSORS_H_
#define DENOISED_RUNTIME_LOADERS_SAFETENSORS_H_

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/loaders/file.h"

namespace denoised {

struct SafetensorsLimits {
  uint64_t max_header_bytes = 100'000'000;  // the format's own
  uint64_t large_header_bytes = 16u << 20;  // above this the header may be 1/8 of the file at most
  size_t max_tensors = 65'536;
  size_t max_rank = 8;
  size_t max_name_bytes = 512;  // printable ASCII
};

struct SafetensorsEntry {
  std::string name;
  std::string dtype;           // as written: "F32", "BF16", ...
  std::vector<int64_t> shape;  // rank 0 and zero sizes are legal
  uint64_t begin = 0;          // bytes from the start of the file
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  // by position in the file
  std::map<std::string, std::string> metadata;
  std::string json;  // as it stands in the file
};

// Bits of one element of a dtype name, 0 for an unknown name.
int SafetensorsDtypeBits(std::string_view dtype);

// Checks and reads the header of an open file. Throws INVALID_ARGUMENT "file: rule: tensor".
SafetensorsHeader ReadSafetensorsHeader(const ReadOnlyFile& file,
                                        const SafetensorsLimits& limits = {});
// The same on bytes in memory, which need only reach to the end of the header.
SafetensorsHeader ParseSafetensorsHeader(std::string_view head, uint64_t file_size,
                                         const std::string& what,
                                         const SafetensorsLimits& limits = {});

// A tensor as bytes: C order, little-endian.
struct RawTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string data;
};

// A whole small file at once (fixtures, the command line); models go through Weights.
std::map<std::string, RawTensor> ReadSafetensors(const ReadOnlyFile& file);

// INVALID_ARGUMENT naming the tensor whose data do not fit its dtype and shape.
std::string SerializeSafetensors(const std::map<std::string, RawTensor>& tensors,
                                 const std::map<std::string, std::string>& metadata = {});
void WriteSafetensors(const std::filesystem::path& path,
                      const std::map<std::string, RawTensor>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_SAFETENSORS_H_
