#include "runtime/loaders/weights.h"

#include <unistd.h>

#include <algorithm>
#include <set>
#include <unordered_map>
#include <utility>

#include "backends/error.h"
#include "runtime/loaders/config.h"
#include "runtime/loaders/file.h"
#include "runtime/loaders/safetensors.h"
#include "runtime/loaders/sha256.h"

namespace denoised {
namespace {

// Converted in pieces that stay in the second-level cache.
constexpr uint64_t kChunkBytes = 512 << 10;

Error Bad(const std::string& file, const std::string& message) {
  return Error(StatusCode::kInvalidArgument, file + ": " + message, file);
}

std::string ShapeText(at::IntArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

at::ScalarType SourceType(const std::string& file, const SafetensorsEntry& entry) {
  if (entry.dtype == "F32") return at::kFloat;
  if (entry.dtype == "F16") return at::kHalf;
  if (entry.dtype == "BF16") return at::kBFloat16;
  throw Bad(file, "tensor '" + entry.name + "': dtype " + entry.dtype +
                      " is not supported; supported: F32, F16, BF16");
}

// A hostile file may declare terabytes of holes; an allocator that overcommits would say yes and
// the reading would then end the process.
void CheckMemory(const std::string& file, const SafetensorsEntry& entry, at::ScalarType dtype) {
  const uint64_t machine =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t elements =
      (entry.end - entry.begin) * 8 / static_cast<uint64_t>(SafetensorsDtypeBits(entry.dtype));
  if (elements <= machine / c10::elementSize(dtype)) return;
  throw Error(StatusCode::kResourceExhausted,
              file + ": tensor '" + entry.name + "': shape " + ShapeText(entry.shape) +
                  " is more than the machine's memory",
              file);
}

// Reads the tensor into fresh memory, through a small buffer where the dtype changes.
at::Tensor ReadTensor(const ReadOnlyFile& file, const SafetensorsEntry& entry,
                      at::ScalarType dtype) {
  const at::ScalarType source = SourceType(file.path(), entry);
  CheckMemory(file.path(), entry, dtype);
  at::Tensor out = at::empty(entry.shape, at::TensorOptions(dtype));
  if (source == dtype) {
    file.ReadAt(entry.begin, out.data_ptr(), entry.end - entry.begin);
    return out;
  }
  const int64_t width = static_cast<int64_t>(c10::elementSize(source));
  const int64_t chunk = static_cast<int64_t>(kChunkBytes) / width;
  at::Tensor buffer = at::empty({std::min(chunk, out.numel())}, at::TensorOptions(source));
  at::Tensor flat = out.view({-1});
  for (int64_t done = 0; done < out.numel(); done += chunk) {
    const int64_t count = std::min(chunk, out.numel() - done);
    file.ReadAt(entry.begin + static_cast<uint64_t>(done * width), buffer.data_ptr(),
                static_cast<uint64_t>(count * width));
    flat.narrow(0, done, count).copy_(buffer.narrow(0, 0, count));
  }
  return out;
}

struct Shard {
  ReadOnlyFile file;
  SafetensorsHeader header;
};

Shard OpenShard(const std::filesystem::path& path) {
  ReadOnlyFile file(path);
  SafetensorsHeader header = ReadSafetensorsHeader(file);
  return {std::move(file), std::move(header)};
}

// A shard must be a plain file name in the index's own folder: an index must not lead elsewhere.
void CheckShardName(const std::string& index, const std::string& name) {
  const bool bare = !name.empty() && name.size() <= 255 && name.front() != '.' &&
                    name.find_first_of("/\\") == std::string::npos &&
                    name.find('\0') == std::string::npos && name.ends_with(".safetensors");
  if (!bare) throw Bad(index, "weight_map names a shard that is not a bare *.safetensors name");
}

void CheckTotalSize(const ConfigReader& index, const std::vector<Shard>& shards) {
  if (!index.Has("metadata")) return;
  const ConfigReader metadata(index.json().at("metadata"), index.path());
  if (!metadata.Has("total_size")) return;
  const int64_t wanted = metadata.Int("total_size", 0, 0, INT64_MAX);
  uint64_t came = 0;
  for (const Shard& shard : shards) {
    for (const SafetensorsEntry& entry : shard.header.tensors) came += entry.end - entry.begin;
  }
  if (came == static_cast<uint64_t>(wanted)) return;
  throw Bad(index.path(), "metadata.total_size is " + std::to_string(wanted) +
                              ", the shards hold " + std::to_string(came) + " bytes");
}

// Where a tensor is: indices into the shards and their headers.
struct Place {
  size_t shard;
  size_t entry;
};
using Places = std::unordered_map<std::string, Place>;

Places FindPlaces(const std::vector<Shard>& shards) {
  Places places;
  for (size_t s = 0; s < shards.size(); ++s) {
    const auto& tensors = shards[s].header.tensors;
    for (size_t t = 0; t < tensors.size(); ++t) {
      const auto [found, fresh] = places.emplace(tensors[t].name, Place{s, t});
      if (fresh) continue;
      throw Bad(shards[s].file.path(), "tensor '" + tensors[t].name + "' is also in " +
                                           shards[found->second.shard].file.path());
    }
  }
  return places;
}

void CheckWeightMap(const ConfigReader& index, const std::map<std::string, std::string>& wanted,
                    const std::vector<Shard>& shards, const Places& places) {
  for (const auto& [tensor, shard] : wanted) {
    const auto found = places.find(tensor);
    const bool there =
        found != places.end() &&
        std::filesystem::path(shards[found->second.shard].file.path()).filename() == shard;
    if (!there) throw Bad(index.path(), "tensor '" + tensor + "' is not in its shard " + shard);
  }
}

std::map<std::string, std::string> ReadWeightMap(const ConfigReader& index) {
  const auto& json = index.json();
  const auto found = json.find("weight_map");
  if (found == json.end() || !found->is_object() || found->empty()) {
    throw Bad(index.path(), "wanted an object weight_map with at least one tensor");
  }
  std::map<std::string, std::string> map;
  for (const auto& [tensor, shard] : found->items()) {
    if (!shard.is_string()) throw Bad(index.path(), "weight_map: a shard name is not a string");
    CheckShardName(index.path(), shard.get<std::string>());
    map.emplace(tensor, shard.get<std::string>());
  }
  return map;
}

// The whole of a small file, else its first and last bytes and evenly spaced pieces between.
void HashSample(const ReadOnlyFile& file, Sha256& hash) {
  constexpr uint64_t kEnd = 64 << 10, kPiece = 4 << 10, kPieces = 64, kWhole = 1 << 20;
  std::string buffer;
  const auto add = [&](uint64_t offset, uint64_t size) {
    buffer.resize(size);
    file.ReadAt(offset, buffer.data(), size);
    hash.Update(buffer);
  };
  if (file.size() <= kWhole) return add(0, file.size());
  add(0, kEnd);
  for (uint64_t i = 1; i < kPieces; ++i) add(file.size() / kPieces * i, kPiece);
  add(file.size() - kEnd, kEnd);
}

}  // namespace

struct Weights::Impl {
  std::string wanted;  // dir/stem, for errors
  std::vector<Shard> shards;
  Places places;
  std::set<std::string> unused;

