#include "runtime/loaders/safetensors.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>
#include <utility>

#include "runtime/loaders/safetensors_header.h"

namespace denoised {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "tensor data are little-endian");

// Wide types first, as other writers do, so that data stay aligned for readers that map the file.
std::vector<const std::pair<const std::string, RawTensor>*> WriteOrder(
    const std::map<std::string, RawTensor>& tensors) {
  std::vector<const std::pair<const std::string, RawTensor>*> order;
  for (const auto& item : tensors) order.push_back(&item);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return SafetensorsDtypeBits(a->second.dtype) > SafetensorsDtypeBits(b->second.dtype);
  });
  return order;
}

void CheckWritable(const std::string& name, const RawTensor& tensor) {
  const std::string what = "safetensors";
  const bool negative =
      std::any_of(tensor.shape.begin(), tensor.shape.end(), [](int64_t size) { return size < 0; });
  if (SafetensorsDtypeBits(tensor.dtype) == 0 || negative) {
    throw BadSafetensors(what, "unknown dtype or negative size", name);
  }
  if (SafetensorsTensorBytes(tensor.dtype, tensor.shape) != tensor.data.size()) {
    throw BadSafetensors(
        what, std::to_string(tensor.data.size()) + " bytes do not fit shape and dtype", name);
  }
}

}  // namespace

int SafetensorsDtypeBits(std::string_view dtype) {
  static constexpr std::pair<std::string_view, int> kBits[] = {
      {"F32", 32},    {"F16", 16},    {"BF16", 16},       {"F64", 64},        {"I64", 64},
      {"I32", 32},    {"I16", 16},    {"I8", 8},          {"U8", 8},          {"BOOL", 8},
      {"U64", 64},    {"U32", 32},    {"U16", 16},        {"C64", 64},        {"F8_E4M3", 8},
      {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F4", 4},
      {"F6_E2M3", 6}, {"F6_E3M2", 6}};
  for (const auto& [name, bits] : kBits) {
    if (name == dtype) return bits;
  }
  return 0;
}

SafetensorsHeader ParseSafetensorsHeader(std::string_view head, uint64_t file_size,
                                         const std::string& what, const SafetensorsLimits& limits) {
  CheckSafetensorsPrefix(std::min<uint64_t>(head.size(), file_size), what);
  const uint64_t size = SafetensorsHeaderSize(head.data(), file_size, what, limits);
  if (size > head.size() - kSafetensorsPrefixBytes) throw BadSafetensors(what, "header is cut");
  return ParseSafetensorsJson(std::string(head.substr(kSafetensorsPrefixBytes, size)), file_size,
                              what, limits);
}

SafetensorsHeader ReadSafetensorsHeader(const ReadOnlyFile& file, const SafetensorsLimits& limits) {
  CheckSafetensorsPrefix(file.size(), file.path());
  char prefix[kSafetensorsPrefixBytes];
  file.ReadAt(0, prefix, kSafetensorsPrefixBytes);
  std::string text(SafetensorsHeaderSize(prefix, file.size(), file.path(), limits), '\0');
  file.ReadAt(kSafetensorsPrefixBytes, text.data(), text.size());
  return ParseSafetensorsJson(std::move(text), file.size(), file.path(), limits);
}

std::map<std::string, RawTensor> ReadSafetensors(const ReadOnlyFile& file) {
  std::map<std::string, RawTensor> tensors;
  for (const SafetensorsEntry& entry : ReadSafetensorsHeader(file).tensors) {
    RawTensor tensor{entry.dtype, entry.shape, std::string(entry.end - entry.begin, '\0')};
    file.ReadAt(entry.begin, tensor.data.data(), tensor.data.size());
    tensors.emplace(entry.name, std::move(tensor));
  }
  return tensors;
}

std::string SerializeSafetensors(const std::map<std::string, RawTensor>& tensors,
                                 const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  const auto order = WriteOrder(tensors);
  for (const auto* item : order) {
    const auto& [name, tensor] = *item;
    CheckWritable(name, tensor);
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {offset, offset + tensor.data.size()}}};
    offset += tensor.data.size();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t size = text.size();
  std::string bytes(reinterpret_cast<const char*>(&size), kSafetensorsPrefixBytes);
  bytes += text;
  for (const auto* item : order) bytes += item->second.data;
  return bytes;
}

void WriteSafetensors(const std::filesystem::path& path,
                      const std::map<std::string, RawTensor>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  WriteWholeFile(path, SerializeSafetensors(tensors, metadata));
}

}  // namespace denoised