  void Index() {
    places = FindPlaces(shards);
    for (const auto& [name, place] : places) unused.insert(name);
  }

  const Shard& OwnerOf(const std::string& name, const SafetensorsEntry** entry) const {
    const auto found = places.find(name);
    if (found == places.end()) {
      const std::string file = shards.size() == 1 ? shards[0].file.path() : wanted;
      throw Bad(file, "tensor '" + name + "' is missing");
    }
    const Shard& shard = shards[found->second.shard];
    *entry = &shard.header.tensors[found->second.entry];
    return shard;
  }
};

Weights::Weights(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Weights::~Weights() = default;
Weights::Weights(Weights&&) noexcept = default;
Weights& Weights::operator=(Weights&&) noexcept = default;

Weights Weights::Open(const std::filesystem::path& dir, const std::string& stem) {
  auto impl = std::make_unique<Impl>();
  const std::filesystem::path single = dir / (stem + ".safetensors");
  const std::filesystem::path index_path = dir / (stem + ".safetensors.index.json");
  impl->wanted = (dir / stem).string();
  if (std::filesystem::exists(single)) {
    impl->shards.push_back(OpenShard(single));
    impl->Index();
    return Weights(std::move(impl));
  }
  if (!std::filesystem::exists(index_path)) {
    throw Error(
        StatusCode::kNotFound,
        single.string() + ": no such file, nor " + index_path.filename().string() + " beside it",
        single.string());
  }
  const ConfigReader index = ConfigReader::FromFile(index_path);
  const std::map<std::string, std::string> weight_map = ReadWeightMap(index);
  std::set<std::string> names;
  for (const auto& [tensor, shard] : weight_map) names.insert(shard);
  for (const std::string& name : names) impl->shards.push_back(OpenShard(dir / name));
  impl->Index();
  CheckWeightMap(index, weight_map, impl->shards, impl->places);
  CheckTotalSize(index, impl->shards);
  return Weights(std::move(impl));
}

bool Weights::Contains(const std::string& name) const { return impl_->places.contains(name); }

at::ScalarType Weights::StoredDtype(const std::string& name) const {
  const SafetensorsEntry* entry = nullptr;
  const Shard& shard = impl_->OwnerOf(name, &entry);
  return SourceType(shard.file.path(), *entry);
}

at::Tensor Weights::Take(const std::string& name, at::IntArrayRef shape, at::ScalarType dtype,
                         at::Device device) {
  const SafetensorsEntry* entry = nullptr;
  const Shard& shard = impl_->OwnerOf(name, &entry);
  if (at::IntArrayRef(entry->shape) != shape) {
    throw Bad(shard.file.path(), "tensor '" + name + "': wanted shape " + ShapeText(shape) +
                                     ", came " + ShapeText(entry->shape));
  }
  shard.file.CheckUnchanged();
  at::Tensor tensor = ReadTensor(shard.file, *entry, dtype);
  impl_->unused.erase(name);
  return device.is_cpu() ? tensor : tensor.to(device);
}

std::vector<std::string> Weights::Unused() const {
  return {impl_->unused.begin(), impl_->unused.end()};
}

std::string Weights::Digest() const {
  std::map<std::string, const Shard*> sorted;
  for (const Shard& shard : impl_->shards) {
    sorted.emplace(std::filesystem::path(shard.file.path()).filename().string(), &shard);
  }
  Sha256 hash;
  for (const auto& [name, shard] : sorted) {
    hash.Update(name + '\0' + std::to_string(shard->file.size()) + '\0');
    hash.Update(shard->header.json);
    HashSample(shard->file, hash);
  }
  return ToHex(hash.Finish());
}

}  // namespace denoised
